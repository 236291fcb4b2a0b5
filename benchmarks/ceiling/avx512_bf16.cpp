#if defined(__x86_64__)
#include <immintrin.h>

#include "scale.h"

#pragma GCC target("avx512f,avx512bw,avx512vl,avx512bf16")
#include "walk.h"

namespace rope_bench {
namespace {

struct Bfloat16 {
  static __m512 broadcast(double factor) { return _mm512_set1_ps(static_cast<float>(factor)); }
  static void scale(char* line, __m512 factor) {
    __m512i words = _mm512_loadu_si512(line);
    asm("" : "+v"(words));  // otherwise GCC loads twice
    const __m512 even = _mm512_castsi512_ps(_mm512_slli_epi32(words, 16));
    const __m512 odd = _mm512_castsi512_ps(_mm512_and_si512(words, _mm512_set1_epi32(~0xffff)));
    const auto halves = (__m512i)_mm512_cvtne2ps_pbh(_mm512_mul_ps(odd, factor), _mm512_mul_ps(even, factor));
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23,
                                           7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    _mm512_storeu_si512(line, _mm512_permutexvar_epi16(order, halves));
  }
};

}  // namespace

Scales avx512_bf16() {
  Scales scales = avx512();
  scales.bfloat16 = walk<Bfloat16>;
  return scales;
}

}  // namespace rope_bench
#endif
