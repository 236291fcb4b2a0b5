// The CUDA key of a build without CUDA.
#include "on_device.h"

namespace rope_ext::ops {
namespace {

void run(const Call& call, const Tensor*) {
  TORCH_CHECK_NOT_IMPLEMENTED(
      false, call.query_name, " must be on a CPU: this rope_ext was built without CUDA, got ",
      call.query.device(),
      ". To build it with CUDA, install a CUDA build of torch and nvcc of the same major version, then "
      "reinstall with ROPE_EXT_CUDA=1 and --no-build-isolation");
}

}  // namespace
}  // namespace rope_ext::ops

TORCH_LIBRARY_IMPL(rope, CUDA, m) { rope_ext::ops::OnDevice<rope_ext::ops::run>::implement(m); }
