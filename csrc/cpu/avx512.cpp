// AVX-512 without the bfloat16 instruction.
#include "x86.h"

#if defined(ROPE_X86)

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))), \
                             apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#endif

#include "avx512.h"

namespace rope_ext::cpu {

constexpr Kernels avx512_kernels = kernels_of<Avx512<IntegerRounding>>();

}  // namespace rope_ext::cpu

#if defined(__clang__)
#pragma clang attribute pop
#endif

#endif
