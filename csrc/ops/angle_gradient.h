// Derivatives with respect to angles, in torch's own differentiable operators.
#pragma once

#include <array>
#include <vector>

#include "schema.h"

namespace rope_ext::ops {

// A tensor that was rotated: the gradient of the result, and the result itself or what became it.
struct Rotated {
  Tensor gradient, tensor;
  bool is_result;
  Flags flags;  // of the rotation
};

// Of cos and sin. A result is turned back first, which is right wherever cos^2 + sin^2 is not 0.
std::array<Tensor, 2> gradients(const FromTables& from, const std::vector<Rotated>& all);

// Of positions and frequencies, undefined where `wanted` is false. Needs results.
std::array<Tensor, 2> gradients(const FromFrequencies& from, const std::vector<Rotated>& all,
                                std::array<bool, 2> wanted);

}  // namespace rope_ext::ops
