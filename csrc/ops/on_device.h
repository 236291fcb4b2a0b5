// Both operators on a device, given what runs a problem there: void run(const Problem&, const Call&).
#pragma once

#include <ATen/ops/empty_like.h>

#include "describe.h"

namespace rope_ext::ops {

template <auto run>
void apply_with(const Tensor& query, const OptionalTensor& key, const Tensor& cos, const Tensor& sin,
                const OptionalTensor& positions, int64_t seq_dim, OptionalInt head_dim, OptionalInt num_heads,
                int64_t start, bool interleaved, bool inverse) {
  const Call call{query, Call::given(key), cos,    sin, Call::given(positions), seq_dim, head_dim, num_heads,
                  start, interleaved,      inverse};
  run(describe(call), call);
}

template <auto run>
Tensor rotate_with(const Tensor& x, const Tensor& cos, const Tensor& sin, const OptionalTensor& positions,
                   int64_t seq_dim, OptionalInt head_dim, OptionalInt num_heads, int64_t start,
                   bool interleaved, bool inverse) {
  const Call call{x,     nullptr,     cos,     sin, Call::given(positions), seq_dim, head_dim, num_heads,
                  start, interleaved, inverse, "x"};
  const Tensor result = at::empty_like(x);
  run(describe(call, &result), call);
  return result;
}

}  // namespace rope_ext::ops
