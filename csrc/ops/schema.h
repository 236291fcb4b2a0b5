// The operators as C++ sees them: types, one argument for each of the schema's, and handles.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <optional>

namespace rope_ext::ops {

using Tensor = at::Tensor;
using OptionalTensor = std::optional<at::Tensor>;
using OptionalInt = std::optional<int64_t>;

using Apply = void(const Tensor& query, const OptionalTensor& key, const Tensor& cos, const Tensor& sin,
                   const OptionalTensor& positions, int64_t seq_dim, OptionalInt head_dim,
                   OptionalInt num_heads, int64_t start, bool interleaved, bool inverse);

using Rotate = Tensor(const Tensor& x, const Tensor& cos, const Tensor& sin, const OptionalTensor& positions,
                      int64_t seq_dim, OptionalInt head_dim, OptionalInt num_heads, int64_t start,
                      bool interleaved, bool inverse);

inline const c10::TypedOperatorHandle<Apply>& apply_operator() {
  static const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("rope::apply", "").typed<Apply>();
  return op;
}

inline const c10::TypedOperatorHandle<Rotate>& rotate_operator() {
  static const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("rope::rotate", "").typed<Rotate>();
  return op;
}

}  // namespace rope_ext::ops
