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

// Keeps the compiler from folding one load into several instructions (0.78 -> 0.99 of the ceiling).
template <class R>
ROPE_INLINE R loaded(R value) {
  asm("" : "+v"(value));
  return value;
}

ROPE_INLINE __mmask16 first(int64_t n) { return static_cast<__mmask16>((1u << n) - 1); }

// Rounds floats to bfloat16 with integer arithmetic, to nearest even. A NaN is kept quiet.
struct IntegerRounding {
  static ROPE_INLINE __m256i halves(Floats a) {
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded(a), 16));
  }

  // 32 bfloat16: the second vector behind the first, or x and y in turn.
  static ROPE_INLINE __m512i words(Two<Floats> two) {
    return one_behind_other(rounded(two.first), rounded(two.second));
  }
  static ROPE_INLINE __m512i words(Pair<Floats> pair) { return in_turn(rounded(pair.x), rounded(pair.y)); }

  // One look for NaNs at all of them before they are rounded as numbers.
  template <class Pack, int n>
  static ROPE_INLINE void words(const Pack (&in)[n], __m512i (&out)[n]) {
    uint32_t nans = 0;
    for (int v = 0; v < n; ++v) nans |= nans_in(in[v]);
    if (nans == 0) [[likely]] {
      for (int v = 0; v < n; ++v) out[v] = words_of_numbers(in[v]);
    } else {
      for (int v = 0; v < n; ++v) out[v] = words(in[v]);
    }
  }

 private:
  // The result is the upper half of each lane. Not for a NaN.
  static ROPE_INLINE __m512i rounded_number(Floats a) {
    const __m512i bits = _mm512_castps_si512(a.value);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    return _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  }
  static ROPE_INLINE __m512i rounded(Floats a) {
    const __mmask16 nan = _mm512_cmp_ps_mask(a.value, a.value, _CMP_UNORD_Q);
    return _mm512_mask_or_epi32(rounded_number(a), nan, _mm512_castps_si512(a.value),
                                _mm512_set1_epi32(0x400000));
  }

  static ROPE_INLINE __m512i words_of_numbers(Two<Floats> two) {
    return one_behind_other(rounded_number(two.first), rounded_number(two.second));
  }
  static ROPE_INLINE __m512i words_of_numbers(Pair<Floats> pair) {
    return in_turn(rounded_number(pair.x), rounded_number(pair.y));
  }
  static ROPE_INLINE uint32_t nans_in(Two<Floats> two) {
    return nans_in(Pair<Floats>{two.first, two.second});
  }
  static ROPE_INLINE uint32_t nans_in(Pair<Floats> pair) {
    return _cvtmask16_u32(_mm512_cmp_ps_mask(pair.x.value, pair.y.value, _CMP_UNORD_Q));
  }

  static ROPE_INLINE __m512i one_behind_other(__m512i first, __m512i second) {
    const __m512i upper = _mm512_set_epi16(63, 61, 59, 57, 55, 53, 51, 49, 47, 45, 43, 41, 39, 37, 35, 33, 31,
                                           29, 27, 25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1);
    return _mm512_permutex2var_epi16(first, upper, second);
  }
  static ROPE_INLINE __m512i in_turn(__m512i x, __m512i y) {
    return _mm512_mask_blend_epi16(0xaaaaaaaa, _mm512_srli_epi32(x, 16), y);
  }
};

// Rounding: how floats become bfloat16: `halves` of one vector, `words` of two vectors or of a pair of them,
// and of an array of either.
template <class Rounding>
struct Avx512 {
  template <class C>
  using Vector = std::conditional_t<std::is_same_v<C, double>, Doubles, Floats>;
  template <class T>
  static constexpr bool takes_pairs_apart = true;
  template <class C>
  static constexpr bool makes_angles = std::is_same_v<C, float>;

  static ROPE_INLINE Pair<Floats> cos_sin(const TurnsRow& row, int64_t pair) {
    __m512i first = _mm512_setzero_si512(), second = first;
    for (int64_t a = 0; a < row.axes; ++a) {
      const Turns* const turns = row.turns + a * row.axis_stride + pair;
      const __m512i position = _mm512_set1_epi64(row.positions[a]);
      first = _mm512_add_epi64(first, _mm512_mullo_epi64(_mm512_loadu_si512(turns), position));
      second = _mm512_add_epi64(second, _mm512_mullo_epi64(_mm512_loadu_si512(turns + 8), position));
    }
    const __m512i odd = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
    const __m512i high = _mm512_permutex2var_epi32(first, odd, second);
    const __m512i quarter = _mm512_srli_epi32(_mm512_add_epi32(high, _mm512_set1_epi32(0x20000000)), 30);
    const __m512i rest = _mm512_sub_epi32(high, _mm512_slli_epi32(quarter, 30));
    const Floats angle = multiply(Floats{_mm512_cvtepi32_ps(rest)}, broadcast(kRadiansOfRest));
    const Pair<Floats> near = cos_sin_of_eighth(angle, [](float c) { return broadcast(c); });

    const __mmask16 swapped = _mm512_test_epi32_mask(quarter, _mm512_set1_epi32(1));
    const auto sign = [](__m512i q) {
      return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_srli_epi32(q, 1), 31));
    };
    return {{_mm512_xor_ps(_mm512_mask_blend_ps(swapped, near.x.value, near.y.value),
                           sign(_mm512_add_epi32(quarter, _mm512_set1_epi32(1))))},
            {_mm512_xor_ps(_mm512_mask_blend_ps(swapped, near.y.value, near.x.value), sign(quarter))}};
  }

  static ROPE_INLINE Floats broadcast(float value) { return {_mm512_set1_ps(value)}; }
  static ROPE_INLINE Doubles broadcast(double value) { return {_mm512_set1_pd(value)}; }

  static ROPE_INLINE Floats load(const float* p) { return {_mm512_loadu_ps(p)}; }
  static ROPE_INLINE Doubles load(const double* p) { return {_mm512_loadu_pd(p)}; }
  static ROPE_INLINE Floats load(const float16* p) {
    return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
  }
  static ROPE_INLINE Floats load(const bfloat16* p) {
    return widened(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static ROPE_INLINE void store(float* p, Floats a) { _mm512_storeu_ps(p, a.value); }
  static ROPE_INLINE void store(double* p, Doubles a) { _mm512_storeu_pd(p, a.value); }
  static ROPE_INLINE void store(float16* p, Floats a) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), float16_halves(a));
  }
  static ROPE_INLINE void store(bfloat16* p, Floats a) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), Rounding::halves(a));
  }

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
    _mm256_mask_storeu_epi16(p, first(n), Rounding::halves(a));
  }

  template <class T>
  static ROPE_INLINE auto load_two(const T* p) {
    if constexpr (std::is_same_v<T, bfloat16>) {
      // One shuffle brings 16 elements into the upper halves of their lanes, and zeros into the lower.
      const __m512i low = _mm512_set_epi16(15, 0, 14, 0, 13, 0, 12, 0, 11, 0, 10, 0, 9, 0, 8, 0, 7, 0, 6, 0,
                                           5, 0, 4, 0, 3, 0, 2, 0, 1, 0, 0, 0);
      const __m512i words = loaded(_mm512_loadu_si512(p));
      const __m512i high = _mm512_or_si512(low, _mm512_set1_epi16(16));
      return Two<Floats>{{_mm512_castsi512_ps(_mm512_maskz_permutexvar_epi16(kUpper, low, words))},
                         {_mm512_castsi512_ps(_mm512_maskz_permutexvar_epi16(kUpper, high, words))}};
    } else {
      return Two<Vector<Compute<T>>>{load(p), load(p + Vector<Compute<T>>::lanes)};
    }
  }
  template <class T, class C>
  static ROPE_INLINE auto load_two_angles(const C* p) {
    return load_two(p);
  }
  template <class T, class V, int n>
  static ROPE_INLINE void store_twos(T* const (&targets)[n], const Two<V> (&packs)[n]) {
    if constexpr (std::is_same_v<T, bfloat16>) {
      __m512i words[n];
      Rounding::words(packs, words);
      for (int v = 0; v < n; ++v) _mm512_storeu_si512(targets[v], words[v]);
    } else {
      for (int v = 0; v < n; ++v) store_two(targets[v], packs[v]);
    }
  }

  static ROPE_INLINE Pair<Floats> load_pairs(const bfloat16* p) {
    return apart(loaded(_mm512_loadu_si512(p)));
  }
  static ROPE_INLINE Pair<Floats> load_pairs(const bfloat16* p, int64_t n) {
    return apart(_mm512_maskz_loadu_epi32(first(n), p));
  }
  static ROPE_INLINE void store_pairs(bfloat16* p, Pair<Floats> pair, int64_t n) {
    const Pair<Floats> in[] = {pair};
    __m512i out[1];
    Rounding::words(in, out);
    _mm512_mask_storeu_epi32(p, first(n), out[0]);
  }

  // The other types come apart with a shuffle a vector, and go together with another.
  template <class T>
  static ROPE_INLINE auto load_pairs(const T* p) {
    return apart(load_two(p));
  }
  template <class T>
  static ROPE_INLINE auto load_pairs(const T* p, int64_t n) {
    constexpr int64_t lanes = Vector<Compute<T>>::lanes;
    const int64_t low = 2 * n < lanes ? 2 * n : lanes;
    return apart(Two<Vector<Compute<T>>>{load(p, low), load(p + lanes, 2 * n - low)});
  }
  template <class T, class V>
  static ROPE_INLINE void store_pairs(T* p, Pair<V> pair, int64_t n) {
    const int64_t low = 2 * n < V::lanes ? 2 * n : V::lanes;
    const Two<V> two = together(pair);
    store(p, two.first, low);
    store(p + V::lanes, two.second, 2 * n - low);
  }
  template <class T, class V, int n>
  static ROPE_INLINE void store_many_pairs(T* p, const Pair<V> (&pairs)[n]) {
    if constexpr (std::is_same_v<T, bfloat16>) {
      __m512i words[n];
      Rounding::words(pairs, words);
      for (int v = 0; v < n; ++v) _mm512_storeu_si512(p + 32 * v, words[v]);
    } else {
      for (int v = 0; v < n; ++v) store_two(p + 2 * v * V::lanes, together(pairs[v]));
    }
  }

 private:
  static constexpr __mmask32 kUpper = 0xaaaaaaaa;  // the upper half of every 32-bit lane

  template <class T, class V>
  static ROPE_INLINE void store_two(T* p, Two<V> two) {
    store(p, two.first);
    store(p + V::lanes, two.second);
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
  static ROPE_INLINE Pair<Floats> apart(Two<Floats> two) {
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i odd = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
    return {{_mm512_permutex2var_ps(two.first.value, even, two.second.value)},
            {_mm512_permutex2var_ps(two.first.value, odd, two.second.value)}};
  }
  static ROPE_INLINE Pair<Doubles> apart(Two<Doubles> two) {
    const __m512i even = _mm512_setr_epi64(0, 2, 4, 6, 8, 10, 12, 14);
    const __m512i odd = _mm512_setr_epi64(1, 3, 5, 7, 9, 11, 13, 15);
    return {{_mm512_permutex2var_pd(two.first.value, even, two.second.value)},
            {_mm512_permutex2var_pd(two.first.value, odd, two.second.value)}};
  }
  static ROPE_INLINE Two<Floats> together(Pair<Floats> pair) {
    const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const __m512i high = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    return {{_mm512_permutex2var_ps(pair.x.value, low, pair.y.value)},
            {_mm512_permutex2var_ps(pair.x.value, high, pair.y.value)}};
  }
  static ROPE_INLINE Two<Doubles> together(Pair<Doubles> pair) {
    const __m512i low = _mm512_setr_epi64(0, 8, 1, 9, 2, 10, 3, 11);
    const __m512i high = _mm512_setr_epi64(4, 12, 5, 13, 6, 14, 7, 15);
    return {{_mm512_permutex2var_pd(pair.x.value, low, pair.y.value)},
            {_mm512_permutex2var_pd(pair.x.value, high, pair.y.value)}};
  }
};

}  // namespace
}  // namespace rope_ext::cpu
