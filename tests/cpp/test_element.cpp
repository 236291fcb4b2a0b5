#include <gtest/gtest.h>

#include <algorithm>

#include "values.h"

#if defined(__x86_64__) && defined(__GNUC__)
#include <cpuid.h>
#include <immintrin.h>
#endif

namespace rope_ext::test {
namespace {

template <class T>
class SixteenBits : public testing::Test {};
using SixteenBitTypes = testing::Types<float16, bfloat16>;
TYPED_TEST_SUITE(SixteenBits, SixteenBitTypes);

constexpr uint32_t kPatterns = 1u << 16;

template <class T>
T of_bits(uint32_t bits) {
  return T{static_cast<uint16_t>(bits)};
}

template <class T>
T stored(float value) {
  T result;
  store(&result, value);
  return result;
}

// What a pattern means, from the definition of a binary format.
template <class T>
double decoded(T value) {
  using F = Format<T>;
  const int fraction = value.bits & ((1 << (F::digits - 1)) - 1);
  const int exponent = value.bits >> (F::digits - 1) & ((1 << F::exponent) - 1);
  const double sign = value.bits >> 15 ? -1 : 1;
  if (exponent > 2 * F::largest_exponent) return fraction ? NAN : sign * INFINITY;
  const int implicit = exponent == 0 ? 0 : 1 << (F::digits - 1);
  return sign * std::ldexp(implicit + fraction, std::max(exponent, 1) - F::largest_exponent - F::digits + 1);
}

// From one number of the format to the next, where this value lies.
template <class T>
double quantum(double value) {
  using F = Format<T>;
  return std::ldexp(1, std::max(std::ilogb(value), F::smallest_exponent) - F::digits + 1);
}

// The number of the format nearest to the value, ties to even, from the definition of rounding. Every
// step is exact in double, but for nearbyint, which rounds by that rule.
template <class T>
double rounded(double value) {
  if (!std::isfinite(value)) return value;
  const double result = std::nearbyint(value / quantum<T>(value)) * quantum<T>(value);
  const bool finite = std::abs(result) < std::ldexp(1, Format<T>::largest_exponent + 1);
  return finite ? result : std::copysign(INFINITY, value);
}

// Around every number of the format and every midpoint between neighbours, where rounding turns over.
template <class T, class Check>
void for_every_turning_point(Check check) {
  for (uint32_t pattern = 0; pattern < kPatterns && !testing::Test::HasFailure(); ++pattern) {
    const double number = decoded(of_bits<T>(pattern));
    if (!std::isfinite(number)) continue;
    for (const double offset : {0.0, 0.5}) {
      const float point = static_cast<float>(number + std::copysign(offset * quantum<T>(number), number));
      check(point);
      check(std::nextafter(point, INFINITY));
      check(std::nextafter(point, -INFINITY));
    }
  }
}

template <class Check>
void for_many_floats(Check check) {
  Random random(1);
  for (int i = 0; i < 1 << 20 && !testing::Test::HasFailure(); ++i) {
    const float value = float_of(static_cast<uint32_t>(random.word()));
    if (!std::isnan(value)) check(value);
  }
}

TYPED_TEST(SixteenBits, EveryPatternWidensToItsValue) {
  for (uint32_t pattern = 0; pattern < kPatterns; ++pattern) {
    const TypeParam value = of_bits<TypeParam>(pattern);
    const double expected = decoded(value);
    ASSERT_EQ(std::isnan(expected), is_nan(value)) << pattern;
    if (std::isnan(expected)) continue;
    ASSERT_EQ(expected, to_compute(value)) << pattern;
    ASSERT_EQ(std::signbit(expected), std::signbit(to_compute(value))) << pattern;
  }
}

TYPED_TEST(SixteenBits, EveryPatternSurvivesTheRoundTrip) {
  for (uint32_t pattern = 0; pattern < kPatterns; ++pattern) {
    const TypeParam value = of_bits<TypeParam>(pattern);
    ASSERT_TRUE(same(value, stored<TypeParam>(to_compute(value)))) << pattern;
  }
}

TYPED_TEST(SixteenBits, FloatsRoundToTheNearestAndTiesToEven) {
  const auto check = [](float value) {
    const TypeParam result = stored<TypeParam>(value);
    ASSERT_EQ(rounded<TypeParam>(value), decoded(result)) << value;
    ASSERT_EQ(std::signbit(value), result.bits >> 15) << value;
  };
  for_every_turning_point<TypeParam>(check);
  for_many_floats(check);
}

TYPED_TEST(SixteenBits, WhatIsTooLargeBecomesInfinite) {
  const float top = std::ldexp(1.0f, Format<TypeParam>::largest_exponent);
  const float largest = top * static_cast<float>(2 - 2 * kUnit<TypeParam>);
  const float halfway = top * static_cast<float>(2 - kUnit<TypeParam>);
  for (const float sign : {1.0f, -1.0f}) {
    EXPECT_EQ(sign * largest, to_compute(stored<TypeParam>(sign * largest)));
    EXPECT_EQ(sign * largest, to_compute(stored<TypeParam>(sign * std::nextafter(halfway, 0.0f))));
    EXPECT_EQ(sign * INFINITY, to_compute(stored<TypeParam>(sign * halfway)));
    EXPECT_EQ(sign * INFINITY, to_compute(stored<TypeParam>(sign * std::numeric_limits<float>::max())));
    EXPECT_EQ(sign * INFINITY, to_compute(stored<TypeParam>(sign * INFINITY)));
  }
}

TYPED_TEST(SixteenBits, ANanStaysANan) {
  for (uint32_t fraction = 1; fraction != 0; fraction = fraction << 1 & 0x7fffffu) {
    for (const uint32_t payload : {fraction, 0x800000u - fraction}) {
      ASSERT_TRUE(is_nan(stored<TypeParam>(float_of(0x7f800000u | payload)))) << payload;
      ASSERT_TRUE(is_nan(stored<TypeParam>(float_of(0xff800000u | payload)))) << payload;
    }
  }
}

void expect_narrowed_as_by_the_processor(double value) {
  for (const double signed_value : {value, -value})
    ASSERT_TRUE(same(static_cast<float>(signed_value), narrow(signed_value)))
        << std::hexfloat << signed_value << " became " << narrow(signed_value);
}

// Around numbers of float32 and the midpoints between neighbours, where rounding turns over.
void expect_turning_points_of(float number) {
  const double next = std::nextafter(number, INFINITY);
  for (const double point : {double{number}, (number + next) / 2}) {
    expect_narrowed_as_by_the_processor(point);
    expect_narrowed_as_by_the_processor(std::nextafter(point, INFINITY));
    expect_narrowed_as_by_the_processor(std::nextafter(point, 0.0));
  }
}

TEST(Float64, NarrowsToTheNearestFloat32AndTiesToEven) {
  for (uint32_t exponent = 0; exponent < 255; ++exponent) {
    for (const uint32_t fraction : {0u, 1u, 2u, 3u, 0x3fffffu, 0x400000u, 0x7ffffdu, 0x7ffffeu})
      expect_turning_points_of(float_of(exponent << 23 | fraction));
  }
  Random random(2);
  for (int i = 0; i < 1 << 20 && !testing::Test::HasFailure(); ++i)
    expect_turning_points_of(float_of(static_cast<uint32_t>(random.between(0, 0x7f7ffffe))));
}

TEST(Float64, NarrowsWhatIsTooLargeTooSmallOrNoNumber) {
  const double largest = std::numeric_limits<float>::max(), halfway = 0x1.ffffffp127;
  const double smallest = std::numeric_limits<float>::denorm_min();
  for (const double edge : {largest, halfway, smallest, smallest / 2, 0x1p-126, 0x1p128, 0.0,
                            std::numeric_limits<double>::denorm_min(), std::numeric_limits<double>::min(),
                            std::numeric_limits<double>::max()}) {
    expect_narrowed_as_by_the_processor(edge);
    expect_narrowed_as_by_the_processor(std::nextafter(edge, INFINITY));
    expect_narrowed_as_by_the_processor(std::nextafter(edge, -INFINITY));
  }
  EXPECT_EQ(INFINITY, narrow(INFINITY));
  EXPECT_EQ(-INFINITY, narrow(-INFINITY));
}

TEST(Float64, NarrowsANanToAQuietOne) {
  for (uint64_t fraction = 1; fraction != 0; fraction = fraction << 1 & 0xfffffffffffffu) {
    for (const uint64_t sign : {uint64_t{0}, uint64_t{1} << 63}) {
      const uint32_t result = bits_of(narrow(std::bit_cast<double>(sign | uint64_t{0x7ff} << 52 | fraction)));
      EXPECT_EQ(0x7fc00000u, result & 0x7fc00000u) << fraction;
      EXPECT_EQ(sign != 0, result >> 31 != 0) << fraction;
    }
  }
}

TEST(Float64, NarrowsAnyPattern) {
  Random random(3);
  for (int i = 0; i < 1 << 20 && !testing::Test::HasFailure(); ++i) {
    expect_narrowed_as_by_the_processor(std::bit_cast<double>(random.word()));
    // Near the range of float32, where a pattern seldom lies.
    expect_narrowed_as_by_the_processor(
        std::ldexp(std::bit_cast<double>(random.word() >> 12 | uint64_t{1023} << 52),
                   static_cast<int>(random.between(-152, 129))));
  }
}

TEST(Element, IsVisitedAsTheTypeOfItsName) {
  for (const Element element : kElements)
    EXPECT_EQ(element, visit(element, [](auto value) { return Format<decltype(value)>::element; }));
}

#if defined(__x86_64__) && defined(__GNUC__)

__attribute__((target("f16c"))) float widened_by_hardware(float16 value) {
  return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(value.bits)));
}

__attribute__((target("f16c"))) float16 stored_by_hardware(float value) {
  return of_bits<float16>(
      static_cast<uint32_t>(_mm_cvtsi128_si32(_mm_cvtps_ph(_mm_set_ss(value), _MM_FROUND_TO_NEAREST_INT))));
}

bool has_f16c() {
  unsigned a, b, c, d;
  return __builtin_cpu_supports("avx") && __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C) != 0;
}

TEST(Float16, IsWhatTheHardwareMakesOfIt) {
  if (!has_f16c()) GTEST_SKIP() << "this processor does not have F16C";
  for (uint32_t pattern = 0; pattern < kPatterns; ++pattern) {
    const float16 value = of_bits<float16>(pattern);
    ASSERT_TRUE(same(widened_by_hardware(value), to_compute(value))) << pattern;
  }
  const auto check = [](float value) {
    ASSERT_TRUE(same(stored_by_hardware(value), stored<float16>(value))) << value;
  };
  for_every_turning_point<float16>(check);
  for_many_floats(check);
}

#else

TEST(Float16, IsWhatTheHardwareMakesOfIt) { GTEST_SKIP() << "F16C is an instruction set of x86-64"; }

#endif

}  // namespace
}  // namespace rope_ext::test
