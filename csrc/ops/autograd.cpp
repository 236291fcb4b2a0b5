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

struct Flags {
  int64_t seq_dim;
  OptionalInt head_dim, num_heads;
  int64_t start;
  bool interleaved, inverse;
};

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

// Of query, or of query and key: input i of the node is the gradient of the i-th.
class RotateBackward : public autograd::Node {
 public:
  RotateBackward(const Tensor& cos, const Tensor& sin, const OptionalTensor& positions, const Flags& flags)
      : cos_(cos, /*is_output=*/false),
        sin_(sin, /*is_output=*/false),
        positions_(positions.value_or(Tensor()), /*is_output=*/false),
        flags_(flags) {
    flags_.inverse = !flags.inverse;
  }

  autograd::variable_list apply(autograd::variable_list&& gradients) override {
    const Saved saved = unpack();
    autograd::variable_list results(gradients.size());
    for (size_t i = 0; i < gradients.size(); ++i) {
      if (task_should_compute_output(i)) results[i] = std::move(gradients[i]);
    }
    const bool plain = !autograd::GradMode::is_enabled() && !at::areAnyTensorSubclassLike(results);
    if (plain && results.size() == 2 && solely_owned(results[0]) && solely_owned(results[1])) {
      rotate_in_place(results[0], results[1], saved, flags_.num_heads);
      return results;
    }
    for (size_t i = 0; i < results.size(); ++i) {
      if (!results[i].defined()) continue;
      const OptionalInt num_heads = i == 0 ? flags_.num_heads : std::nullopt;
      results[i] = rotated(std::move(results[i]), plain, saved, num_heads);
    }
    return results;
  }

  void release_variables() override {
    std::lock_guard<std::mutex> lock(mutex_);
    cos_.reset_data();
    sin_.reset_data();
    positions_.reset_data();
  }

  std::string name() const override { return "RotateBackward"; }

 private:
  struct Saved {
    Tensor cos, sin;
    OptionalTensor positions;
  };

  Saved unpack() {
    std::lock_guard<std::mutex> lock(mutex_);
    const Tensor positions = positions_.unpack();
    return {cos_.unpack(), sin_.unpack(), positions.defined() ? OptionalTensor(positions) : std::nullopt};
  }

  Tensor rotated(Tensor gradient, bool plain, const Saved& saved, OptionalInt num_heads) const {
    if (plain && solely_owned(gradient)) {
      rotate_in_place(gradient, std::nullopt, saved, num_heads);
      return gradient;
    }
    if (traced(gradient)) {
      // The compiler plans this buffer and drops the clone; rope::rotate would allocate inside.
      Tensor copy = gradient.clone(at::MemoryFormat::Contiguous);
      rotate_in_place(copy, std::nullopt, saved, num_heads);
      return copy;
    }
    // Contiguous, leading dimensions merge: a gradient's own layout may have more than a Problem holds.
    if (gradient.dim() > kBatchDims + 3) gradient = gradient.contiguous();
    return rotate_operator().call(gradient, saved.cos, saved.sin, saved.positions, flags_.seq_dim,
                                  flags_.head_dim, num_heads, flags_.start, flags_.interleaved,
                                  flags_.inverse);
  }

  void rotate_in_place(const Tensor& first, const OptionalTensor& second, const Saved& saved,
                       OptionalInt num_heads) const {
    apply_operator().call(first, second, saved.cos, saved.sin, saved.positions, flags_.seq_dim,
                          flags_.head_dim, num_heads, flags_.start, flags_.interleaved, flags_.inverse);
  }

  autograd::SavedVariable cos_, sin_, positions_;
  Flags flags_;
};

// Nodes are held by intrusive_ptr from torch 2.13 on, by shared_ptr before.
#if TORCH_VERSION_MAJOR > 2 || TORCH_VERSION_MINOR >= 13
using NodePointer = c10::intrusive_ptr<RotateBackward>;
template <class... Args>
NodePointer make_node(Args&&... args) {
  return c10::make_intrusive<RotateBackward>(std::forward<Args>(args)...);
}
#else
using NodePointer = std::shared_ptr<RotateBackward>;
template <class... Args>
NodePointer make_node(Args&&... args) {
  return std::shared_ptr<RotateBackward>(new RotateBackward(std::forward<Args>(args)...),
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

void refuse_table_derivatives(const Tensor& cos, const Tensor& sin) {
  TORCH_CHECK(
      !requires_grad(cos) && !requires_grad(sin),
      "cos and sin must not require grad: derivatives with respect to tables are not implemented, got one "
      "that requires grad");
  TORCH_CHECK(
      !autograd::isFwGradDefined(cos) && !autograd::isFwGradDefined(sin),
      "cos and sin must not have a tangent: derivatives with respect to tables are not implemented, got one "
      "that has");
}

Tensor tangent_of(const Tensor& tensor) { return tensor._fw_grad(/*level=*/0); }

// The rotation of tangents, in place like that of their tensors.
void rotate_tangents(const Tensor& query, const OptionalTensor& key, const Tensor& cos, const Tensor& sin,
                     const OptionalTensor& positions, const Flags& flags) {
  const auto rotate = [&](const Tensor& tensor, OptionalInt num_heads) {
    if (!autograd::isFwGradDefined(tensor)) return;
    const Tensor tangent = tangent_of(tensor);
    apply_operator().call(tangent, std::nullopt, cos, sin, positions, flags.seq_dim, flags.head_dim,
                          num_heads, flags.start, flags.interleaved, flags.inverse);
    tensor._set_fw_grad(tangent, /*level=*/0, /*is_inplace_op=*/true);
  };
  rotate(query, flags.num_heads);
  if (key) rotate(*key, std::nullopt);
}

void apply(c10::DispatchKeySet keys, const Tensor& query, const OptionalTensor& key, const Tensor& cos,
           const Tensor& sin, const OptionalTensor& positions, int64_t seq_dim, OptionalInt head_dim,
           OptionalInt num_heads, int64_t start, bool interleaved, bool inverse) {
  const bool query_grad = requires_grad(query), key_grad = key && requires_grad(*key);
  autograd::check_inplace(query, query_grad);
  if (key) autograd::check_inplace(*key, key_grad);
  refuse_table_derivatives(cos, sin);

  Flags flags{seq_dim, head_dim, num_heads, start, interleaved, inverse};
  // A view is rebased through a node of its own.
  const bool together = query_grad && key_grad && !query.is_view() && !key->is_view();
  NodePointer query_node, key_node;
  if (query_grad) {
    query_node = make_node(cos, sin, positions, flags);
    query_node->set_next_edges(together ? autograd::collect_next_edges(query, *key)
                                        : autograd::collect_next_edges(query));
  }
  if (key_grad && !together) {
    Flags key_flags = flags;
    key_flags.num_heads = std::nullopt;
    key_node = make_node(cos, sin, positions, key_flags);
    key_node->set_next_edges(autograd::collect_next_edges(*key));
  }

  {
    at::AutoDispatchBelowAutograd guard;
    apply_operator().redispatch(keys & c10::after_autograd_keyset, query, key, cos, sin, positions, seq_dim,
                                head_dim, num_heads, start, interleaved, inverse);
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
  rotate_tangents(query, key, cos, sin, positions, flags);
}

Tensor rotate(c10::DispatchKeySet keys, const Tensor& x, const Tensor& cos, const Tensor& sin,
              const OptionalTensor& positions, int64_t seq_dim, OptionalInt head_dim, OptionalInt num_heads,
              int64_t start, bool interleaved, bool inverse) {
  refuse_table_derivatives(cos, sin);
  NodePointer node;
  if (requires_grad(x)) {
    node = make_node(cos, sin, positions, Flags{seq_dim, head_dim, num_heads, start, interleaved, inverse});
    node->set_next_edges(autograd::collect_next_edges(x));
  }
  Tensor result = [&] {
    at::AutoDispatchBelowADInplaceOrView guard;
    return rotate_operator().redispatch(keys & c10::after_ADInplaceOrView_keyset, x, cos, sin, positions,
                                        seq_dim, head_dim, num_heads, start, interleaved, inverse);
  }();
  if (node) attach(result, node);
  if (autograd::isFwGradDefined(x)) {
    const Tensor tangent = rotate_operator().call(tangent_of(x), cos, sin, positions, seq_dim, head_dim,
                                                  num_heads, start, interleaved, inverse);
    result._set_fw_grad(tangent, /*level=*/0, /*is_inplace_op=*/false);
  }
  return result;
}

}  // namespace
}  // namespace rope_ext::ops

TORCH_LIBRARY_IMPL(rope, Autograd, m) {
  m.impl("apply", rope_ext::ops::apply);
  m.impl("rotate", rope_ext::ops::rotate);
}
