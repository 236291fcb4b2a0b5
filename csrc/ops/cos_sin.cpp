// rope::cos_sin, of other operators: the pair (1, 0) turned by an angle is its cosine and its sine, in the
// bits that a rotation uses.
#include <ATen/ops/zeros.h>
#include <c10/core/ScalarType.h>
#include <torch/library.h>

#include <tuple>

#include "schema.h"

namespace rope_ext::ops {
namespace {

std::tuple<Tensor, Tensor> cos_sin(const Tensor& positions, const Tensor& frequencies, double scale,
                                   std::optional<at::ScalarType> dtype) {
  const at::ScalarType type = dtype.value_or(at::kFloat);
  TORCH_CHECK_TYPE(type == at::kFloat || type == at::kDouble || type == at::kHalf || type == at::kBFloat16,
                   "dtype must be float16, bfloat16, float32 or float64, got ",
                   c10::getDtypeNames(type).first);
  TORCH_CHECK_VALUE(frequencies.device() == positions.device(), "frequencies must be on positions' device (",
                    positions.device(), "), got ", frequencies.device());
  const int64_t dims = frequencies.dim(), own = dims > 1 ? 1 : 0;
  TORCH_CHECK_VALUE(dims >= 1 && dims <= 3,
                    "frequencies must have 1 to 3 dimensions, (P), (A, P) or (A, H, P), got ", dims);
  TORCH_CHECK_VALUE(positions.dim() >= own, "positions must have a last dimension of axes, got none");
  c10::SymDimVector shape(positions.sym_sizes().begin(), positions.sym_sizes().end() - own);
  const c10::SymInt pairs = frequencies.sym_size(-1), heads = dims == 3 ? frequencies.sym_size(1) : 1;

  // One row of tokens, whatever shape the positions have.
  const Tensor tokens = own ? positions.flatten(0, -2 + int64_t{positions.dim() == 1}) : positions.flatten();
  const Tensor rows = own && positions.dim() == 1 ? positions.unsqueeze(0) : tokens;
  const Tensor x = at::zeros_symint({rows.sym_size(0), heads, pairs * 2}, positions.options().dtype(type));
  x.narrow_symint(-1, 0, pairs).fill_(1);
  apply(FromFrequencies{OptionalTensor(rows), frequencies, scale}, x, std::nullopt,
        Flags{-3, std::nullopt, std::nullopt, 0, false, false});

  if (dims == 3) shape.push_back(heads);
  shape.push_back(pairs);
  const auto part = [&](const c10::SymInt& first) {
    return x.narrow_symint(-1, first, pairs).reshape_symint(shape);
  };
  return {part(0), part(pairs)};
}

}  // namespace
}  // namespace rope_ext::ops

TORCH_LIBRARY_IMPL(rope, CompositeImplicitAutograd, m) { m.impl("cos_sin", rope_ext::ops::cos_sin); }
