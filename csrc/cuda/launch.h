// Launches a Problem on a GPU.
#pragma once

#include <cuda_runtime.h>

#include "../core/problem.h"

namespace rope_ext::cuda {

struct Queue {
  cudaStream_t stream;
  int multiprocessors;  // of the stream's device, which must be the current one
};

// One kernel for query and key, or none where nothing moves. Allocates nothing, waits for nothing and asks
// the device nothing. A position outside [0, rows) stops the kernel by an assertion.
cudaError_t launch(const Problem& problem, Queue queue);

// The same for elements of type T, each compiled in a source of its own.
template <class T>
cudaError_t launch_elements(const Problem& problem, Queue queue);

}  // namespace rope_ext::cuda
