// Which instruction set rotates: the best that the processor has, or the one that the user forces.
#pragma once

#include <string>
#include <vector>

#include "kernels.h"

namespace rope_ext::cpu {

// The kernels in use. ROPE_EXT_CPU=scalar|avx2|avx512|avx512_bf16 chooses them at first use.
const Kernels& kernels();

// Throws std::invalid_argument for a name that this processor or this build does not have.
void set_capability(const std::string& name);

std::string capability();

// The available ones, slowest first.
std::vector<std::string> capabilities();

}  // namespace rope_ext::cpu
