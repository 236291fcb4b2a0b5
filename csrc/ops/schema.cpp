// Every operator's signature, nothing else. No `*`: a keyword costs more than half a microsecond a call.
#include <torch/library.h>

TORCH_LIBRARY(rope, m) {
  m.def(
      "apply(Tensor(a!) query, Tensor(b!)? key, Tensor cos, Tensor sin, Tensor? positions=None, int "
      "seq_dim=-3, "
      "int? head_dim=None, int? num_heads=None, int start=0, bool interleaved=False, bool inverse=False) -> "
      "()");
  m.def(
      "rotate(Tensor x, Tensor cos, Tensor sin, Tensor? positions=None, int seq_dim=-3, int? head_dim=None, "
      "int? num_heads=None, int start=0, bool interleaved=False, bool inverse=False) -> Tensor");
}
