#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include <optional>
#include <string>
#include <string_view>

#include "scale.h"

namespace rope_bench {
namespace {

Scales scales_for(std::string_view capability) {
#if defined(__x86_64__)
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c");
  const bool has_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512vl");
  if (capability == "avx2" && has_avx2) return avx2();
  if (capability == "avx512" && has_avx512) return avx512();
  if (capability == "avx512_bf16" && has_avx512 && __builtin_cpu_supports("avx512bf16")) {
    return avx512_bf16();
  }
#endif
  TORCH_CHECK_VALUE(capability == "scalar", "capability must be one of this processor, got ",
                    std::string(capability));
  return scalar();
}

Scale scale_for(const Scales& scales, at::ScalarType dtype) {
  switch (dtype) {
    case at::kHalf: return scales.float16;
    case at::kBFloat16: return scales.bfloat16;
    case at::kFloat: return scales.float32;
    case at::kDouble: return scales.float64;
    default: TORCH_CHECK_TYPE(false, "query must be a floating tensor, got ", dtype);
  }
}

void walk(const at::Tensor& tensor, Scale scale, double factor) {
  TORCH_CHECK_VALUE(tensor.is_contiguous() && tensor.nbytes() % kLineBytes == 0,
                    "tensors must be contiguous and whole cache lines, got ", tensor.sizes());
  char* data = static_cast<char*>(tensor.mutable_data_ptr());
  const int64_t lines = static_cast<int64_t>(tensor.nbytes()) / kLineBytes;
  const int64_t grain = 65536 * tensor.element_size() / kLineBytes;  // that of the operators
  at::parallel_for(0, lines, grain, [=](int64_t begin, int64_t end) {
    scale(data + begin * kLineBytes, end - begin, factor);
  });
}

// The repetitions are here, below the dispatcher: a ceiling pays for no call.
void scale(const at::Tensor& query, const at::Tensor& key, double factor, int64_t repeats,
           std::string_view capability) {
  const Scale one = scale_for(scales_for(capability), query.scalar_type());
  for (int64_t i = 0; i < repeats; ++i) {
    walk(query, one, factor);
    walk(key, one, factor);
  }
}

void read_write(const at::Tensor& query, const at::Tensor& key, int64_t repeats,
                std::string_view capability) {
  const Scale one = scales_for(capability).read_write;
  for (int64_t i = 0; i < repeats; ++i) {
    walk(query, one, 1.0);
    walk(key, one, 1.0);
  }
}

void empty(const at::Tensor&, const std::optional<at::Tensor>&, const at::Tensor&, const at::Tensor&,
           const std::optional<at::Tensor>&, int64_t, std::optional<int64_t>, std::optional<int64_t>, int64_t,
           bool, bool) {}

const std::string kApplySchema =
    "(Tensor(a!) query, Tensor(b!)? key, Tensor cos, Tensor sin, Tensor? positions=None, "
    "int seq_dim=-3, int? head_dim=None, int? num_heads=None, int start=0, "
    "bool interleaved=False, bool inverse=False) -> ()";

}  // namespace

TORCH_LIBRARY(rope_bench, library) {
  library.def("scale(Tensor(a!) query, Tensor(b!) key, float factor, int repeats, str capability) -> ()");
  library.def("read_write(Tensor(a!) query, Tensor(b!) key, int repeats, str capability) -> ()");
  library.def(("empty_bare" + kApplySchema).c_str());
  library.def(("empty_ordinary" + kApplySchema).c_str());
}

TORCH_LIBRARY_IMPL(rope_bench, CPU, library) {
  library.impl("scale", scale);
  library.impl("read_write", read_write);
  library.impl("empty_bare", empty);
  library.impl("empty_ordinary", empty);
}

// The cheapest that an author can write: autograd's keys are skipped. The ordinary operator leaves
// them to torch's own fallback.
TORCH_LIBRARY_IMPL(rope_bench, Autograd, library) {
  library.impl("empty_bare", torch::CppFunction::makeFallthrough());
}

TORCH_LIBRARY_IMPL(rope_bench, ADInplaceOrView, library) {
  library.impl("empty_bare", torch::CppFunction::makeFallthrough());
}

}  // namespace rope_bench
