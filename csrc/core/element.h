// Storage types, their compute types, and the rounding between them.
#pragma once

#include <cstdint>
#include <cstring>

#include "rotate.h"

namespace rope_ext {

enum class Element : uint8_t { float16, bfloat16, float32, float64 };

struct float16 {
  uint16_t bits;
};
struct bfloat16 {
  uint16_t bits;
};

template <class T>
struct ComputeType {
  using type = float;
};
template <>
struct ComputeType<double> {
  using type = double;
};
template <class T>
using Compute = typename ComputeType<T>::type;

constexpr int64_t bytes_of(Element element) {
  return element == Element::float64 ? 8 : element == Element::float32 ? 4 : 2;
}

// The one visit from an element known at run time to a type known at compile time.
template <class Visitor>
ROPE_INLINE auto visit(Element element, Visitor&& visitor) {
  switch (element) {
    case Element::float16: return visitor(float16{});
    case Element::bfloat16: return visitor(bfloat16{});
    case Element::float32: return visitor(float{});
    default: return visitor(double{});
  }
}

ROPE_INLINE uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

ROPE_INLINE float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

ROPE_INLINE uint64_t bits_of(double value) {
  uint64_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

ROPE_INLINE double to_compute(double value) { return value; }
ROPE_INLINE float to_compute(float value) { return value; }
ROPE_INLINE float to_compute(bfloat16 value) { return float_of(uint32_t{value.bits} << 16); }

// A GPU's own conversions give the bits of the portable ones, but for a NaN, which has one form there.
#if defined(__CUDA_ARCH__)
ROPE_INLINE float to_compute(float16 value) {
  float result;
  asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(value.bits));
  return result;
}
#else
ROPE_INLINE float to_compute(float16 value) {
  const uint32_t sign = (value.bits & 0x8000u) << 16;
  const uint32_t magnitude = value.bits & 0x7fffu;
  if (magnitude >= 0x7c00u) return float_of(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
  if (magnitude >= 0x0400u) return float_of(sign | ((magnitude << 13) + (112u << 23)));
  // A subnormal is an integer count of 2^-24, which float32 holds exactly.
  return float_of(sign | bits_of(static_cast<float>(magnitude) * 0x1p-24f));
}
#endif

// A float64 to nearest, ties to even, without its arithmetic, which most GPUs have little of, and without a
// branch.
ROPE_INLINE float narrow(double value) {
  const uint64_t bits = bits_of(value), magnitude = bits & 0x7fffffffffffffffu;
  const uint32_t sign = static_cast<uint32_t>(bits >> 32) & 0x80000000u;
  const int exponent = static_cast<int>(magnitude >> 52);
  // Below 2^-126 a float32 counts in steps of 2^-149.
  const bool normal = exponent >= 1023 - 126;
  const uint64_t significand =
      normal ? magnitude - (uint64_t{1023 - 127} << 52) : (magnitude & 0xfffffffffffffu) | uint64_t{1} << 52;
  const int dropped = normal ? 29 : exponent < 1023 - 150 ? 63 : 29 + 1023 - 126 - exponent;
  const uint64_t half = (uint64_t{1} << (dropped - 1)) - 1 + (significand >> dropped & 1);
  const uint32_t rounded = static_cast<uint32_t>((significand + half) >> dropped);
  const uint32_t finite = magnitude < 0x47effffff0000000u ? rounded : 0x7f800000u;
  const uint32_t nan = 0x7fc00000u | (static_cast<uint32_t>(magnitude >> 29) & 0x3fffffu);
  return float_of(sign | (magnitude > 0x7ff0000000000000u ? nan : finite));
}

ROPE_INLINE void store(double* target, double value) { *target = value; }
ROPE_INLINE void store(float* target, float value) { *target = value; }

// To nearest, ties to even; a NaN stays one: truncated and quiet.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
ROPE_INLINE void store(bfloat16* target, float value) {
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(target->bits) : "f"(value));
}
#else
ROPE_INLINE void store(bfloat16* target, float value) {
  const uint32_t bits = bits_of(value);
  const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  const uint32_t rounded = bits + 0x7fffu + (bits >> 16 & 1u);
  target->bits = static_cast<uint16_t>(nan ? bits >> 16 | 0x40u : rounded >> 16);
}
#endif

#if defined(__CUDA_ARCH__)
ROPE_INLINE void store(float16* target, float value) {
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(target->bits) : "f"(value));
}
#else
ROPE_INLINE void store(float16* target, float value) {
  const uint32_t bits = bits_of(value);
  const uint32_t sign = bits >> 16 & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  uint32_t result;
  if (magnitude > 0x7f800000u) {
    result = 0x7e00u | (magnitude >> 13 & 0x3ffu);
  } else if (magnitude >= 0x477ff000u) {  // 65520, halfway from the largest finite value to 2^16
    result = 0x7c00u;
  } else if (magnitude >= 0x38800000u) {  // 2^-14, the smallest normal
    const uint32_t rounded = magnitude + 0xfffu + (magnitude >> 13 & 1u);
    result = (rounded - (112u << 23)) >> 13;
  } else {
    // Adding 0.5 leaves the multiple of 2^-24 in the low bits, rounded by the addition itself.
    result = bits_of(float_of(magnitude) + 0.5f) - 0x3f000000u;
  }
  target->bits = static_cast<uint16_t>(sign | result);
}
#endif

}  // namespace rope_ext
