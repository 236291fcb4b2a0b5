// Stands in for CUDA's own header, so that a host compiler takes csrc/cuda: what those sources use of it. A
// launch hands the kernel to a walk, which runs the threads one behind the other.
#pragma once

#include <cstddef>
#include <functional>
#include <type_traits>

#define __global__
#define __launch_bounds__(...)

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;

using cudaStream_t = struct CUstream_st*;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorInvalidConfiguration = 9 };

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
};

namespace cuda_on_host {

struct Launch {
  dim3 grid, block;
  cudaStream_t stream;
  std::function<void()> kernel;  // of the thread that the built-in variables name

  void run(uint3 block_index, uint3 thread_index) const {
    gridDim = grid;
    blockDim = block;
    blockIdx = block_index;
    threadIdx = thread_index;
    kernel();
  }
};

// Which threads of a launch run, and in which order.
using Walk = std::function<void(const Launch&)>;
inline Walk walk;

// The limits of every device.
inline bool can_start(dim3 grid, dim3 block) {
  const auto within = [](dim3 size, unsigned x, unsigned y, unsigned z) {
    return 1 <= size.x && size.x <= x && 1 <= size.y && size.y <= y && 1 <= size.z && size.z <= z;
  };
  return within(grid, 0x7fffffff, 65535, 65535) && within(block, 1024, 1024, 64) &&
         block.x * block.y * block.z <= 1024;
}

}  // namespace cuda_on_host

template <class... Parameters>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               std::type_identity_t<Parameters>... arguments) {
  static_assert((sizeof(Parameters) + ...) <= 4096, "no more fits into the constant memory of every device");
  if (!cuda_on_host::can_start(config->gridDim, config->blockDim)) return cudaErrorInvalidConfiguration;
  cuda_on_host::walk(
      {config->gridDim, config->blockDim, config->stream, [&, kernel] { kernel(arguments...); }});
  return cudaSuccess;
}
