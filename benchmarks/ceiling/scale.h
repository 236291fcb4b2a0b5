// An in-place `x *= c` over whole cache lines, once per instruction set: the bytes of a rotation in
// place and the least arithmetic, so that its time is the time of the memory.
#pragma once

#include <cstdint>

namespace rope_bench {

inline constexpr int64_t kLineBytes = 64;

using Scale = void (*)(char* data, int64_t lines, double factor);

struct Scales {
  Scale float16, bfloat16, float32, float64;
  Scale read_write;  // loads and stores every line as it is
};

// Each may be called only where the processor has its instructions.
Scales scalar();
Scales avx2();
Scales avx512();
Scales avx512_bf16();

}  // namespace rope_bench
