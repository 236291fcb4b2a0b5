// Numbers for the tests, the awkward ones among them: the same on every platform.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <ostream>
#include <random>
#include <vector>

#include "core/element.h"

namespace rope_ext {

inline std::ostream& operator<<(std::ostream& out, Element element) {
  constexpr const char* names[] = {"float16", "bfloat16", "float32", "float64"};
  return out << names[static_cast<int>(element)];
}

}  // namespace rope_ext

namespace rope_ext::test {

inline constexpr Element kElements[] = {Element::float16, Element::bfloat16, Element::float32,
                                        Element::float64};

// A binary format: significant bits, the leading one included, and exponent bits.
template <class Word, int significant_bits, int exponent_bits, Element tag>
struct FormatOf {
  using Bits = Word;
  static constexpr int digits = significant_bits, exponent = exponent_bits;
  static constexpr int largest_exponent = (1 << (exponent_bits - 1)) - 1;
  static constexpr int smallest_exponent = 1 - largest_exponent;
  static constexpr Element element = tag;
};
template <class T>
struct Format;
template <>
struct Format<float16> : FormatOf<uint16_t, 11, 5, Element::float16> {};
template <>
struct Format<bfloat16> : FormatOf<uint16_t, 8, 8, Element::bfloat16> {};
template <>
struct Format<float> : FormatOf<uint32_t, 24, 8, Element::float32> {};
template <>
struct Format<double> : FormatOf<uint64_t, 53, 11, Element::float64> {};

template <class T>
auto bits(T value) {
  return std::bit_cast<typename Format<T>::Bits>(value);
}

template <class T>
bool is_nan(T value) {
  return std::isnan(to_compute(value));
}

// The same bits, or both a NaN: which one is up to the processor.
template <class T>
bool same(T a, T b) {
  return bits(a) == bits(b) || (is_nan(a) && is_nan(b));
}

// Half of the distance from 1 to the next number, and the smallest number.
template <class T>
inline constexpr double kUnit = 1.0 / static_cast<double>(uint64_t{1} << Format<T>::digits);
template <class T>
long double smallest() {
  return std::ldexp(1.0L, Format<T>::smallest_exponent - Format<T>::digits + 1);
}

// What the definition may differ from the exact rotation: the sine product is rounded, then the fused
// sum, then the store of a 16-bit type; each by half a unit in its last place, or by half of the smallest
// number. The last term is for the reference itself.
template <class T>
long double rounding_bound(long double cosine_product, long double sine_product) {
  using C = Compute<T>;
  const long double exact = cosine_product + sine_product;
  const long double product = kUnit<C> * std::abs(sine_product) + smallest<C>() / 2;
  const long double sum = product + kUnit<C> * (std::abs(exact) + product) + smallest<C>() / 2;
  const bool narrow = sizeof(T) < sizeof(C);
  const long double store = narrow ? kUnit<T> * (std::abs(exact) + sum) + smallest<T>() / 2 : 0;
  const long double reference =
      2 * std::numeric_limits<long double>::epsilon() * (std::abs(cosine_product) + std::abs(sine_product));
  return sum + store + reference;
}

class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {}

  uint64_t word() { return engine_(); }
  int64_t between(int64_t low, int64_t high) {
    return low + static_cast<int64_t>(engine_() % static_cast<uint64_t>(high - low + 1));
  }
  bool one_in(int64_t n) { return between(1, n) == 1; }
  double between_minus_one_and_one() { return static_cast<double>(engine_() >> 11) * 0x1p-52 - 1; }

 private:
  std::mt19937_64 engine_;
};

// Zeros, subnormals, the smallest normal and the largest finite numbers, infinities, NaNs.
template <class T>
T special(Random& random) {
  using F = Format<T>;
  using Bits = typename F::Bits;
  constexpr int fraction = F::digits - 1;
  constexpr Bits top = (Bits{1} << F::exponent) - 1;
  constexpr Bits ones = (Bits{1} << fraction) - 1;
  const Bits exponents[] = {0, 1, top - 1, top};
  const Bits fractions[] = {0, 1, ones, static_cast<Bits>(random.word() & ones)};
  const Bits sign = static_cast<Bits>(random.between(0, 1));
  return std::bit_cast<T>(static_cast<Bits>(sign << (F::exponent + fraction) |
                                            exponents[random.between(0, 3)] << fraction |
                                            fractions[random.between(0, 3)]));
}

// At most 1; powers of two often, since they make ties.
template <class T>
T ordinary(Random& random) {
  const double value = random.one_in(4)
                           ? std::ldexp(random.one_in(2) ? 1 : -1, -static_cast<int>(random.between(0, 12)))
                           : random.between_minus_one_and_one();
  T result;
  store(&result, static_cast<Compute<T>>(value));
  return result;
}

// One value in `rarity` is special; none where it is 0.
template <class T>
std::vector<T> values(Random& random, int64_t count, int64_t rarity) {
  std::vector<T> result(static_cast<size_t>(count));
  for (T& value : result)
    value = rarity != 0 && random.one_in(rarity) ? special<T>(random) : ordinary<T>(random);
  return result;
}

// From a special value in every vector to hardly any.
inline int64_t any_rarity(Random& random) {
  constexpr int64_t rarities[] = {0, 4, 64, 1024};
  return rarities[random.between(0, 3)];
}

}  // namespace rope_ext::test
