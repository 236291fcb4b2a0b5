// Walks a Problem on a CPU.
#pragma once

#include <cstdint>
#include <optional>

#include "../core/problem.h"

namespace rope_ext::cpu {

// The first position outside [0, rows), or nothing. To be asked before anything is written.
std::optional<int64_t> position_out_of_range(const Problem& problem);

// Rotates tokens [begin, end) of the batches * tokens of a problem, one batch behind the other.
void rotate_tokens(const Problem& problem, int64_t begin, int64_t end);

}  // namespace rope_ext::cpu
