// The operators on a device, given what handles a call there: void handle(const Call&, const Tensor* target),
// in place where there is no target.
#pragma once

#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include "describe.h"

namespace rope_ext::ops {

template <auto handle, class Source>
Tensor rotated(const Source& source, const Tensor& x, const Flags& flags) {
  const Tensor result = at::empty_like(x);
  Call call(source, x, std::nullopt, flags);
  call.query_name = "x";
  handle(call, &result);
  return result;
}

template <auto handle>
struct OnDevice {
  static void apply(const Tensor& query, const OptionalTensor& key, const Tensor& cos, const Tensor& sin,
                    const OptionalTensor& positions, int64_t seq_dim, OptionalInt head_dim,
                    OptionalInt num_heads, int64_t start, bool interleaved, bool inverse) {
    const Flags flags{seq_dim, head_dim, num_heads, start, interleaved, inverse};
    handle(Call(FromTables{cos, sin, positions}, query, key, flags), nullptr);
  }

  static void apply_frequencies(const Tensor& query, const OptionalTensor& key,
                                const OptionalTensor& positions, const Tensor& frequencies, double scale,
                                int64_t seq_dim, OptionalInt head_dim, OptionalInt num_heads, int64_t start,
                                bool interleaved, bool inverse) {
    const Flags flags{seq_dim, head_dim, num_heads, start, interleaved, inverse};
    handle(Call(FromFrequencies{positions, frequencies, scale}, query, key, flags), nullptr);
  }

  static Tensor rotate(const Tensor& x, const Tensor& cos, const Tensor& sin, const OptionalTensor& positions,
                       int64_t seq_dim, OptionalInt head_dim, OptionalInt num_heads, int64_t start,
                       bool interleaved, bool inverse) {
    return rotated<handle>(FromTables{cos, sin, positions}, x,
                           {seq_dim, head_dim, num_heads, start, interleaved, inverse});
  }

  static Tensor rotate_frequencies(const Tensor& x, const OptionalTensor& positions,
                                   const Tensor& frequencies, double scale, int64_t seq_dim,
                                   OptionalInt head_dim, OptionalInt num_heads, int64_t start,
                                   bool interleaved, bool inverse) {
    return rotated<handle>(FromFrequencies{positions, frequencies, scale}, x,
                           {seq_dim, head_dim, num_heads, start, interleaved, inverse});
  }

  static void implement(torch::Library& m) {
    m.impl("apply", apply);
    m.impl("apply_frequencies", apply_frequencies);
    m.impl("rotate", rotate);
    m.impl("rotate_frequencies", rotate_frequencies);
  }
};

}  // namespace rope_ext::ops
