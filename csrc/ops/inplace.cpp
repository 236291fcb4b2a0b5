// The ADInplaceOrView key: versions. Nothing else bumps them for an operator that returns nothing, and a
// stale saved tensor would give a wrong gradient in silence.
#include <c10/core/InferenceMode.h>
#include <torch/csrc/autograd/VariableTypeUtils.h>
#include <torch/library.h>

#include "schema.h"

namespace rope_ext::ops {
namespace {

void check_writable(const Tensor& tensor) {
  TORCH_CHECK(
      !tensor.is_inference() || c10::InferenceMode::is_enabled(),
      "query and key must not be inference tensors outside inference mode, where nothing can count their "
      "versions, got one: rotate a clone, or call rope::rotate");
}

template <class Source>
void apply_and_count(c10::DispatchKeySet keys, const Source& source, const Tensor& query,
                     const OptionalTensor& key, const Flags& flags) {
  check_writable(query);
  if (key) check_writable(*key);
  {
    at::AutoDispatchBelowADInplaceOrView guard;
    apply_below(keys & c10::after_ADInplaceOrView_keyset, source, query, key, flags);
  }
  torch::autograd::increment_version(query);
  if (key) torch::autograd::increment_version(*key);
}

void apply_tables(c10::DispatchKeySet keys, const Tensor& query, const OptionalTensor& key, const Tensor& cos,
                  const Tensor& sin, const OptionalTensor& positions, int64_t seq_dim, OptionalInt head_dim,
                  OptionalInt num_heads, int64_t start, bool interleaved, bool inverse) {
  apply_and_count(keys, FromTables{cos, sin, positions}, query, key,
                  {seq_dim, head_dim, num_heads, start, interleaved, inverse});
}

void apply_frequencies(c10::DispatchKeySet keys, const Tensor& query, const OptionalTensor& key,
                       const OptionalTensor& positions, const Tensor& frequencies, double scale,
                       int64_t seq_dim, OptionalInt head_dim, OptionalInt num_heads, int64_t start,
                       bool interleaved, bool inverse) {
  apply_and_count(keys, FromFrequencies{positions, frequencies, scale}, query, key,
                  {seq_dim, head_dim, num_heads, start, interleaved, inverse});
}

}  // namespace
}  // namespace rope_ext::ops

TORCH_LIBRARY_IMPL(rope, ADInplaceOrView, m) {
  m.impl("apply", rope_ext::ops::apply_tables);
  m.impl("apply_frequencies", rope_ext::ops::apply_frequencies);
}
