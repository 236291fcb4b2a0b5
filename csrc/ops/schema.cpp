// Every operator's signature, nothing else. No `*`: a keyword costs more than half a microsecond a call.
#include <torch/library.h>

#define ROPE_FLAGS                                                                                 \
  "int seq_dim=-3, int? head_dim=None, int? num_heads=None, int start=0, bool interleaved=False, " \
  "bool inverse=False"

TORCH_LIBRARY(rope, m) {
  m.def("apply(Tensor(a!) query, Tensor(b!)? key, Tensor cos, Tensor sin, Tensor? positions=None, " ROPE_FLAGS
        ") -> ()");
  m.def(
      "apply_frequencies(Tensor(a!) query, Tensor(b!)? key, Tensor? positions, Tensor frequencies, "
      "float scale=1.0, " ROPE_FLAGS ") -> ()");
  m.def("rotate(Tensor x, Tensor cos, Tensor sin, Tensor? positions=None, " ROPE_FLAGS ") -> Tensor");
  m.def("rotate_frequencies(Tensor x, Tensor? positions, Tensor frequencies, float scale=1.0, " ROPE_FLAGS
        ") -> Tensor");
  m.def(
      "cos_sin(Tensor positions, Tensor frequencies, float scale=1.0, ScalarType? dtype=None) -> "
      "(Tensor cos, Tensor sin)");
}
