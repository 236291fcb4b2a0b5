#if defined(__x86_64__)
#include <immintrin.h>

#include "scale.h"

#pragma GCC target("avx2,f16c")
#include "walk.h"

namespace rope_bench {
namespace {

struct Float32 {
  static __m256 broadcast(double factor) { return _mm256_set1_ps(static_cast<float>(factor)); }
  static void scale(char* line, __m256 factor) {
    auto* target = reinterpret_cast<float*>(line);
    for (int i = 0; i < 16; i += 8) {
      _mm256_storeu_ps(target + i, _mm256_mul_ps(_mm256_loadu_ps(target + i), factor));
    }
  }
};

struct Float64 {
  static __m256d broadcast(double factor) { return _mm256_set1_pd(factor); }
  static void scale(char* line, __m256d factor) {
    auto* target = reinterpret_cast<double*>(line);
    for (int i = 0; i < 8; i += 4) {
      _mm256_storeu_pd(target + i, _mm256_mul_pd(_mm256_loadu_pd(target + i), factor));
    }
  }
};

struct Float16 : Float32 {
  static void scale(char* line, __m256 factor) {
    auto* target = reinterpret_cast<__m128i*>(line);
    for (int i = 0; i < 4; ++i) {
      const __m256 scaled = _mm256_mul_ps(_mm256_cvtph_ps(_mm_loadu_si128(target + i)), factor);
      _mm_storeu_si128(target + i, _mm256_cvtps_ph(scaled, _MM_FROUND_TO_NEAREST_INT));
    }
  }
};

// Even and odd elements are halves of 32-bit words: no shuffle. A NaN is not looked after.
struct Bfloat16 : Float32 {
  static __m256i rounded(__m256 value) {
    const __m256i bits = _mm256_castps_si256(value);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    return _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  }
  static void scale(char* line, __m256 factor) {
    auto* target = reinterpret_cast<__m256i*>(line);
    for (int i = 0; i < 2; ++i) {
      __m256i words = _mm256_loadu_si256(target + i);
      asm("" : "+x"(words));  // otherwise GCC loads twice
      const __m256 even = _mm256_castsi256_ps(_mm256_slli_epi32(words, 16));
      const __m256 odd = _mm256_castsi256_ps(_mm256_and_si256(words, _mm256_set1_epi32(~0xffff)));
      const __m256i low = _mm256_srli_epi32(rounded(_mm256_mul_ps(even, factor)), 16);
      const __m256i high = rounded(_mm256_mul_ps(odd, factor));
      _mm256_storeu_si256(target + i, _mm256_blend_epi16(low, high, 0xaa));
    }
  }
};

struct ReadWrite : Float32 {
  static void scale(char* line, __m256) {
    auto* target = reinterpret_cast<__m256i*>(line);
    for (int i = 0; i < 2; ++i) {
      __m256i words = _mm256_loadu_si256(target + i);
      asm volatile("" : "+x"(words));
      _mm256_storeu_si256(target + i, words);
    }
  }
};

}  // namespace

Scales avx2() { return {walk<Float16>, walk<Bfloat16>, walk<Float32>, walk<Float64>, walk<ReadWrite>}; }

}  // namespace rope_bench
#endif
