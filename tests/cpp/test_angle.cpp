#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <numbers>

#include "core/angle.h"
#include "cpu/launch.h"
#include "instruction_sets.h"
#include "problems.h"

namespace rope_ext::test {
namespace {

using Wide = unsigned __int128;

// A number below 2^32 with more bits behind its binary point than any angle needs.
class Fixed {
 public:
  static constexpr int kFractionWords = 76;

  explicit Fixed(uint32_t whole) { words_[0] = whole; }

  uint32_t word(int w) const { return words_[w]; }
  void set_bit(int behind_the_point) {
    words_[1 + behind_the_point / 32] |= 1u << (31 - behind_the_point % 32);
  }

  Fixed& operator+=(const Fixed& other) {
    uint64_t carry = 0;
    for (int w = kFractionWords; w >= 0; --w, carry >>= 32) {
      carry += uint64_t{words_[w]} + other.words_[w];
      words_[w] = static_cast<uint32_t>(carry);
    }
    return *this;
  }
  Fixed& operator-=(const Fixed& other) {
    int64_t borrow = 0;
    for (int w = kFractionWords; w >= 0; --w, borrow >>= 32) {
      borrow += int64_t{words_[w]} - other.words_[w];
      words_[w] = static_cast<uint32_t>(borrow);
    }
    return *this;
  }
  Fixed& operator/=(uint32_t divisor) {
    uint64_t rest = 0;
    for (uint32_t& word : words_) {
      rest = rest << 32 | word;
      word = static_cast<uint32_t>(rest / divisor);
      rest %= divisor;
    }
    return *this;
  }
  bool operator>=(const Fixed& other) const { return words_ >= other.words_; }
  bool is_zero() const { return words_ == Fixed(0).words_; }

 private:
  std::array<uint32_t, 1 + kFractionWords> words_{};
};

Fixed arctan_of_reciprocal(uint32_t n) {
  Fixed power(1), sum(0);
  power /= n;
  for (uint32_t k = 1; !power.is_zero(); k += 2, power /= n * n) {
    Fixed term = power;
    term /= k;
    k % 4 == 1 ? sum += term : sum -= term;
  }
  return sum;
}

// By Machin's formula, 2 pi = 8 (4 arctan(1/5) - arctan(1/239)), and division bit by bit.
Fixed one_over_two_pi() {
  const auto doubled = [](Fixed value, int times) {
    for (int i = 0; i < times; ++i) value += Fixed(value);
    return value;
  };
  Fixed two_pi = doubled(arctan_of_reciprocal(5), 5);
  two_pi -= doubled(arctan_of_reciprocal(239), 3);
  Fixed quotient(0), rest(1);
  for (int bit = 0; bit < 32 * Fixed::kFractionWords; ++bit) {
    rest = doubled(rest, 1);
    if (!(rest >= two_pi)) continue;
    rest -= two_pi;
    quotient.set_bit(bit);
  }
  return quotient;
}

const Fixed& turns_of_radian() {
  static const Fixed turns = one_over_two_pi();
  return turns;
}

// Of significand * 2^exponent radians the first 128 bits behind the point of its turns, by the whole product.
Wide exact_turns(Wide significand, int exponent) {
  constexpr int kWords = Fixed::kFractionWords + 4;  // four before the point
  std::array<uint32_t, kWords> product{};
  for (int s = 0; s < 4; ++s) {
    const uint64_t digit = static_cast<uint32_t>(significand >> (32 * s));
    uint64_t carry = 0;
    for (int w = Fixed::kFractionWords; w > 0; --w, carry >>= 32) {
      uint32_t& target = product[static_cast<size_t>(w + 3 - s)];
      carry += digit * turns_of_radian().word(w) + target;
      target = static_cast<uint32_t>(carry);
    }
    product[static_cast<size_t>(3 - s)] = static_cast<uint32_t>(carry);
  }
  Wide bits = 0;
  for (int place = 128 + exponent; place < 256 + exponent; ++place) {
    const bool inside = place >= 0 && place < 32 * kWords;
    bits = bits << 1 | (inside ? product[static_cast<size_t>(place / 32)] >> (31 - place % 32) & 1 : 0);
  }
  return bits;
}

// In units of 2^-128 turns, half of the last place of Turns being 2^63.
Wide distance(Turns turns, Wide exact) {
  const Wide ahead = (Wide{turns} << 64) - exact;
  return std::min(ahead, 0 - ahead);
}

TEST(TurnsOfRadian, AreOneOverTwoPi) {
  constexpr int words = sizeof kTurnsOfRadian / sizeof *kTurnsOfRadian;
  for (int w = 0; w < words; ++w) {
    const int place = 1 + 2 * (w - kZeroWords);
    const uint64_t expected =
        w < kZeroWords ? 0
                       : uint64_t{turns_of_radian().word(place)} << 32 | turns_of_radian().word(place + 1);
    EXPECT_EQ(expected, kTurnsOfRadian[w]) << w;
  }
}

constexpr int kTrials = 200000;

// Any bits that mean a finite number, the ends of the range often.
template <class C>
C finite(Random& random) {
  for (;;) {
    const C value = random.one_in(4) ? special<C>(random)
                                     : std::bit_cast<C>(static_cast<typename Format<C>::Bits>(random.word()));
    if (std::isfinite(value)) return value;
  }
}

template <class C>
class Number : public testing::Test {};
using ComputeTypes = testing::Types<float, double>;
TYPED_TEST_SUITE(Number, ComputeTypes);

TYPED_TEST(Number, IsTakenAsItIs) {
  Random random(1);
  for (int trial = 0; trial < kTrials; ++trial) {
    const auto value = finite<TypeParam>(random);
    const Exact parts = exact(value);
    ASSERT_TRUE(parts.finite) << value;
    ASSERT_EQ(std::signbit(value), parts.negative) << value;
    ASSERT_EQ(std::abs(value), std::ldexp(static_cast<TypeParam>(parts.significand), parts.exponent))
        << value;
  }
  for (const TypeParam value : {INFINITY, -INFINITY, NAN})
    EXPECT_FALSE(exact(static_cast<TypeParam>(value)).finite);
}

TYPED_TEST(Number, AsAFrequencyIsRoundedToTheNearestTurns) {
  Random random(2);
  for (int trial = 0; trial < kTrials; ++trial) {
    const auto value = finite<TypeParam>(random);
    const Exact parts = exact(value);
    const Wide wanted = exact_turns(parts.significand, parts.exponent);
    // Three words are cut off, by less than one unit each.
    ASSERT_LE(distance(turns_of(exact(std::abs(value))), wanted), (Wide{1} << 63) + 3) << value;
    ASSERT_EQ(turns_of(exact(-value)), 0 - turns_of(exact(value))) << value;
  }
}

template <class Types>
class Product : public testing::Test {};
template <class P, class F>
struct PositionAndFrequency {
  using Position = P;
  using Frequency = F;
};
using PairsOfTypes =
    testing::Types<PositionAndFrequency<float, float>, PositionAndFrequency<float, double>,
                   PositionAndFrequency<double, float>, PositionAndFrequency<double, double>>;
TYPED_TEST_SUITE(Product, PairsOfTypes);

TYPED_TEST(Product, IsRoundedToTheNearestTurns) {
  Random random(3);
  for (int trial = 0; trial < kTrials; ++trial) {
    const auto position = finite<typename TypeParam::Position>(random);
    const auto frequency = finite<typename TypeParam::Frequency>(random);
    const Exact p = exact(position), f = exact(frequency);
    const Wide wanted = exact_turns(Wide{p.significand} * f.significand, p.exponent + f.exponent);
    const Turns turns = turns_of(p, f);
    // Behind the window of 192 bits a product of less than 2^106 leaves less than 2^42.
    ASSERT_LE(distance(p.negative == f.negative ? turns : 0 - turns, wanted),
              (Wide{1} << 63) + (Wide{1} << 43))
        << position << " * " << frequency;
    ASSERT_EQ(0 - turns, turns_of(exact(-position), f)) << position << " * " << frequency;
  }
}

constexpr Turns kQuarter = Turns{1} << 62;

// The worst of all for float, whose error is 1.256e-7.
constexpr Turns kWorst = 0xe012c36fffffffffu;

// Around every eighth of a turn, where the nearest quarter changes, and anywhere.
std::vector<Turns> many_turns() {
  Random random(4);
  std::vector<Turns> all{kWorst};
  for (Turns eighth = 0; eighth < 8; ++eighth) {
    for (int shift = 0; shift < 62; ++shift) {
      for (const Turns step : {Turns{0}, Turns{1} << shift, Turns{0} - (Turns{1} << shift)})
        all.push_back(eighth * (kQuarter / 2) + step);
    }
  }
  for (int trial = 0; trial < kTrials; ++trial) all.push_back(random.word());
  return all;
}

template <class C>
inline constexpr long double kError = std::is_same_v<C, float> ? 1.26e-7L : 3e-16L;

template <class C>
class CosSin : public testing::Test {};
TYPED_TEST_SUITE(CosSin, ComputeTypes);

TYPED_TEST(CosSin, IsThatOfTheAngle) {
  using C = TypeParam;
  if (std::numeric_limits<long double>::digits < 64)
    GTEST_SKIP() << "long double does not hold 64 bits of turns";
  const long double radians = std::ldexp(2 * std::numbers::pi_v<long double>, -64);
  for (const Turns turns : many_turns()) {
    const Pair<C> pair = cos_sin(turns, C{});
    const long double angle = static_cast<long double>(static_cast<int64_t>(turns)) * radians;
    ASSERT_LE(std::abs(pair.x - std::cos(angle)), kError<C>) << turns;
    ASSERT_LE(std::abs(pair.y - std::sin(angle)), kError<C>) << turns;
  }
}

TYPED_TEST(CosSin, IsExactAtMultiplesOfAQuarter) {
  using C = TypeParam;
  constexpr C expected[][2] = {{1, 0}, {0, 1}, {-1, 0}, {0, -1}};
  for (Turns quarter = 0; quarter < 4; ++quarter) {
    const Pair<C> pair = cos_sin(quarter * kQuarter, C{});
    EXPECT_EQ(expected[quarter][0], pair.x) << quarter;
    EXPECT_EQ(expected[quarter][1], pair.y) << quarter;
  }
}

TYPED_TEST(CosSin, OfAQuarterMoreIsTurnedByAQuarterToTheBit) {
  using C = TypeParam;
  for (const Turns turns : many_turns()) {
    const Pair<C> pair = cos_sin(turns, C{}), next = cos_sin(turns + kQuarter, C{});
    ASSERT_EQ(bits(-pair.y), bits(next.x)) << turns;
    ASSERT_EQ(bits(pair.x), bits(next.y)) << turns;
  }
}

// Steps between which both functions move by more than their errors.
TYPED_TEST(CosSin, RisesAndFallsAsTheQuarterSays) {
  using C = TypeParam;
  constexpr int steps = 4096;
  for (int step = 0; step < steps; ++step) {
    const Turns turns = static_cast<Turns>(step) * (4 * (kQuarter / steps));
    const Pair<C> here = cos_sin(turns, C{}), next = cos_sin(turns + 4 * (kQuarter / steps), C{});
    const int quarter = 4 * step / steps;
    ASSERT_EQ(quarter == 2 || quarter == 3, next.x > here.x) << step;
    ASSERT_EQ(quarter == 0 || quarter == 3, next.y > here.y) << step;
  }
}

// Rows of angles

class Row : public OnInstructionSet {};
INSTANTIATE_TEST_SUITE_P(, Row, kInstructionSets, instruction_set_name);

// Next to where the nearest quarter changes, or anywhere.
Turns any_turns(Random& random) {
  if (!random.one_in(4)) return random.word();
  return static_cast<Turns>(random.between(0, 7)) * (kQuarter / 2) +
         static_cast<Turns>(random.between(-2, 2)) * (Turns{1} << 32);
}

template <class T>
void expect_row_as_defined(int64_t pairs, int64_t axes, int64_t gap, Edge edge, Random& random) {
  using C = Compute<T>;
  const int64_t stride = pairs + gap;
  std::vector<Turns> turns(static_cast<size_t>((axes - 1) * stride + pairs + cpu::kRoom));
  for (Turns& value : turns) value = any_turns(random);
  std::vector<int64_t> positions(static_cast<size_t>(axes));
  for (int64_t& value : positions)
    value = random.one_in(2) ? static_cast<int64_t>(random.word()) : random.between(-1, 1);
  const C scale = random.one_in(2) ? C(1) : ordinary<C>(random);
  const std::vector<C> before(static_cast<size_t>(pairs + cpu::kRoom), C(7));

  Memory turns_memory(turns, edge), positions_memory(positions, edge), cos(before, edge), sin(before, edge);
  cpu::kernels().of<T>().cos_sin({static_cast<const Turns*>(turns_memory.data()), stride, axes,
                                  static_cast<const int64_t*>(positions_memory.data()), pairs},
                                 scale, static_cast<C*>(cos.data()), static_cast<C*>(sin.data()));
  for (int64_t i = 0; i < pairs; ++i) {
    Turns sum = 0;
    for (int64_t a = 0; a < axes; ++a)
      sum +=
          turns[static_cast<size_t>(a * stride + i)] * static_cast<Turns>(positions[static_cast<size_t>(a)]);
    const Pair<C> expected = cos_sin(sum, C{});
    ASSERT_EQ(bits(multiply(expected.x, scale)), bits(static_cast<C*>(cos.data())[i]))
        << pairs << " pairs, " << i;
    ASSERT_EQ(bits(multiply(expected.y, scale)), bits(static_cast<C*>(sin.data())[i]))
        << pairs << " pairs, " << i;
  }
}

TEST_P(Row, HasTheBitsOfTheDefinitionAndStaysInItsRoom) {
  Random random(5);
  for (int64_t pairs = 1; pairs <= cpu::kMaxPairs; pairs += pairs < 70 ? 1 : 17) {
    for (const Element element : kElements) {
      for (const Edge edge : {Edge::begin, Edge::end}) {
        visit(element, [&](auto value) {
          expect_row_as_defined<decltype(value)>(pairs, 1, 0, edge, random);
          expect_row_as_defined<decltype(value)>(pairs, 3, random.between(0, 5), edge, random);
        });
      }
    }
    if (HasFatalFailure()) return;
  }
}

TEST_P(Row, SumsAsManyAxesAsThereMayBe) {
  Random random(6);
  for (const int64_t pairs : {1, 16, 31})
    expect_row_as_defined<float>(pairs, kMaxAxes, random.between(0, 5), Edge::end, random);
}

// The whole way, from positions and frequencies to rotated tokens

struct ByFrequencies {
  int64_t tokens = 3, heads = 2, pairs = 8, axes = 1;
  bool per_head = false, wide = true, floating = false, fixed = false;
  Element element = Element::float64;  // of frequencies
};

std::ostream& operator<<(std::ostream& out, const ByFrequencies& call) {
  return out << call.tokens << " tokens, " << call.heads << " heads, " << call.pairs << " pairs, "
             << call.axes << " axes" << (call.per_head ? " per head" : "") << (call.wide ? " wide" : "")
             << (call.floating ? " floating" : "") << (call.fixed ? " fixed" : "") << " of " << call.element;
}

// Rotates contiguous tokens of ones, and compares them with the definition. P and F are the types of
// positions and frequencies.
template <class T, class P, class F>
void expect_rotated(const ByFrequencies& call, Random& random) {
  using C = Compute<T>;
  const int64_t frequency_heads = call.per_head ? call.heads : 1, elements = 2 * call.pairs;
  std::vector<P> positions(static_cast<size_t>(call.tokens * call.axes));
  std::vector<F> frequencies(static_cast<size_t>(call.axes * frequency_heads * call.pairs));
  for (P& value : positions)
    value = call.floating ? static_cast<P>(1e4 * random.between_minus_one_and_one())
                          : static_cast<P>(random.between(-(int64_t{1} << 31), (int64_t{1} << 31) - 1));
  for (F& value : frequencies)
    value = call.fixed ? static_cast<F>(random.word()) : static_cast<F>(random.between_minus_one_and_one());
  const std::vector<T> source = values<T>(random, call.tokens * call.heads * elements, 0);
  Memory x(source, Edge::end), at(positions, Edge::end), turning(frequencies, Edge::end);

  constexpr double scale = 1.25;
  Problem problem{};
  problem.element = Format<T>::element;
  problem.batches = 1;
  problem.tokens = call.tokens;
  problem.head_dim = elements;
  problem.pairs = call.pairs;
  problem.views = 1;
  const Strides strides{.batch = {}, .token = call.heads * elements, .head = elements, .element = 1};
  problem.view[0] = {x.data(), x.data(), strides, strides, call.heads, 0};
  problem.angles.positions = {.data = at.data(),
                              .wide = call.wide,
                              .batch = {},
                              .token = call.axes,
                              .axis = 1,
                              .floating = call.floating};
  problem.angles.frequencies = {.data = turning.data(),
                                .fixed = call.fixed,
                                .element = call.element,
                                .axes = call.axes,
                                .axis = frequency_heads * call.pairs,
                                .head = call.per_head ? call.pairs : 0,
                                .pair = 1,
                                .scale = scale};
  cpu::rotate_tokens(problem, 0, call.tokens);

  const auto turns_at = [&](int64_t token, int64_t head, int64_t pair) {
    Turns sum = 0;
    for (int64_t a = 0; a < call.axes; ++a) {
      const P position = positions[static_cast<size_t>(token * call.axes + a)];
      const int64_t place = (a * frequency_heads + (call.per_head ? head : 0)) * call.pairs + pair;
      const F frequency = frequencies[static_cast<size_t>(place)];
      if constexpr (std::is_integral_v<F>) {
        sum += static_cast<Turns>(frequency) * static_cast<Turns>(position);
      } else if constexpr (std::is_integral_v<P>) {
        sum += turns_of(exact(frequency)) * static_cast<Turns>(position);
      } else {
        sum += turns_of(exact(position), exact(frequency));
      }
    }
    return sum;
  };
  std::vector<T> expected = source;
  for (int64_t row = 0; row < call.tokens * call.heads; ++row) {
    for (int64_t i = 0; i < call.pairs; ++i) {
      const Pair<C> angle = cos_sin(turns_at(row / call.heads, row % call.heads, i), C{});
      T &first = expected[static_cast<size_t>(row * elements + i)],
        &second = expected[static_cast<size_t>(row * elements + i + call.pairs)];
      const Pair<C> turned = rotate(Pair<C>{to_compute(first), to_compute(second)},
                                    multiply(angle.x, C(scale)), multiply(angle.y, C(scale)));
      store(&first, turned.x);
      store(&second, turned.y);
    }
  }
  const T* const result = static_cast<const T*>(x.data());
  ASSERT_EQ("", difference(expected, {result, result + expected.size()})) << call;
}

template <class P, class F>
void expect_rotated(ByFrequencies call, Random& random) {
  call.wide = sizeof(P) == 8;
  call.floating = std::is_floating_point_v<P>;
  call.fixed = std::is_integral_v<F>;
  call.element = sizeof(F) == 8 ? Element::float64 : Element::float32;
  for (call.per_head = false;; call.per_head = true) {
    for (const Element element : kElements)
      visit(element, [&](auto value) { expect_rotated<decltype(value), P, F>(call, random); });
    if (call.per_head) return;
  }
}

class ByFrequency : public OnInstructionSet {};
INSTANTIATE_TEST_SUITE_P(, ByFrequency, kInstructionSets, instruction_set_name);

// Few tokens with more pairs and axes than stand on a stack at once, and many tokens.
TEST_P(ByFrequency, TokensRotateAsDefined) {
  Random random(7);
  for (const auto& [tokens, pairs, axes] : std::vector<std::array<int64_t, 3>>{
           {1, 1, 1}, {3, 37, 2}, {2, 600, 1}, {2, 600, 3}, {2, 33, kMaxAxes}, {600, 5, 2}, {70, 130, 1}}) {
    const ByFrequencies call{.tokens = tokens, .pairs = pairs, .axes = axes};
    expect_rotated<int64_t, int64_t>(call, random);
    expect_rotated<int32_t, float>(call, random);
    expect_rotated<int64_t, double>(call, random);
    expect_rotated<float, float>(call, random);
    expect_rotated<double, double>(call, random);
    if (HasFatalFailure()) return;
  }
}

}  // namespace
}  // namespace rope_ext::test
