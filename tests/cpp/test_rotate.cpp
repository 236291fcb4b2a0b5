#include <gtest/gtest.h>

#include "core/rotate.h"
#include "values.h"

namespace rope_ext::test {
namespace {

// A vector of one pair, as rotate_interleaved asks for it.
template <class C>
struct Lanes {
  C first, second;
};
template <class C>
Lanes<C> multiply(Lanes<C> a, Lanes<C> b) {
  return {rope_ext::multiply(a.first, b.first), rope_ext::multiply(a.second, b.second)};
}
template <class C>
Lanes<C> fma(Lanes<C> a, Lanes<C> b, Lanes<C> c) {
  return {rope_ext::fma(a.first, b.first, c.first), rope_ext::fma(a.second, b.second, c.second)};
}
template <class C>
Lanes<C> swap_pairs(Lanes<C> a) {
  return {a.second, a.first};
}

template <class C>
class Rotate : public testing::Test {};
using ComputeTypes = testing::Types<float, double>;
TYPED_TEST_SUITE(Rotate, ComputeTypes);

constexpr int kTrials = 200000;

TYPED_TEST(Rotate, IsTheRotationButForTwoRoundings) {
  using C = TypeParam;
  if (std::numeric_limits<long double>::digits <= std::numeric_limits<C>::digits)
    GTEST_SKIP() << "long double is no wider than the compute type here";
  Random random(1);
  for (int trial = 0; trial < kTrials; ++trial) {
    const auto scaled = [&](int64_t exponents) {
      return std::ldexp(static_cast<C>(random.between_minus_one_and_one()),
                        static_cast<int>(random.between(-exponents, exponents)));
    };
    const int64_t exponents = Format<C>::largest_exponent / 2;
    const Pair<C> pair{scaled(exponents), scaled(exponents)};
    const C cos = scaled(8), sin = scaled(8);
    const long double x = pair.x, y = pair.y;
    const Pair<C> result = rotate(pair, cos, sin);
    ASSERT_LE(std::abs(result.x - (x * cos - y * sin)), rounding_bound<C>(x * cos, -y * sin)) << trial;
    ASSERT_LE(std::abs(result.y - (y * cos + x * sin)), rounding_bound<C>(y * cos, x * sin)) << trial;
  }
}

// With operands of few bits the wider type holds every product and sum exactly, so that the contract can
// be written down without a fused operation: sine product rounded, then the whole.
TYPED_TEST(Rotate, RoundsTheSineProductAndThenTheSum) {
  using C = TypeParam;
  constexpr bool narrow = std::is_same_v<C, float>;
  constexpr int operand_bits = narrow ? 23 : 29;
  using Wide = std::conditional_t<narrow, double, long double>;
  if (std::numeric_limits<Wide>::digits < 2 * operand_bits + 1)
    GTEST_SKIP() << "long double is too narrow for exact sums here";
  Random random(2);
  int told_apart = 0;
  for (int trial = 0; trial < kTrials; ++trial) {
    const auto operand = [&] {
      constexpr int64_t limit = int64_t{1} << operand_bits;
      return std::ldexp(static_cast<C>(random.between(-limit, limit)), -operand_bits);
    };
    const Pair<C> pair{operand(), operand()};
    const C cos = operand(), sin = operand();
    const Wide x = pair.x, y = pair.y;
    const Pair<C> expected{static_cast<C>(x * cos - static_cast<C>(y * sin)),
                           static_cast<C>(y * cos + static_cast<C>(x * sin))};
    const Pair<C> result = rotate(pair, cos, sin);
    ASSERT_EQ(expected.x, result.x) << trial;
    ASSERT_EQ(expected.y, result.y) << trial;
    told_apart += expected.x != static_cast<C>(static_cast<C>(x * cos) - y * sin);
  }
  EXPECT_GT(told_apart, kTrials / 100) << "the operands must tell one order of roundings from the other";
}

TYPED_TEST(Rotate, GivesTheSameBitsInterleaved) {
  using C = TypeParam;
  Random random(3);
  for (int trial = 0; trial < kTrials; ++trial) {
    const std::vector<C> v = values<C>(random, 4, 8);
    const Pair<C> expected = rotate(Pair<C>{v[0], v[1]}, v[2], v[3]);
    const Lanes<C> result =
        rotate_interleaved(Lanes<C>{v[0], v[1]}, Lanes<C>{v[2], v[2]}, Lanes<C>{-v[3], v[3]});
    ASSERT_TRUE(same(expected.x, result.first)) << testing::PrintToString(v);
    ASSERT_TRUE(same(expected.y, result.second)) << testing::PrintToString(v);
  }
}

}  // namespace
}  // namespace rope_ext::test
