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

ROPE_INLINE double to_compute(double value) { return value; }
ROPE_INLINE float to_compute(float value) { return value; }
ROPE_INLINE float to_compute(bfloat16 value) { return float_of(uint32_t{value.bits} << 16); }

ROPE_INLINE float to_compute(float16 value) {
  const uint32_t sign = (value.bits & 0x8000u) << 16;
  const uint32_t magnitude = value.bits & 0x7fffu;
  if (magnitude >= 0x7c00u) return float_of(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
  if (magnitude >= 0x0400u) return float_of(sign | ((magnitude << 13) + (112u << 23)));
  // A subnormal is an integer count of 2^-24, which float32 holds exactly.
  return float_of(sign | bits_of(static_cast<float>(magnitude) * 0x1p-24f));
}

ROPE_INLINE void store(double* target, double value) { *target = value; }
ROPE_INLINE void store(float* target, float value) { *target = value; }

// To nearest, ties to even; a NaN stays one: truncated and quiet.
ROPE_INLINE void store(bfloat16* target, float value) {
  const uint32_t bits = bits_of(value);
  const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  const uint32_t rounded = bits + 0x7fffu + (bits >> 16 & 1u);
  target->bits = static_cast<uint16_t>(nan ? bits >> 16 | 0x40u : rounded >> 16);
}

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

}  // namespace rope_ext
