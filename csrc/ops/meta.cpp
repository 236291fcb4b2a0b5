// The Meta key: shapes without data, for fake tensors, tracing and export. Sizes may be symbols.
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include "describe.h"

namespace rope_ext::ops {
namespace {

void apply(const Tensor& query, const OptionalTensor& key, const Tensor& cos, const Tensor& sin,
           const OptionalTensor& positions, int64_t seq_dim, OptionalInt head_dim, OptionalInt num_heads,
           int64_t start, bool interleaved, bool inverse) {
  check_symbolic({query, Call::given(key), cos, sin, Call::given(positions), seq_dim, head_dim, num_heads,
                  start, interleaved, inverse});
}

Tensor rotate(const Tensor& x, const Tensor& cos, const Tensor& sin, const OptionalTensor& positions,
              int64_t seq_dim, OptionalInt head_dim, OptionalInt num_heads, int64_t start, bool interleaved,
              bool inverse) {
  check_symbolic({x, nullptr, cos, sin, Call::given(positions), seq_dim, head_dim, num_heads, start,
                  interleaved, inverse, "x"});
  return at::empty_like(x);
}

}  // namespace
}  // namespace rope_ext::ops

TORCH_LIBRARY_IMPL(rope, Meta, m) {
  m.impl("apply", rope_ext::ops::apply);
  m.impl("rotate", rope_ext::ops::rotate);
}
