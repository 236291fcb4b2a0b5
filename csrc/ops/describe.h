// Tensors -> Problem, and every check of tensors and flags, once, for every device.
#pragma once

#include "../core/problem.h"
#include "schema.h"

namespace rope_ext::ops {

// The tensors and flags of one call, as they came.
struct Call {
  const Tensor& query;
  const Tensor* key;  // null: query alone
  const Tensor& cos;
  const Tensor& sin;
  const Tensor* positions;  // null: the token's own index
  int64_t seq_dim;
  OptionalInt head_dim, num_heads;
  int64_t start;
  bool interleaved, inverse;
  const char* query_name = "query";  // as the user calls it: `x` for rotate

  static const Tensor* given(const OptionalTensor& tensor) {
    return tensor && tensor->defined() ? &*tensor : nullptr;
  }
};

// Every rule about dtypes, devices, ranks and sizes, sizes taken as symbols: what a Meta kernel checks.
void check_symbolic(const Call& call);

// All rules, and the problem that remains. `target` is null in place; out of place it is the result,
// sized like the query.
Problem describe(const Call& call, const Tensor* target = nullptr);

}  // namespace rope_ext::ops
