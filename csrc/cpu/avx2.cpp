// AVX2 with FMA and F16C: eight floats or four doubles.
#include "x86.h"

#if defined(ROPE_X86)

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#endif

#include "kernel.h"

namespace rope_ext::cpu {
namespace {

struct Floats {
  __m256 value;
  static constexpr int64_t lanes = 8;
};
struct Doubles {
  __m256d value;
  static constexpr int64_t lanes = 4;
};

ROPE_INLINE Floats multiply(Floats a, Floats b) { return {_mm256_mul_ps(a.value, b.value)}; }
ROPE_INLINE Doubles multiply(Doubles a, Doubles b) { return {_mm256_mul_pd(a.value, b.value)}; }
ROPE_INLINE Floats fma(Floats a, Floats b, Floats c) { return {_mm256_fmadd_ps(a.value, b.value, c.value)}; }
ROPE_INLINE Doubles fma(Doubles a, Doubles b, Doubles c) {
  return {_mm256_fmadd_pd(a.value, b.value, c.value)};
}
ROPE_INLINE Floats fms(Floats a, Floats b, Floats c) { return {_mm256_fmsub_ps(a.value, b.value, c.value)}; }
ROPE_INLINE Doubles fms(Doubles a, Doubles b, Doubles c) {
  return {_mm256_fmsub_pd(a.value, b.value, c.value)};
}
ROPE_INLINE Floats swap_pairs(Floats a) { return {_mm256_permute_ps(a.value, 0b10110001)}; }
ROPE_INLINE Doubles swap_pairs(Doubles a) { return {_mm256_permute_pd(a.value, 0b0101)}; }

// Keeps the compiler from folding one load into several instructions (0.78 -> 0.99 of the ceiling).
template <class R>
ROPE_INLINE R loaded(R value) {
  asm("" : "+x"(value));
  return value;
}

// All ones in the first n of the lanes.
ROPE_INLINE __m256i first_floats(int64_t n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)),
                            _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
ROPE_INLINE __m256i first_doubles(int64_t n) {
  return _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_setr_epi64x(0, 1, 2, 3));
}

// To bfloat16, to nearest even, left in the upper half of each lane. Not for a NaN.
ROPE_INLINE __m256i rounded_number(Floats a) {
  const __m256i bits = _mm256_castps_si256(a.value);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  return _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
}

// The same, and a NaN is kept quiet.
ROPE_INLINE __m256i rounded(Floats a) {
  const __m256i quiet = _mm256_or_si256(_mm256_castps_si256(a.value), _mm256_set1_epi32(0x400000));
  const __m256 nan = _mm256_cmp_ps(a.value, a.value, _CMP_UNORD_Q);
  return _mm256_blendv_epi8(rounded_number(a), quiet, _mm256_castps_si256(nan));
}

// Words of two bfloat16: x from the upper halves into the lower ones, y stays.
ROPE_INLINE __m256i together(__m256i x, __m256i y) {
  return _mm256_blend_epi16(_mm256_srli_epi32(x, 16), y, 0b10101010);
}

// One look for NaNs at all pairs before they are rounded as numbers (in cache 12.1 to 10.5 us).
template <int n>
ROPE_INLINE void words_of(const Pair<Floats> (&pairs)[n], __m256i (&words)[n]) {
  __m256 nan = _mm256_setzero_ps();
  for (int v = 0; v < n; ++v)
    nan = _mm256_or_ps(nan, _mm256_cmp_ps(pairs[v].x.value, pairs[v].y.value, _CMP_UNORD_Q));
  if (_mm256_movemask_ps(nan) == 0) [[likely]] {
    for (int v = 0; v < n; ++v) words[v] = together(rounded_number(pairs[v].x), rounded_number(pairs[v].y));
  } else {
    for (int v = 0; v < n; ++v) words[v] = together(rounded(pairs[v].x), rounded(pairs[v].y));
  }
}

// Products of four turns and one position, modulo 2^64, from 32-bit ones.
ROPE_INLINE __m256i multiply_turns(const Turns* turns, __m256i position) {
  const __m256i t = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(turns));
  const __m256i cross = _mm256_add_epi64(_mm256_mul_epu32(_mm256_srli_epi64(t, 32), position),
                                         _mm256_mul_epu32(t, _mm256_srli_epi64(position, 32)));
  return _mm256_add_epi64(_mm256_mul_epu32(t, position), _mm256_slli_epi64(cross, 32));
}

struct Avx2 {
  template <class C>
  using Vector = std::conditional_t<std::is_same_v<C, double>, Doubles, Floats>;
  template <class T>
  static constexpr bool takes_pairs_apart = std::is_same_v<T, bfloat16>;
  template <class C>
  static constexpr bool makes_angles = std::is_same_v<C, float>;

  static ROPE_INLINE Pair<Floats> cos_sin(const TurnsRow& row, int64_t pair) {
    __m256i first = _mm256_setzero_si256(), second = first;
    for (int64_t a = 0; a < row.axes; ++a) {
      const Turns* const turns = row.turns + a * row.axis_stride + pair;
      const __m256i position = _mm256_set1_epi64x(row.positions[a]);
      first = _mm256_add_epi64(first, multiply_turns(turns, position));
      second = _mm256_add_epi64(second, multiply_turns(turns + 4, position));
    }
    const __m256 upper =
        _mm256_shuffle_ps(_mm256_castsi256_ps(first), _mm256_castsi256_ps(second), 0b11011101);
    const __m256i high = _mm256_permute4x64_epi64(_mm256_castps_si256(upper), 0b11011000);
    const __m256i quarter = _mm256_srli_epi32(_mm256_add_epi32(high, _mm256_set1_epi32(0x20000000)), 30);
    const __m256i rest = _mm256_sub_epi32(high, _mm256_slli_epi32(quarter, 30));
    const Floats angle = multiply(Floats{_mm256_cvtepi32_ps(rest)}, broadcast(kRadiansOfRest));
    const Pair<Floats> near = cos_sin_of_eighth(angle, [](float c) { return broadcast(c); });

    const __m256 swapped = _mm256_castsi256_ps(_mm256_slli_epi32(quarter, 31));
    const auto sign = [](__m256i q) {
      return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_srli_epi32(q, 1), 31));
    };
    return {{_mm256_xor_ps(_mm256_blendv_ps(near.x.value, near.y.value, swapped),
                           sign(_mm256_add_epi32(quarter, _mm256_set1_epi32(1))))},
            {_mm256_xor_ps(_mm256_blendv_ps(near.y.value, near.x.value, swapped), sign(quarter))}};
  }

  static ROPE_INLINE Floats broadcast(float value) { return {_mm256_set1_ps(value)}; }
  static ROPE_INLINE Doubles broadcast(double value) { return {_mm256_set1_pd(value)}; }

  static ROPE_INLINE Floats load(const float* p) { return {loaded(_mm256_loadu_ps(p))}; }
  static ROPE_INLINE Doubles load(const double* p) { return {loaded(_mm256_loadu_pd(p))}; }
  static ROPE_INLINE Floats load(const float16* p) { return {_mm256_cvtph_ps(halves(p))}; }
  static ROPE_INLINE Floats load(const bfloat16* p) {
    return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves(p)), 16))};
  }
  static ROPE_INLINE void store(float* p, Floats a) { _mm256_storeu_ps(p, a.value); }
  static ROPE_INLINE void store(double* p, Doubles a) { _mm256_storeu_pd(p, a.value); }
  static ROPE_INLINE void store(float16* p, Floats a) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(a.value, _MM_FROUND_TO_NEAREST_INT));
  }
  static ROPE_INLINE void store(bfloat16* p, Floats a) {
    const __m256i words = _mm256_srli_epi32(rounded(a), 16);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                     _mm_packus_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
  }

  static ROPE_INLINE Floats load(const float* p, int64_t n) {
    return {_mm256_maskload_ps(p, first_floats(n))};
  }
  static ROPE_INLINE Doubles load(const double* p, int64_t n) {
    return {_mm256_maskload_pd(p, first_doubles(n))};
  }
  static ROPE_INLINE void store(float* p, Floats a, int64_t n) {
    _mm256_maskstore_ps(p, first_floats(n), a.value);
  }
  static ROPE_INLINE void store(double* p, Doubles a, int64_t n) {
    _mm256_maskstore_pd(p, first_doubles(n), a.value);
  }

  // There are no masks for 16 bits: the first n go through a buffer.
  template <class T>
  static ROPE_INLINE Floats load(const T* p, int64_t n) {
    T buffer[Floats::lanes] = {};
    for (int64_t i = 0; i < n; ++i) buffer[i] = p[i];
    return load(buffer);
  }
  template <class T>
  static ROPE_INLINE void store(T* p, Floats a, int64_t n) {
    T buffer[Floats::lanes];
    store(buffer, a);
    for (int64_t i = 0; i < n; ++i) p[i] = buffer[i];
  }

  // Two vectors of bfloat16 are one of words, the even elements their lower halves, the odd their upper:
  // each becomes a float with a shift or a mask. Interleaved, that is x and y.
  template <class T>
  static ROPE_INLINE auto load_two(const T* p) {
    if constexpr (std::is_same_v<T, bfloat16>) {
      const Pair<Floats> words = load_pairs(p);
      return Two<Floats>{words.x, words.y};
    } else {
      return Two<Vector<Compute<T>>>{load(p), load(p + Vector<Compute<T>>::lanes)};
    }
  }
  template <class T, class V, int n>
  static ROPE_INLINE void store_twos(T* const (&targets)[n], const Two<V> (&packs)[n]) {
    if constexpr (std::is_same_v<T, bfloat16>) {
      Pair<Floats> pairs[n];
      __m256i words[n];
      for (int v = 0; v < n; ++v) pairs[v] = {packs[v].first, packs[v].second};
      words_of(pairs, words);
      for (int v = 0; v < n; ++v) store_words(targets[v], words[v]);
    } else {
      for (int v = 0; v < n; ++v) {
        store(targets[v], packs[v].first);
        store(targets[v] + V::lanes, packs[v].second);
      }
    }
  }
  template <class T, class C>
  static ROPE_INLINE auto load_two_angles(const C* p) {
    if constexpr (std::is_same_v<T, bfloat16>) {
      const __m256 low = _mm256_loadu_ps(p), high = _mm256_loadu_ps(p + 8);
      return Two<Floats>{in_order(_mm256_shuffle_ps(low, high, 0b10001000)),
                         in_order(_mm256_shuffle_ps(low, high, 0b11011101))};
    } else {
      return load_two(p);
    }
  }

  static ROPE_INLINE Pair<Floats> load_pairs(const bfloat16* p) {
    return apart(loaded(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
  }
  static ROPE_INLINE Pair<Floats> load_pairs(const bfloat16* p, int64_t n) {
    return apart(_mm256_maskload_epi32(reinterpret_cast<const int*>(p), first_floats(n)));
  }
  template <int n>
  static ROPE_INLINE void store_many_pairs(bfloat16* p, const Pair<Floats> (&pairs)[n]) {
    __m256i words[n];
    words_of(pairs, words);
    for (int v = 0; v < n; ++v) store_words(p + 16 * v, words[v]);
  }
  static ROPE_INLINE void store_pairs(bfloat16* p, Pair<Floats> pair, int64_t n) {
    _mm256_maskstore_epi32(reinterpret_cast<int*>(p), first_floats(n),
                           together(rounded(pair.x), rounded(pair.y)));
  }

  // The other types keep their pairs, which meet every angle twice.
  static ROPE_INLINE Two<Floats> doubled(Floats a) {
    return {{_mm256_permutevar8x32_ps(a.value, _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3))},
            {_mm256_permutevar8x32_ps(a.value, _mm256_setr_epi32(4, 4, 5, 5, 6, 6, 7, 7))}};
  }
  static ROPE_INLINE Two<Doubles> doubled(Doubles a) {
    return {{_mm256_permute4x64_pd(a.value, 0b01010000)}, {_mm256_permute4x64_pd(a.value, 0b11111010)}};
  }
  static ROPE_INLINE Two<Floats> doubled_with_signs(Floats a) {
    const Floats signs{_mm256_setr_ps(-1, 1, -1, 1, -1, 1, -1, 1)};
    const Two<Floats> two = doubled(a);
    return {multiply(two.first, signs), multiply(two.second, signs)};
  }
  static ROPE_INLINE Two<Doubles> doubled_with_signs(Doubles a) {
    const Doubles signs{_mm256_setr_pd(-1, 1, -1, 1)};
    const Two<Doubles> two = doubled(a);
    return {multiply(two.first, signs), multiply(two.second, signs)};
  }

 private:
  // A shuffle works within 128 bits: its quarters come as 0 2 1 3.
  static ROPE_INLINE Floats in_order(__m256 a) {
    return {_mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(a), 0b11011000))};
  }
  static ROPE_INLINE void store_words(bfloat16* p, __m256i words) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), words);
  }
  template <class T>
  static ROPE_INLINE __m128i halves(const T* p) {
    return loaded(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static ROPE_INLINE Pair<Floats> apart(__m256i words) {
    return {{_mm256_castsi256_ps(_mm256_slli_epi32(words, 16))},
            {_mm256_castsi256_ps(_mm256_and_si256(words, _mm256_set1_epi32(static_cast<int>(0xffff0000))))}};
  }
};

}  // namespace

constexpr Kernels avx2_kernels = kernels_of<Avx2>();

}  // namespace rope_ext::cpu

#if defined(__clang__)
#pragma clang attribute pop
#endif

#endif
