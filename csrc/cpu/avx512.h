// AVX-512 (F, BW, DQ, VL): sixteen floats or eight doubles. Included below the target pragma of a
// source that compiles it.
#pragma once

// GCC 12 takes its own _mm512_undefined_*() for a mistake (PR 105593).
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#include "kernel.h"

namespace rope_ext::cpu {
namespace {

struct Floats {
  __m512 value;
  static constexpr int64_t lanes = 16;
};
struct Doubles {
  __m512d value;
  static constexpr int64_t lanes = 8;
};

ROPE_INLINE Floats multiply(Floats a, Floats b) { return {_mm512_mul_ps(a.value, b.value)}; }
ROPE_INLINE Doubles multiply(Doubles a, Doubles b) { return {_mm512_mul_pd(a.value, b.value)}; }
ROPE_INLINE Floats fma(Floats a, Floats b, Floats c) { return {_mm512_fmadd_ps(a.value, b.value, c.value)}; }
ROPE_INLINE Doubles fma(Doubles a, Doubles b, Doubles c) {
  return {_mm512_fmadd_pd(a.value, b.value, c.value)};
}
ROPE_INLINE Floats fms(Floats a, Floats b, Floats c) { return {_mm512_fmsub_ps(a.value, b.value, c.value)}; }
ROPE_INLINE Doubles fms(Doubles a, Doubles b, Doubles c) {
  return {_mm512_fmsub_pd(a.value, b.value, c.value)};
}
ROPE_INLINE Floats swap_pairs(Floats a) { return {_mm512_permute_ps(a.value, 0b10110001)}; }
ROPE_INLINE Doubles swap_pairs(Doubles a) { return {_mm512_permute_pd(a.value, 0b01010101)}; }

// Keeps the compiler from folding one load into several instructions (0.78 -> 0.99 of the ceiling).
template <class R>
ROPE_INLINE R loaded(R value) {
  asm("" : "+v"(value));
  return value;
}

ROPE_INLINE __mmask16 first(int64_t n) { return static_cast<__mmask16>((1u << n) - 1); }

// To bfloat16, to nearest even, left in the upper half of each lane; a NaN is kept quiet.
ROPE_INLINE __m512i rounded_words(Floats a) {
  const __m512i bits = _mm512_castps_si512(a.value);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __mmask16 nan = _mm512_cmp_ps_mask(a.value, a.value, _CMP_UNORD_Q);
  return _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x400000));
}

ROPE_INLINE __m256i rounded_halves(Floats a) {
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded_words(a), 16));
}

struct Avx512 {
  template <class C>
  using Vector = std::conditional_t<std::is_same_v<C, double>, Doubles, Floats>;
  static constexpr bool vectorized = true;
  template <class T>
  static constexpr bool takes_pairs_apart = std::is_same_v<T, bfloat16>;

  static ROPE_INLINE void prefetch(const char* address) { _mm_prefetch(address, _MM_HINT_T0); }

  static ROPE_INLINE Floats load(const float* p) { return {loaded(_mm512_loadu_ps(p))}; }
  static ROPE_INLINE Doubles load(const double* p) { return {loaded(_mm512_loadu_pd(p))}; }
  static ROPE_INLINE Floats load(const float16* p) { return {_mm512_cvtph_ps(halves(p))}; }
  static ROPE_INLINE Floats load(const bfloat16* p) { return widened(halves(p)); }
  static ROPE_INLINE void store(float* p, Floats a) { _mm512_storeu_ps(p, a.value); }
  static ROPE_INLINE void store(double* p, Doubles a) { _mm512_storeu_pd(p, a.value); }
  static ROPE_INLINE void store(float16* p, Floats a) { put(p, float16_halves(a)); }
  static ROPE_INLINE void store(bfloat16* p, Floats a) { put(p, rounded_halves(a)); }

  static ROPE_INLINE Floats load(const float* p, int64_t n) { return {_mm512_maskz_loadu_ps(first(n), p)}; }
  static ROPE_INLINE Doubles load(const double* p, int64_t n) {
    return {_mm512_maskz_loadu_pd(static_cast<__mmask8>(first(n)), p)};
  }
  static ROPE_INLINE Floats load(const float16* p, int64_t n) {
    return {_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first(n), p))};
  }
  static ROPE_INLINE Floats load(const bfloat16* p, int64_t n) {
    return widened(_mm256_maskz_loadu_epi16(first(n), p));
  }
  static ROPE_INLINE void store(float* p, Floats a, int64_t n) {
    _mm512_mask_storeu_ps(p, first(n), a.value);
  }
  static ROPE_INLINE void store(double* p, Doubles a, int64_t n) {
    _mm512_mask_storeu_pd(p, static_cast<__mmask8>(first(n)), a.value);
  }
  static ROPE_INLINE void store(float16* p, Floats a, int64_t n) {
    _mm256_mask_storeu_epi16(p, first(n), float16_halves(a));
  }
  static ROPE_INLINE void store(bfloat16* p, Floats a, int64_t n) {
    _mm256_mask_storeu_epi16(p, first(n), rounded_halves(a));
  }

  // A pair of bfloat16 is one word: x its lower half, y its upper, each a float with a shift or a mask.
  static ROPE_INLINE Pair<Floats> load_pairs(const bfloat16* p) {
    return apart(loaded(_mm512_loadu_si512(p)));
  }
  static ROPE_INLINE Pair<Floats> load_pairs(const bfloat16* p, int64_t n) {
    return apart(_mm512_maskz_loadu_epi32(first(n), p));
  }
  static ROPE_INLINE void store_pairs(bfloat16* p, Pair<Floats> pair) {
    _mm512_storeu_si512(p, together(pair));
  }
  static ROPE_INLINE void store_pairs(bfloat16* p, Pair<Floats> pair, int64_t n) {
    _mm512_mask_storeu_epi32(p, first(n), together(pair));
  }

 protected:
  template <class T>
  static ROPE_INLINE void put(T* p, __m256i halves) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), halves);
  }

 private:
  template <class T>
  static ROPE_INLINE __m256i halves(const T* p) {
    return loaded(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static ROPE_INLINE Floats widened(__m256i halves) {
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16))};
  }
  static ROPE_INLINE __m256i float16_halves(Floats a) {
    return _mm512_cvtps_ph(a.value, _MM_FROUND_TO_NEAREST_INT);
  }
  static ROPE_INLINE Pair<Floats> apart(__m512i words) {
    return {{_mm512_castsi512_ps(_mm512_slli_epi32(words, 16))},
            {_mm512_castsi512_ps(_mm512_and_si512(words, _mm512_set1_epi32(static_cast<int>(0xffff0000))))}};
  }
  static ROPE_INLINE __m512i together(Pair<Floats> pair) {
    return _mm512_mask_blend_epi16(0xaaaaaaaa, _mm512_srli_epi32(rounded_words(pair.x), 16),
                                   rounded_words(pair.y));
  }
};

}  // namespace
}  // namespace rope_ext::cpu
