#if defined(__x86_64__)
#include <immintrin.h>

#include "scale.h"

#pragma GCC target("avx512f,avx512bw,avx512vl")
#include "walk.h"

namespace rope_bench {
namespace {

struct Float32 {
  static __m512 broadcast(double factor) { return _mm512_set1_ps(static_cast<float>(factor)); }
  static void scale(char* line, __m512 factor) {
    _mm512_storeu_ps(line, _mm512_mul_ps(_mm512_loadu_ps(line), factor));
  }
};

struct Float64 {
  static __m512d broadcast(double factor) { return _mm512_set1_pd(factor); }
  static void scale(char* line, __m512d factor) {
    _mm512_storeu_pd(line, _mm512_mul_pd(_mm512_loadu_pd(line), factor));
  }
};

struct Float16 : Float32 {
  static void scale(char* line, __m512 factor) {
    auto* target = reinterpret_cast<__m256i*>(line);
    for (int i = 0; i < 2; ++i) {
      const __m512 scaled = _mm512_mul_ps(_mm512_cvtph_ps(_mm256_loadu_si256(target + i)), factor);
      _mm256_storeu_si256(target + i, _mm512_cvtps_ph(scaled, _MM_FROUND_TO_NEAREST_INT));
    }
  }
};

// Even and odd elements are halves of 32-bit words: no shuffle. A NaN is not looked after.
struct Bfloat16 : Float32 {
  static __m512i rounded(__m512 value) {
    const __m512i bits = _mm512_castps_si512(value);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    return _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  }
  static void scale(char* line, __m512 factor) {
    __m512i words = _mm512_loadu_si512(line);
    asm("" : "+v"(words));  // otherwise GCC loads twice
    const __m512 even = _mm512_castsi512_ps(_mm512_slli_epi32(words, 16));
    const __m512 odd = _mm512_castsi512_ps(_mm512_and_si512(words, _mm512_set1_epi32(~0xffff)));
    const __m512i low = _mm512_srli_epi32(rounded(_mm512_mul_ps(even, factor)), 16);
    const __m512i high = rounded(_mm512_mul_ps(odd, factor));
    _mm512_storeu_si512(line, _mm512_mask_blend_epi16(0xaaaaaaaa, low, high));
  }
};

struct ReadWrite : Float32 {
  static void scale(char* line, __m512) {
    __m512i words = _mm512_loadu_si512(line);
    asm volatile("" : "+v"(words));
    _mm512_storeu_si512(line, words);
  }
};

}  // namespace

Scales avx512() { return {walk<Float16>, walk<Bfloat16>, walk<Float32>, walk<Float64>, walk<ReadWrite>}; }

}  // namespace rope_bench
#endif
