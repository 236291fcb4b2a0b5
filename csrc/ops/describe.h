// Tensors -> Problem, and every check of tensors and flags, once, for every device.
#pragma once

#include "../core/problem.h"
#include "schema.h"

namespace rope_ext::ops {

// The tensors and flags of one call, as they came.
struct Call {
  const Tensor& query;
  const Tensor* key;  // null: query alone
  const Tensor* cos;  // null: angles are made from frequencies
  const Tensor* sin;
  const Tensor* frequencies;  // null: they are read from tables
  double scale;
  const Tensor* positions;  // null: the token's own index
  Flags flags;
  const char* query_name = "query";  // as the user calls it: `x` for rotate

  Call(const FromTables& from, const Tensor& query, const OptionalTensor& key, const Flags& flags)
      : query(query),
        key(given(key)),
        cos(&from.cos),
        sin(&from.sin),
        frequencies(nullptr),
        scale(1),
        positions(given(from.positions)),
        flags(flags) {}
  Call(const FromFrequencies& from, const Tensor& query, const OptionalTensor& key, const Flags& flags)
      : query(query),
        key(given(key)),
        cos(nullptr),
        sin(nullptr),
        frequencies(&from.frequencies),
        scale(from.scale),
        positions(given(from.positions)),
        flags(flags) {}

 private:
  static const Tensor* given(const OptionalTensor& tensor) {
    return tensor && tensor->defined() ? &*tensor : nullptr;
  }
};

// Every rule about dtypes, devices, ranks and sizes, sizes taken as symbols: what a Meta kernel checks.
void check_symbolic(const Call& call);

// All rules, and the problem that remains. `target` is null in place; out of place it is the result,
// sized like the query.
Problem describe(const Call& call, const Tensor* target);

}  // namespace rope_ext::ops
