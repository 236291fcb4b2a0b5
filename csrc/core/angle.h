// An angle as a fraction of a turn, exact at any position, and its cosine and sine: the one definition.
//
// 2^64 is one turn. A frequency of an integer position is rounded once, to 2^-64 turns; its product with the
// position wraps where the angle does, and so do sums over axes. The product with a floating position is
// exact before it is rounded.
#pragma once

#include <cstdint>

#include "element.h"
#include "rotate.h"
#include "wide.h"

namespace rope_ext {

using Turns = uint64_t;

// A floating number as it is: significand * 2^exponent.
struct Exact {
  uint64_t significand;
  int exponent;
  bool negative, finite;
};

ROPE_INLINE Exact exact(double value) {
  const uint64_t bits = bits_of(value), fraction = bits & 0xfffffffffffffu;
  const int exponent = static_cast<int>(bits >> 52 & 0x7ff);
  return {exponent == 0 ? fraction : fraction | uint64_t{1} << 52, (exponent == 0 ? 1 : exponent) - 1075,
          bits >> 63 != 0, exponent != 0x7ff};
}

ROPE_INLINE Exact exact(float value) {
  const uint32_t bits = bits_of(value), fraction = bits & 0x7fffffu;
  const int exponent = static_cast<int>(bits >> 23 & 0xff);
  return {exponent == 0 ? fraction : fraction | uint32_t{1} << 23, (exponent == 0 ? 1 : exponent) - 150,
          bits >> 31 != 0, exponent != 0xff};
}

// The bits of 1 / (2 pi) behind the binary point, with as many zeros before as a window is wide: enough for
// every product of two float64.
inline constexpr int kZeroWords = 4;
#if defined(__CUDACC__)
static __constant__
#else
inline constexpr
#endif
    uint64_t kTurnsOfRadian[] = {0,
                                 0,
                                 0,
                                 0,
                                 0x28be60db9391054a,
                                 0x7f09d5f47d4d3770,
                                 0x36d8a5664f10e410,
                                 0x7f9458eaf7aef158,
                                 0x6dc91b8e909374b8,
                                 0x01924bba82746487,
                                 0x3f877ac72c4a69cf,
                                 0xba208d7d4baed121,
                                 0x3a671c09ad17df90,
                                 0x4e64758e60d4ce7d,
                                 0x272117e2ef7e4a0e,
                                 0xc7fe25fff7816603,
                                 0xfbcbc462d6829b47,
                                 0xdb4d9fb3c9f2c26d,
                                 0xd3d18fd9a797fa8b,
                                 0x5d49eeb1faf97c5e,
                                 0xcf41ce7de294a4ba,
                                 0x9afed7ec47e35742,
                                 0x1580cc11bf1edaea,
                                 0xfc33ef0826bd0d87,
                                 0x6a78e45857b986c2,
                                 0x19666157c5281a10,
                                 0x237ff620135cc9cc,
                                 0x41818555b29cea32,
                                 0x58389ef0231ad1f1,
                                 0x0670d9f3773a024a,
                                 0xa0d6711da2e58729,
                                 0xb76bd13455c6414f,
                                 0xa97fc1c14fdf8cfa,
                                 0x0cb0b793e60c9f6e,
                                 0xf0cf49bbdac797be,
                                 0x27ce87cd72bc9fc7,
                                 0x61fc48641f1f091a,
                                 0xbe9bb55dcb4c10ce,
                                 0xc571852d674670f0,
                                 0xb12b50534b174003};

// high * 2^64 + low times 2^exponent radians, modulo one turn and to nearest. Of 1 / (2 pi) only the bits
// matter that neither make whole turns nor stay far below 2^-64: a window of 192.
ROPE_INLINE Turns turns_of_radians(uint64_t high, uint64_t low, int exponent) {
  const int first = exponent < -64 * kZeroWords ? 0 : exponent + 64 * kZeroWords;
  const uint64_t* const words = kTurnsOfRadian + first / 64;
  const int shift = first % 64;
  // In two steps: a shift by 64 is none.
  const auto word = [&](int w) { return words[w] << shift | words[w + 1] >> 1 >> (63 - shift); };
  const uint64_t top = word(0), middle = word(1), bottom = word(2);

  // The product's second word, whose carries count, and its third.
  uint64_t below = high_half_of_product(low, bottom), carries = 0;
  const auto add = [&](uint64_t part) {
    below += part;
    carries += below < part;
  };
  add(low * middle);
  add(high * bottom);
  const uint64_t turns = high_half_of_product(low, middle) + high_half_of_product(high, bottom) + low * top +
                         high * middle + carries;
  return turns + (below >> 63);
}

// Of a frequency in radians: of one unit of an integer position.
ROPE_INLINE Turns turns_of(Exact frequency) {
  const Turns turns = turns_of_radians(0, frequency.significand, frequency.exponent);
  return frequency.negative ? 0 - turns : turns;
}

// Of a floating position at a frequency in radians.
ROPE_INLINE Turns turns_of(Exact position, Exact frequency) {
  const Turns turns =
      turns_of_radians(high_half_of_product(position.significand, frequency.significand),
                       position.significand * frequency.significand, position.exponent + frequency.exponent);
  return position.negative != frequency.negative ? 0 - turns : turns;
}

// Cosine and sine of up to an eighth of a turn, in radians. V is a float or a vector of them, `constant`
// makes one. The coefficients are minimax; the error is below 7e-9 before rounding.
template <class V, class Constant>
ROPE_INLINE Pair<V> cos_sin_of_eighth(V angle, Constant constant) {
  const V square = multiply(angle, angle);
  const V cos = fma(fma(constant(0x1.9a6f62p-16f), square, constant(-0x1.6c0e78p-10f)), square,
                    constant(0x1.55554ep-5f));
  const V sin = fma(fma(constant(-0x1.99071ap-13f), square, constant(0x1.1106bap-7f)), square,
                    constant(-0x1.555546p-3f));
  return {fma(multiply(square, square), cos, fma(square, constant(-0.5f), constant(1.0f))),
          fma(multiply(angle, square), sin, angle)};
}

// The same in float64; the error is below 7e-18 before rounding.
ROPE_INLINE Pair<double> cos_sin_of_eighth(double angle) {
  const double square = multiply(angle, angle);
  double cos = -0x1.8ff9dcb44732dp-37;
  cos = fma(cos, square, 0x1.1eea895d2551bp-29);
  cos = fma(cos, square, -0x1.27e4f9040babfp-22);
  cos = fma(cos, square, 0x1.a01a019e24efbp-16);
  cos = fma(cos, square, -0x1.6c16c16c16134p-10);
  cos = fma(cos, square, 0x1.5555555555553p-5);
  double sin = 0x1.5d877327766f5p-33;
  sin = fma(sin, square, -0x1.ae5e4c560eb92p-26);
  sin = fma(sin, square, 0x1.71de356f70f84p-19);
  sin = fma(sin, square, -0x1.a01a019c30b6fp-13);
  sin = fma(sin, square, 0x1.111111110fb50p-7);
  sin = fma(sin, square, -0x1.555555555554dp-3);
  return {fma(multiply(square, square), cos, fma(square, -0.5, 1.0)),
          fma(multiply(angle, square), sin, angle)};
}

// From the nearest quarter turn on: odd quarters swap cosine and sine, and some turn a sign.
template <class C>
ROPE_INLINE Pair<C> from_quarter(unsigned quarter, Pair<C> cos_sin) {
  const C cos = quarter & 1 ? cos_sin.y : cos_sin.x, sin = quarter & 1 ? cos_sin.x : cos_sin.y;
  return {(quarter + 1) & 2 ? -cos : cos, quarter & 2 ? -sin : sin};
}

// An angle is taken to 2^-32 turns for float and to 2^-64 for double.
inline constexpr float kRadiansOfRest = 0x1.921fb6p-30f;

// x is the cosine, y the sine. The error is below 1.3e-7 for float, 3e-16 for double.
ROPE_INLINE Pair<float> cos_sin(Turns turns, float) {
  const uint32_t high = static_cast<uint32_t>(turns >> 32);
  const uint32_t quarter = (high + 0x20000000u) >> 30;
  const int32_t rest = static_cast<int32_t>(high - (quarter << 30));
  const float angle = multiply(static_cast<float>(rest), kRadiansOfRest);
  return from_quarter(quarter, cos_sin_of_eighth(angle, [](float constant) { return constant; }));
}

ROPE_INLINE Pair<double> cos_sin(Turns turns, double) {
  const unsigned quarter = static_cast<unsigned>((turns + (uint64_t{1} << 61)) >> 62);
  const int64_t rest = static_cast<int64_t>(turns - (uint64_t{quarter} << 62));
  return from_quarter(quarter, cos_sin_of_eighth(multiply(static_cast<double>(rest), 0x1.921fb54442d18p-62)));
}

}  // namespace rope_ext
