// The CPU key.
#include <ATen/Parallel.h>

#include "../cpu/launch.h"
#include "on_device.h"

namespace rope_ext::ops {
namespace {

// Elements that are worth a thread.
constexpr int64_t kGrain = 65536;

void run(const Call& call, const Tensor* target) {
  const Problem problem = describe(call, target);
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

}  // namespace
}  // namespace rope_ext::ops

TORCH_LIBRARY_IMPL(rope, CPU, m) { rope_ext::ops::OnDevice<rope_ext::ops::run>::implement(m); }
