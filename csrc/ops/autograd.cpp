// The Autograd key. A rotation is linear and its transpose is the rotation by the opposite angle, so the
// backward pass and the forward-mode derivative are the same operators again.
#include <ATen/TensorSubclassLikeUtils.h>
#include <torch/csrc/autograd/VariableTypeUtils.h>
#include <torch/library.h>
#include <torch/version.h>

#include "../core/problem.h"
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

// Of query, or of query and key: input i of the node is the gradient of the i-th.
template <class Source>
class RotateBackward : public autograd::Node {
 public:
  RotateBackward(const Source& source, const Flags& flags) : kept_(source), flags_(flags) {
    flags_.inverse = !flags.inverse;
  }

  autograd::variable_list apply(autograd::variable_list&& gradients) override {
    const typename Kept<Source>::Unpacked unpacked = unpack();
    const Source source = unpacked.source();
    autograd::variable_list results(gradients.size());
    for (size_t i = 0; i < gradients.size(); ++i) {
      if (task_should_compute_output(i)) results[i] = std::move(gradients[i]);
    }
    const bool plain = !autograd::GradMode::is_enabled() && !at::areAnyTensorSubclassLike(results);
    if (plain && results.size() == 2 && solely_owned(results[0]) && solely_owned(results[1])) {
      ops::apply(source, results[0], results[1], flags_);
      return results;
    }
    for (size_t i = 0; i < results.size(); ++i) {
      if (!results[i].defined()) continue;
      Flags flags = flags_;
      if (i > 0) flags.num_heads = std::nullopt;
      results[i] = rotated(std::move(results[i]), plain, source, flags);
    }
    return results;
  }

  void release_variables() override {
    std::lock_guard<std::mutex> lock(mutex_);
    kept_.release();
  }

  std::string name() const override { return "RotateBackward"; }

 private:
  typename Kept<Source>::Unpacked unpack() {
    std::lock_guard<std::mutex> lock(mutex_);
    return kept_.unpack();
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
};

// Nodes are held by intrusive_ptr from torch 2.13 on, by shared_ptr before.
#if TORCH_VERSION_MAJOR > 2 || TORCH_VERSION_MINOR >= 13
using NodePointer = c10::intrusive_ptr<autograd::Node>;
template <class Source>
NodePointer make_node(const Source& source, const Flags& flags) {
  return c10::make_intrusive<RotateBackward<Source>>(source, flags);
}
#else
using NodePointer = std::shared_ptr<autograd::Node>;
template <class Source>
NodePointer make_node(const Source& source, const Flags& flags) {
  return std::shared_ptr<RotateBackward<Source>>(new RotateBackward<Source>(source, flags),
                                                 autograd::deleteNode);
}
#endif

// Hooks on the creation of nodes exist from torch 2.14 on, and run when a node is complete.
#if TORCH_VERSION_MAJOR > 2 || TORCH_VERSION_MINOR >= 14
template <class Outputs>
void attach_in_place(const Outputs& outputs, const NodePointer& node) {
  autograd::fire_node_creation_hooks(autograd::rebase_history(outputs, node));
}
void attach(const Tensor& output, const NodePointer& node) {
  autograd::set_history(output, node);
  autograd::fire_node_creation_hooks(node);
}
#else
template <class Outputs>
void attach_in_place(const Outputs& outputs, const NodePointer& node) {
  autograd::rebase_history(outputs, node);
}
void attach(const Tensor& output, const NodePointer& node) { autograd::set_history(output, node); }
#endif

bool requires_grad(const Tensor& tensor) {
  return autograd::GradMode::is_enabled() && tensor.requires_grad();
}

void refuse_derivative(const char* name, const Tensor& tensor) {
  TORCH_CHECK(!requires_grad(tensor), name,
              " must not require grad: derivatives with respect to angles are not implemented, got one that "
              "requires grad");
  TORCH_CHECK(!autograd::isFwGradDefined(tensor), name,
              " must not have a tangent: derivatives with respect to angles are not implemented, got one "
              "that has");
}

void refuse_derivatives(const FromTables& from) {
  refuse_derivative("cos", from.cos);
  refuse_derivative("sin", from.sin);
}

void refuse_derivatives(const FromFrequencies& from) {
  refuse_derivative("frequencies", from.frequencies);
  if (from.positions) refuse_derivative("positions", *from.positions);
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
  const bool query_grad = requires_grad(query), key_grad = key && requires_grad(*key);
  autograd::check_inplace(query, query_grad);
  if (key) autograd::check_inplace(*key, key_grad);
  refuse_derivatives(source);

  // A view is rebased through a node of its own.
  const bool together = query_grad && key_grad && !query.is_view() && !key->is_view();
  NodePointer query_node, key_node;
  if (query_grad) {
    query_node = make_node(source, flags);
    query_node->set_next_edges(together ? autograd::collect_next_edges(query, *key)
                                        : autograd::collect_next_edges(query));
  }
  if (key_grad && !together) {
    Flags key_flags = flags;
    key_flags.num_heads = std::nullopt;
    key_node = make_node(source, key_flags);
    key_node->set_next_edges(autograd::collect_next_edges(*key));
  }

  {
    at::AutoDispatchBelowAutograd guard;
    apply_below(keys & c10::after_autograd_keyset, source, query, key, flags);
  }

  if (together) {
    attach_in_place(std::vector<Tensor>{query, *key}, query_node);
  } else {
    // A tensor before its view, which then finds the new history of its base.
    const bool key_first = query.is_view();
    if (key_first && key_node) attach_in_place(*key, key_node);
    if (query_node) attach_in_place(query, query_node);
    if (!key_first && key_node) attach_in_place(*key, key_node);
  }
  rotate_tangents(source, query, key, flags);
}

template <class Source>
Tensor rotate_and_record(c10::DispatchKeySet keys, const Source& source, const Tensor& x,
                         const Flags& flags) {
  refuse_derivatives(source);
  NodePointer node;
  if (requires_grad(x)) {
    node = make_node(source, flags);
    node->set_next_edges(autograd::collect_next_edges(x));
  }
  Tensor result = [&] {
    at::AutoDispatchBelowADInplaceOrView guard;
    return rotate_below(keys & c10::after_ADInplaceOrView_keyset, source, x, flags);
  }();
  if (node) attach(result, node);
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
