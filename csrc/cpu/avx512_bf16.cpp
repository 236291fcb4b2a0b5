// AVX-512 with the bfloat16 instruction, which rounds like the others but flushes subnormals to zero:
// vectors that hold one take the integer way, so that every instruction set gives the same bits.
#include "x86.h"

#if defined(ROPE_X86)

#if defined(__clang__)
#pragma clang attribute push(                                                               \
    __attribute__((target("avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))), \
    apply_to = function)
#else
#pragma GCC target("avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#endif

#include "avx512.h"

namespace rope_ext::cpu {
namespace {

ROPE_INLINE bool any_subnormal(Floats a) { return _mm512_fpclass_ps_mask(a.value, 0x20) != 0; }

struct Avx512Bf16 : Avx512 {
  using Avx512::store;
  using Avx512::store_pairs;

  static ROPE_INLINE void store(bfloat16* p, Floats a) { put(p, halves(a)); }
  static ROPE_INLINE void store(bfloat16* p, Floats a, int64_t n) {
    _mm256_mask_storeu_epi16(p, first(n), halves(a));
  }
  static ROPE_INLINE void store_pairs(bfloat16* p, Pair<Floats> pair) {
    _mm512_storeu_si512(p, together(pair));
  }
  static ROPE_INLINE void store_pairs(bfloat16* p, Pair<Floats> pair, int64_t n) {
    _mm512_mask_storeu_epi32(p, first(n), together(pair));
  }

 private:
  static ROPE_INLINE __m256i halves(Floats a) {
    if (any_subnormal(a)) [[unlikely]]
      return rounded_halves(a);
    return (__m256i)_mm512_cvtneps_pbh(a.value);
  }
  static ROPE_INLINE __m512i together(Pair<Floats> pair) {
    const __m512i x = _mm512_cvtepu16_epi32(halves(pair.x));
    const __m512i y = _mm512_cvtepu16_epi32(halves(pair.y));
    return _mm512_or_si512(x, _mm512_slli_epi32(y, 16));
  }
};

}  // namespace

constinit const Kernels avx512_bf16_kernels = kernels_of<Avx512Bf16>();

}  // namespace rope_ext::cpu

#if defined(__clang__)
#pragma clang attribute pop
#endif

#endif
