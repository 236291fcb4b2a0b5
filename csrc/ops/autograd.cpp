// The Autograd key. A rotation is linear and its transpose is the rotation by the opposite angle, so the
// backward pass and the forward-mode derivative are the same operators again.
#include <ATen/TensorSubclassLikeUtils.h>
#include <torch/csrc/autograd/VariableTypeUtils.h>
#include <torch/library.h>
#include <torch/version.h>

#include <array>
#include <tuple>
#include <vector>

#include "../core/problem.h"
#include "angle_gradient.h"
#include "schema.h"

namespace rope_ext::ops {
namespace {

namespace autograd = torch::autograd;

// Nobody else can see this gradient: not the graph, a hook, a view of it, or an owner of foreign memory.
bool solely_owned(const Tensor& gradient) {
  return gradient.defined() && gradient.use_count() == 1 && gradient.has_storage() &&
         gradient.storage().use_count() == 1 && gradient.storage().unsafeGetStorageImpl()->resizable() &&
         gradient.is_non_overlapping_and_dense() && !gradient._is_zerotensor() && !gradient.is_neg() &&
         !autograd::isFwGradDefined(gradient);
}

bool traced(const Tensor& gradient) {
  const c10::DispatchKeySet tracers{c10::DispatchKey::Python, c10::DispatchKey::Functionalize};
  return c10::impl::dispatch_mode_enabled() || gradient.key_set().has_any(tracers);
}

// Nodes are held by intrusive_ptr from torch 2.13 on, by shared_ptr before.
#if TORCH_VERSION_MAJOR > 2 || TORCH_VERSION_MINOR >= 13
template <class T>
using Pointer = c10::intrusive_ptr<T>;
template <class T, class... Args>
Pointer<T> make_pointer(Args&&... args) {
  return c10::make_intrusive<T>(std::forward<Args>(args)...);
}
Pointer<autograd::Node> pointer_to(autograd::Node* node) {
  return Pointer<autograd::Node>::unsafe_reclaim_from_nonowning(node);
}
#else
template <class T>
using Pointer = std::shared_ptr<T>;
template <class T, class... Args>
Pointer<T> make_pointer(Args&&... args) {
  return Pointer<T>(new T(std::forward<Args>(args)...), autograd::deleteNode);
}
Pointer<autograd::Node> pointer_to(autograd::Node* node) { return node->getptr(); }
#endif

// Where a gradient goes that nobody wants.
struct Nowhere : autograd::Node {
  autograd::variable_list apply(autograd::variable_list&&) override { return {}; }
};

// What a node keeps of a source.
template <class Source>
class Kept;

autograd::SavedVariable save(const Tensor& tensor) { return {tensor, /*is_output=*/false}; }
autograd::SavedVariable save(const OptionalTensor& tensor) { return save(tensor.value_or(Tensor())); }
OptionalTensor optional(const Tensor& tensor) {
  return tensor.defined() ? OptionalTensor(tensor) : std::nullopt;
}

template <>
class Kept<FromTables> {
 public:
  explicit Kept(const FromTables& from)
      : cos_(save(from.cos)), sin_(save(from.sin)), positions_(save(from.positions)) {}

  struct Unpacked {
    Tensor cos, sin;
    OptionalTensor positions;
    FromTables source() const { return {cos, sin, positions}; }
  };
  Unpacked unpack() const { return {cos_.unpack(), sin_.unpack(), optional(positions_.unpack())}; }

  void release() {
    cos_.reset_data();
    sin_.reset_data();
    positions_.reset_data();
  }

 private:
  autograd::SavedVariable cos_, sin_, positions_;
};

template <>
class Kept<FromFrequencies> {
 public:
  explicit Kept(const FromFrequencies& from)
      : positions_(save(from.positions)), frequencies_(save(from.frequencies)), scale_(from.scale) {}

  struct Unpacked {
    OptionalTensor positions;
    Tensor frequencies;
    double scale;
    FromFrequencies source() const { return {positions, frequencies, scale}; }
  };
  Unpacked unpack() const { return {optional(positions_.unpack()), frequencies_.unpack(), scale_}; }

  void release() {
    positions_.reset_data();
    frequencies_.reset_data();
  }

 private:
  autograd::SavedVariable positions_, frequencies_;
  double scale_;
};

// The tensors of a source that may require grad, in the order of its gradients.
std::array<Tensor, 2> tensors_of(const FromTables& from) { return {from.cos, from.sin}; }
std::array<Tensor, 2> tensors_of(const FromFrequencies& from) {
  return {from.positions.value_or(Tensor()), from.frequencies};
}

std::array<Tensor, 2> gradients_of(const FromTables& from, const std::vector<Rotated>& all,
                                   std::array<bool, 2> wanted) {
  std::array<Tensor, 2> found = gradients(from, all);
  for (int i = 0; i < 2; ++i) {
    if (!wanted[i]) found[i] = Tensor();
  }
  return found;
}
std::array<Tensor, 2> gradients_of(const FromFrequencies& from, const std::vector<Rotated>& all,
                                   std::array<bool, 2> wanted) {
  return gradients(from, all, wanted);
}

// Of query, or of query and key: input i of the node is the gradient of the i-th. Behind their edges are two
// of the source.
template <class Source>
class RotateBackward : public autograd::Node {
 public:
  RotateBackward(const Source& source, const Flags& flags) : kept_(source), flags_(flags) {}

  // For the gradients of angles, in the order of the inputs: the results, or what became them.
  void keep(const Tensor& tensor, bool is_result, bool is_view) {
    rotated_.emplace_back(tensor, is_result, is_view);
    keeps_results_ = is_result;
  }

  autograd::variable_list apply(autograd::variable_list&& gradients) override {
    std::vector<Tensor> rotated;
    const typename Kept<Source>::Unpacked unpacked = unpack(rotated);
    const Source source = unpacked.source();
    const size_t count = gradients.size();
    autograd::variable_list results(count + 2);
    const std::array<bool, 2> wanted = {task_should_compute_output(count),
                                        task_should_compute_output(count + 1)};
    if (!rotated.empty() && (wanted[0] || wanted[1])) {
      std::vector<Rotated> all;
      for (size_t i = 0; i < count; ++i) {
        if (gradients[i].defined()) all.push_back({gradients[i], rotated[i], keeps_results_, flags_of(i)});
      }
      std::tie(results[count], results[count + 1]) = pair(gradients_of(source, all, wanted));
    }
    for (size_t i = 0; i < count; ++i) {
      if (task_should_compute_output(i)) results[i] = std::move(gradients[i]);
    }
    turn_back(source, results, count);
    return results;
  }

  void release_variables() override {
    std::lock_guard<std::mutex> lock(mutex_);
    kept_.release();
    for (autograd::SavedVariable& saved : rotated_) saved.reset_data();
  }

  std::string name() const override { return "RotateBackward"; }

 private:
  static std::tuple<Tensor, Tensor> pair(const std::array<Tensor, 2>& two) { return {two[0], two[1]}; }

  typename Kept<Source>::Unpacked unpack(std::vector<Tensor>& rotated) {
    std::lock_guard<std::mutex> lock(mutex_);
    for (const autograd::SavedVariable& saved : rotated_) rotated.push_back(saved.unpack(pointer_to(this)));
    return kept_.unpack();
  }

  Flags flags_of(size_t input) const {
    Flags flags = flags_;
    if (input > 0) flags.num_heads = std::nullopt;
    return flags;
  }

  void turn_back(const Source& source, autograd::variable_list& gradients, size_t count) const {
    const bool plain = !autograd::GradMode::is_enabled() && !at::areAnyTensorSubclassLike(gradients);
    if (plain && count == 2 && solely_owned(gradients[0]) && solely_owned(gradients[1])) {
      ops::apply(source, gradients[0], gradients[1], opposite(flags_));
      return;
    }
    for (size_t i = 0; i < count; ++i) {
      if (gradients[i].defined())
        gradients[i] = rotated(std::move(gradients[i]), plain, source, opposite(flags_of(i)));
    }
  }

  static Flags opposite(Flags flags) {
    flags.inverse = !flags.inverse;
    return flags;
  }

  static Tensor rotated(Tensor gradient, bool plain, const Source& source, const Flags& flags) {
    if (plain && solely_owned(gradient)) {
      ops::apply(source, gradient, std::nullopt, flags);
      return gradient;
    }
    if (traced(gradient)) {
      // The compiler plans this buffer and drops the clone; rope::rotate would allocate inside.
      const Tensor copy = gradient.clone(at::MemoryFormat::Contiguous);
      ops::apply(source, copy, std::nullopt, flags);
      return copy;
    }
    // Contiguous, leading dimensions merge: a gradient's own layout may have more than a Problem holds.
    if (gradient.dim() > kBatchDims + 3) gradient = gradient.contiguous();
    return ops::rotate(source, gradient, flags);
  }

  Kept<Source> kept_;
  Flags flags_;
  std::vector<autograd::SavedVariable> rotated_;
  bool keeps_results_ = true;
};

template <class Source>
using NodePointer = Pointer<RotateBackward<Source>>;

// Hooks on the creation of nodes exist from torch 2.14 on, and run when a node is complete.
#if TORCH_VERSION_MAJOR > 2 || TORCH_VERSION_MINOR >= 14
template <class Outputs, class Source>
void attach_in_place(const Outputs& outputs, const NodePointer<Source>& node) {
  autograd::fire_node_creation_hooks(autograd::rebase_history(outputs, node));
}
template <class Source>
void attach(const Tensor& output, const NodePointer<Source>& node) {
  autograd::set_history(output, node);
  autograd::fire_node_creation_hooks(node);
}
#else
template <class Outputs, class Source>
void attach_in_place(const Outputs& outputs, const NodePointer<Source>& node) {
  autograd::rebase_history(outputs, node);
}
template <class Source>
void attach(const Tensor& output, const NodePointer<Source>& node) {
  autograd::set_history(output, node);
}
#endif

bool requires_grad(const Tensor& tensor) {
  return autograd::GradMode::is_enabled() && tensor.requires_grad();
}

void refuse_tangent(const char* name, const OptionalTensor& tensor) {
  TORCH_CHECK(!tensor || !autograd::isFwGradDefined(*tensor), name,
              " must not have a tangent: forward derivatives with respect to angles are not implemented, got "
              "one that has");
}

void refuse_tangents(const FromTables& from) {
  refuse_tangent("cos", from.cos);
  refuse_tangent("sin", from.sin);
}

void refuse_tangents(const FromFrequencies& from) {
  refuse_tangent("frequencies", from.frequencies);
  refuse_tangent("positions", from.positions);
}

template <class Source>
bool requires_grad(const Source& source) {
  const auto [first, second] = tensors_of(source);
  return (first.defined() && requires_grad(first)) || requires_grad(second);
}

Tensor tangent_of(const Tensor& tensor) { return tensor._fw_grad(/*level=*/0); }

// The rotation of tangents, in place like that of their tensors.
template <class Source>
void rotate_tangents(const Source& source, const Tensor& query, const OptionalTensor& key, Flags flags) {
  const auto rotate = [&](const Tensor& tensor) {
    if (!autograd::isFwGradDefined(tensor)) return;
    const Tensor tangent = tangent_of(tensor);
    ops::apply(source, tangent, std::nullopt, flags);
    tensor._set_fw_grad(tangent, /*level=*/0, /*is_inplace_op=*/true);
  };
  rotate(query);
  flags.num_heads = std::nullopt;
  if (key) rotate(*key);
}

template <class Source>
void apply_and_record(c10::DispatchKeySet keys, const Source& source, const Tensor& query,
                      const OptionalTensor& key, const Flags& flags) {
  const bool angle_grad = requires_grad(source);
  const bool query_grad = angle_grad || requires_grad(query);
  const bool key_grad = key && (angle_grad || requires_grad(*key));
  autograd::check_inplace(query, query_grad);
  if (key) autograd::check_inplace(*key, key_grad);
  refuse_tangents(source);

  // A view is rebased through a node of its own.
  const bool together = query_grad && key_grad && !query.is_view() && !key->is_view();
  const auto [first, second] = tensors_of(source);
  NodePointer<Source> query_node, key_node;
  if (query_grad) {
    query_node = make_pointer<RotateBackward<Source>>(source, flags);
    query_node->set_next_edges(together ? autograd::collect_next_edges(query, *key, first, second)
                                        : autograd::collect_next_edges(query, first, second));
  }
  if (key_grad && !together) {
    Flags key_flags = flags;
    key_flags.num_heads = std::nullopt;
    key_node = make_pointer<RotateBackward<Source>>(source, key_flags);
    key_node->set_next_edges(autograd::collect_next_edges(*key, first, second));
  }

  {
    at::AutoDispatchBelowAutograd guard;
    apply_below(keys & c10::after_autograd_keyset, source, query, key, flags);
  }

  if (together) {
    attach_in_place(std::vector<Tensor>{query, *key}, query_node);
  } else {
    // A tensor before its view, which then finds the new history of its base. The base of the second may have
    // got that history from the first alone, for the angles' sake: then the second's own gradient has nowhere
    // to go.
    const auto attach_second = [](const Tensor& tensor, const NodePointer<Source>& node) {
      if (!node->next_edge(0).is_valid() && tensor.requires_grad()) {
        auto nowhere = make_pointer<Nowhere>();
        nowhere->add_input_metadata(tensor);
        node->set_next_edge(0, autograd::Edge(std::move(nowhere), 0));
      }
      attach_in_place(tensor, node);
    };
    if (query.is_view()) {
      if (key_node) attach_in_place(*key, key_node);
      if (query_node) attach_second(query, query_node);
    } else {
      if (query_node) attach_in_place(query, query_node);
      if (key_node) attach_second(*key, key_node);
    }
  }
  if (angle_grad) {
    query_node->keep(query, /*is_result=*/true, query.is_view());
    if (key) (together ? query_node : key_node)->keep(*key, /*is_result=*/true, key->is_view());
  }
  rotate_tangents(source, query, key, flags);
}

// What the gradient of a source is computed from: the result, but for tables, where the input serves pairs of
// any length.
constexpr bool needs_result(const FromTables&) { return false; }
constexpr bool needs_result(const FromFrequencies&) { return true; }

template <class Source>
Tensor rotate_and_record(c10::DispatchKeySet keys, const Source& source, const Tensor& x,
                         const Flags& flags) {
  refuse_tangents(source);
  const bool angle_grad = requires_grad(source);
  NodePointer<Source> node;
  if (angle_grad || requires_grad(x)) {
    node = make_pointer<RotateBackward<Source>>(source, flags);
    const auto [first, second] = tensors_of(source);
    node->set_next_edges(autograd::collect_next_edges(x, first, second));
  }
  Tensor result = [&] {
    at::AutoDispatchBelowADInplaceOrView guard;
    return rotate_below(keys & c10::after_ADInplaceOrView_keyset, source, x, flags);
  }();
  if (node) attach(result, node);
  if (angle_grad) node->keep(needs_result(source) ? result : x, needs_result(source), /*is_view=*/false);
  if (autograd::isFwGradDefined(x)) {
    result._set_fw_grad(ops::rotate(source, tangent_of(x), flags), /*level=*/0, /*is_inplace_op=*/false);
  }
  return result;
}

void apply_tables(c10::DispatchKeySet keys, const Tensor& query, const OptionalTensor& key, const Tensor& cos,
                  const Tensor& sin, const OptionalTensor& positions, int64_t seq_dim, OptionalInt head_dim,
                  OptionalInt num_heads, int64_t start, bool interleaved, bool inverse) {
  apply_and_record(keys, FromTables{cos, sin, positions}, query, key,
                   {seq_dim, head_dim, num_heads, start, interleaved, inverse});
}

void apply_frequencies(c10::DispatchKeySet keys, const Tensor& query, const OptionalTensor& key,
                       const OptionalTensor& positions, const Tensor& frequencies, double scale,
                       int64_t seq_dim, OptionalInt head_dim, OptionalInt num_heads, int64_t start,
                       bool interleaved, bool inverse) {
  apply_and_record(keys, FromFrequencies{positions, frequencies, scale}, query, key,
                   {seq_dim, head_dim, num_heads, start, interleaved, inverse});
}

Tensor rotate_tables(c10::DispatchKeySet keys, const Tensor& x, const Tensor& cos, const Tensor& sin,
                     const OptionalTensor& positions, int64_t seq_dim, OptionalInt head_dim,
                     OptionalInt num_heads, int64_t start, bool interleaved, bool inverse) {
  return rotate_and_record(keys, FromTables{cos, sin, positions}, x,
                           {seq_dim, head_dim, num_heads, start, interleaved, inverse});
}

Tensor rotate_frequencies(c10::DispatchKeySet keys, const Tensor& x, const OptionalTensor& positions,
                          const Tensor& frequencies, double scale, int64_t seq_dim, OptionalInt head_dim,
                          OptionalInt num_heads, int64_t start, bool interleaved, bool inverse) {
  return rotate_and_record(keys, FromFrequencies{positions, frequencies, scale}, x,
                           {seq_dim, head_dim, num_heads, start, interleaved, inverse});
}

}  // namespace
}  // namespace rope_ext::ops

TORCH_LIBRARY_IMPL(rope, Autograd, m) {
  m.impl("apply", rope_ext::ops::apply_tables);
  m.impl("apply_frequencies", rope_ext::ops::apply_frequencies);
  m.impl("rotate", rope_ext::ops::rotate_tables);
  m.impl("rotate_frequencies", rope_ext::ops::rotate_frequencies);
}
