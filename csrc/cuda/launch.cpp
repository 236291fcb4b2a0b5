#include "launch.h"

namespace rope_ext::cuda {

cudaError_t launch(const Problem& problem, Queue queue) {
  if (problem.batches == 0 || problem.tokens == 0) return cudaSuccess;
  return visit(problem.element,
               [&](auto element) { return launch_elements<decltype(element)>(problem, queue); });
}

}  // namespace rope_ext::cuda
