#include "angle_gradient.h"

#include <ATen/ATen.h>

namespace rope_ext::ops {
namespace {

// The two coordinates of every pair, as (..., S, H, P).
struct Coordinates {
  Tensor x, y;
};

// (..., S, H, n), whichever way a tensor lies, of the heads that are rotated.
Tensor by_head(const Tensor& tensor, const Flags& flags) {
  const Tensor heads = flags.head_dim        ? tensor.unflatten(-1, {-1, *flags.head_dim})
                       : flags.seq_dim == -2 ? tensor.transpose(-3, -2)
                                             : tensor;
  return flags.num_heads ? heads.narrow(-2, 0, *flags.num_heads) : heads;
}

// 16-bit numbers are computed with in float32.
at::ScalarType compute_type(const Tensor& tensor) {
  return tensor.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

Coordinates coordinates(const Tensor& tensor, const Flags& flags, const c10::SymInt& pairs) {
  const Tensor slice =
      by_head(tensor, flags).narrow_symint(-1, flags.start, pairs * 2).to(compute_type(tensor));
  if (flags.interleaved) {
    const Tensor two = slice.unflatten_symint(-1, {pairs, 2});
    return {two.select(-1, 0), two.select(-1, 1)};
  }
  return {slice.narrow_symint(-1, 0, pairs), slice.narrow_symint(-1, pairs, pairs)};
}

// A table as tokens read it, (..., S, 1 or H, P), and the way back for a gradient.
class Rows {
 public:
  Rows(const Tensor& table, const OptionalTensor& positions, const Flags& flags, int64_t dims,
       const c10::SymInt& tokens)
      : table_(table), positions_(positions), tokens_(tokens) {
    has_heads_ = table.dim() == dims && !positions && table.dim() > 2;
    swapped_ = has_heads_ && flags.seq_dim == -2;
  }

  Tensor of(const Tensor& table) const {
    if (positions_) return table.index({positions_->to(at::kLong)}).unsqueeze(-2);
    if (table.dim() == 2) return table.narrow_symint(0, 0, tokens_).unsqueeze(-2);
    return swapped_ ? table.transpose(-3, -2) : has_heads_ ? table : table.unsqueeze(-2);
  }

  // From every row that was read, heads and all, to the table.
  Tensor back(const Tensor& gradient) const {
    Tensor rows = gradient.sum_to_size_symint(of(table_).sym_sizes());
    if (positions_)
      rows = at::zeros_like(table_, gradient.options())
                 .index_put({positions_->to(at::kLong)}, rows.squeeze(-2), /*accumulate=*/true);
    else if (table_.dim() == 2)
      rows = at::constant_pad_nd_symint(rows.squeeze(-2),
                                        std::vector<c10::SymInt>{0, 0, 0, table_.sym_size(0) - tokens_});
    else if (swapped_)
      rows = rows.transpose(-3, -2);
    else if (!has_heads_)
      rows = rows.squeeze(-2);
    return rows.to(table_.scalar_type());
  }

 private:
  const Tensor& table_;
  const OptionalTensor& positions_;
  c10::SymInt tokens_;
  bool has_heads_, swapped_;
};

int64_t dims_of(const Rotated& rotated) { return rotated.tensor.dim() + (rotated.flags.head_dim ? 1 : 0); }

void add(Tensor& sum, const Tensor& part) { sum = sum.defined() ? sum + part : part; }

}  // namespace

std::array<Tensor, 2> gradients(const FromTables& from, const std::vector<Rotated>& all) {
  std::array<Tensor, 2> sums;
  const c10::SymInt pairs = from.cos.sym_size(-1);
  for (const Rotated& rotated : all) {
    const Coordinates gradient = coordinates(rotated.gradient, rotated.flags, pairs);
    auto [x, y] = coordinates(rotated.tensor, rotated.flags, pairs);
    const Rows rows(from.cos, from.positions, rotated.flags, dims_of(rotated), x.sym_size(-3));
    if (rotated.is_result) {
      const Tensor cos = rows.of(from.cos).to(x.scalar_type());
      const Tensor positive = rows.of(from.sin).to(x.scalar_type());
      const Tensor sin = rotated.flags.inverse ? -positive : positive;
      const Tensor square = cos * cos + sin * sin;
      const Tensor turned = (x * cos + y * sin) / square;
      y = (y * cos - x * sin) / square;
      x = turned;
    }
    const Tensor sin = gradient.y * x - gradient.x * y;
    add(sums[0], rows.back(gradient.x * x + gradient.y * y));
    add(sums[1], rows.back(rotated.flags.inverse ? -sin : sin));
  }
  return sums;
}

std::array<Tensor, 2> gradients(const FromFrequencies& from, const std::vector<Rotated>& all,
                                std::array<bool, 2> wanted) {
  std::array<Tensor, 2> sums;
  const Tensor& frequencies = from.frequencies;
  const int64_t dims = frequencies.dim();
  const c10::SymInt pairs = frequencies.sym_size(-1);
  const c10::SymInt axes = dims > 1 ? frequencies.sym_size(0) : 1,
                    heads = dims == 3 ? frequencies.sym_size(1) : 1;
  for (const Rotated& rotated : all) {
    const Coordinates gradient = coordinates(rotated.gradient, rotated.flags, pairs);
    const Coordinates result = coordinates(rotated.tensor, rotated.flags, pairs);
    // A pair moves at right angles to where it is.
    Tensor angles = gradient.y * result.x - gradient.x * result.y;
    if (rotated.flags.inverse) angles = -angles;
    if (heads == 1) angles = angles.sum(-2, /*keepdim=*/true);
    // Positions may be large, and sums long.
    angles = angles.to(at::kDouble);

    c10::SymDimVector shape(angles.sym_sizes().begin(), angles.sym_sizes().end() - 2);  // ..., S
    c10::SymInt tokens = 1;
    for (const c10::SymInt& size : shape) tokens *= size;
    const Tensor rows = angles.reshape_symint({tokens, heads * pairs});
    shape.push_back(axes);
    if (wanted[1]) {
      const Tensor positions = from.positions
                                   ? (dims > 1 ? *from.positions : from.positions->unsqueeze(-1))
                                   : at::arange(angles.sym_size(-3), angles.options()).unsqueeze(-1);
      const Tensor of_tokens = positions.to(at::kDouble).expand_symint(shape).reshape_symint({tokens, axes});
      add(sums[1],
          of_tokens.t().mm(rows).reshape_symint(frequencies.sym_sizes()).to(frequencies.scalar_type()));
    }
    if (wanted[0]) {
      const Tensor of_axes = frequencies.to(at::kDouble).reshape_symint({axes, heads * pairs});
      const Tensor positions = rows.mm(of_axes.t()).reshape_symint(shape);
      add(sums[0], (dims > 1 ? positions : positions.squeeze(-1))
                       .sum_to_size_symint(from.positions->sym_sizes())
                       .to(from.positions->scalar_type()));
    }
  }
  return sums;
}

}  // namespace rope_ext::ops
