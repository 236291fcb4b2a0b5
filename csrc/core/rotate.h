// One pair, turned: the one definition of the rotation.
#pragma once

#include <cmath>

#if defined(__CUDACC__)
#define ROPE_INLINE __host__ __device__ __forceinline__
#elif defined(_MSC_VER)
#define ROPE_INLINE __forceinline
#else
// Always inlined: each instruction set compiles its own copy, and the linker must not merge them.
#define ROPE_INLINE inline __attribute__((always_inline))
#endif

namespace rope_ext {

#if defined(__CUDA_ARCH__)
// Named roundings, which nvcc does not contract.
ROPE_INLINE float multiply(float a, float b) { return __fmul_rn(a, b); }
ROPE_INLINE double multiply(double a, double b) { return __dmul_rn(a, b); }
ROPE_INLINE float fma(float a, float b, float c) { return __fmaf_rn(a, b, c); }
ROPE_INLINE double fma(double a, double b, double c) { return __fma_rn(a, b, c); }
#else
ROPE_INLINE float multiply(float a, float b) { return a * b; }
ROPE_INLINE double multiply(double a, double b) { return a * b; }
#if defined(__GNUC__)
ROPE_INLINE float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
ROPE_INLINE double fma(double a, double b, double c) { return __builtin_fma(a, b, c); }
#else
ROPE_INLINE float fma(float a, float b, float c) { return std::fma(a, b, c); }
ROPE_INLINE double fma(double a, double b, double c) { return std::fma(a, b, c); }
#endif
#endif
ROPE_INLINE float fms(float a, float b, float c) { return fma(a, b, -c); }
ROPE_INLINE double fms(double a, double b, double c) { return fma(a, b, -c); }

// V is float, double or a vector of them; multiply, fma (a * b + c) and fms (a * b - c) round once.
template <class V>
struct Pair {
  V x, y;
};

// The order of roundings is part of the contract: the sine product is rounded, the cosine product is
// fused with it. Every kernel on every device gives these bits.
template <class V>
ROPE_INLINE Pair<V> rotate(Pair<V> pair, V cos, V sin) {
  return {fms(pair.x, cos, multiply(pair.y, sin)), fma(pair.y, cos, multiply(pair.x, sin))};
}

// The same bits for interleaved pairs (x0 y0 x1 y1 ...) without taking them apart: cos holds every
// cosine twice, signed_sin holds (-sin, sin), and negation is exact.
template <class V>
ROPE_INLINE V rotate_interleaved(V pairs, V cos, V signed_sin) {
  return fma(pairs, cos, multiply(swap_pairs(pairs), signed_sin));
}

}  // namespace rope_ext
