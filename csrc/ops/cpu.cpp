// The CPU key.
#include <ATen/Parallel.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include "../cpu/launch.h"
#include "describe.h"

namespace rope_ext::ops {
namespace {

// Elements that are worth a thread.
constexpr int64_t kGrain = 65536;

void launch(const Problem& problem) {
  const std::optional<int64_t> bad = cpu::position_out_of_range(problem);
  TORCH_CHECK_INDEX(!bad, "positions must not be negative and be below ", problem.angles.rows,
                    " (the table's rows), got ", *bad);
  int64_t heads = 0;
  for (int v = 0; v < problem.views; ++v) heads += problem.view[v].heads + problem.view[v].kept_heads;
  const int64_t elements = std::max<int64_t>(1, heads * problem.head_dim);
  const int64_t grain = std::max<int64_t>(1, kGrain / elements);
  at::parallel_for(0, problem.batches * problem.tokens, grain,
                   [&](int64_t begin, int64_t end) { cpu::rotate_tokens(problem, begin, end); });
}

void apply(const Tensor& query, const OptionalTensor& key, const Tensor& cos, const Tensor& sin,
           const OptionalTensor& positions, int64_t seq_dim, OptionalInt head_dim, OptionalInt num_heads,
           int64_t start, bool interleaved, bool inverse) {
  launch(describe({query, Call::given(key), cos, sin, Call::given(positions), seq_dim, head_dim, num_heads,
                   start, interleaved, inverse}));
}

Tensor rotate(const Tensor& x, const Tensor& cos, const Tensor& sin, const OptionalTensor& positions,
              int64_t seq_dim, OptionalInt head_dim, OptionalInt num_heads, int64_t start, bool interleaved,
              bool inverse) {
  const Tensor result = at::empty_like(x);
  launch(describe({x, nullptr, cos, sin, Call::given(positions), seq_dim, head_dim, num_heads, start,
                   interleaved, inverse, "x"},
                  &result));
  return result;
}

}  // namespace
}  // namespace rope_ext::ops

TORCH_LIBRARY_IMPL(rope, CPU, m) {
  m.impl("apply", rope_ext::ops::apply);
  m.impl("rotate", rope_ext::ops::rotate);
}
