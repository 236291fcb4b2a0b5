#include <gtest/gtest.h>

#include "cuda/divisor.h"
#include "values.h"

namespace rope_ext::test {
namespace {

constexpr uint64_t kLargest = std::numeric_limits<int64_t>::max();

void expect_division(const cuda::Divisor& by, uint64_t divisor, uint64_t number) {
  if (number > kLargest) return;
  int64_t rest = static_cast<int64_t>(number);
  ASSERT_EQ(number / divisor, by.divide(rest)) << number << " / " << divisor;
  ASSERT_EQ(number % divisor, rest) << number << " / " << divisor;
}

// Any number of digits is as likely as another.
uint64_t any_number(Random& random) { return (random.word() & kLargest) >> random.between(0, 62); }

// The largest numbers, any, and where the quotient changes.
void expect_divisions_by(uint64_t divisor, Random& random) {
  const cuda::Divisor by(static_cast<int64_t>(divisor));
  for (const uint64_t number : {kLargest, kLargest - 1, any_number(random), any_number(random)})
    expect_division(by, divisor, number);
  const uint64_t most = kLargest / divisor;
  for (const uint64_t quotient :
       {uint64_t{0}, uint64_t{1}, most / 2, most - 1, most, any_number(random) % most}) {
    const uint64_t multiple = quotient * divisor;
    for (const uint64_t number : {multiple - 1, multiple, multiple + 1, multiple + divisor - 1})
      expect_division(by, divisor, number);
  }
}

TEST(Divisor, DividesBySmallNumbers) {
  Random random(1);
  for (uint64_t divisor = 1; divisor <= 10000; ++divisor) expect_divisions_by(divisor, random);
}

TEST(Divisor, DividesByPowersOfTwoAndTheirNeighbours) {
  Random random(2);
  for (int exponent = 1; exponent <= 62; ++exponent) {
    const uint64_t power = uint64_t{1} << exponent;
    for (const uint64_t divisor : {power - 1, power, power + 1}) expect_divisions_by(divisor, random);
  }
  expect_divisions_by(kLargest - 1, random);
  expect_divisions_by(kLargest, random);
}

TEST(Divisor, DividesByAnyNumber) {
  Random random(3);
  for (int trial = 0; trial < 200000 && !testing::Test::HasFailure(); ++trial)
    expect_divisions_by(std::max<uint64_t>(any_number(random), 1), random);
}

}  // namespace
}  // namespace rope_ext::test
