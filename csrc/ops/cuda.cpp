// The CUDA key.
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <vector>

#include "../cuda/launch.h"
#include "on_device.h"

namespace rope_ext::ops {
namespace {

// Asked once: a call asks the device nothing.
int multiprocessors(c10::DeviceIndex device) {
  static const std::vector<int> of_device = [] {
    std::vector<int> counts(c10::cuda::device_count());
    for (size_t d = 0; d < counts.size(); ++d)
      C10_CUDA_CHECK(cudaDeviceGetAttribute(&counts[d], cudaDevAttrMultiProcessorCount, static_cast<int>(d)));
    return counts;
  }();
  return of_device.at(device);
}

void run(const Call& call, const Tensor* target) {
  const Problem problem = describe(call, target);
  const c10::DeviceIndex device = call.query.device().index();
  const c10::cuda::CUDAGuard guard(device);
  const cudaError_t error =
      cuda::launch(problem, {c10::cuda::getCurrentCUDAStream(device), multiprocessors(device)});
  if (error == cudaSuccess) return;
  (void)cudaGetLastError();  // reported here, not again by the next call
  TORCH_CHECK(false, "the rotation of ", call.query_name, " ", call.query.sizes(),
              call.key ? c10::str(" and key ", call.key->sizes()) : "", " by ",
              call.frequencies ? "frequencies " : "cos ",
              (call.frequencies ? call.frequencies : call.cos)->sizes(), " must start on ",
              call.query.device(), ", got ", cudaGetErrorName(error), ": ", cudaGetErrorString(error));
}

}  // namespace
}  // namespace rope_ext::ops

TORCH_LIBRARY_IMPL(rope, CUDA, m) { rope_ext::ops::OnDevice<rope_ext::ops::run>::implement(m); }
