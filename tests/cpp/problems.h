// Problems built by hand, and what the definition of the rotation makes of them.
#pragma once

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <deque>
#include <numbers>
#include <stdexcept>
#include <string>
#include <system_error>
#include <vector>

#include "core/angle.h"
#include "core/problem.h"
#include "core/rotate.h"
#include "values.h"

namespace rope_ext::test {

// Addresses that nobody may touch, but for the pages that are opened. What is not open takes no memory.
class AddressSpace {
 public:
  explicit AddressSpace(size_t bytes) : bytes_(up(bytes)) {
    begin_ = mmap(nullptr, bytes_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (begin_ == MAP_FAILED) throw std::system_error(errno, std::generic_category(), "mmap");
  }
  ~AddressSpace() { munmap(begin_, bytes_); }
  AddressSpace(const AddressSpace&) = delete;
  AddressSpace& operator=(const AddressSpace&) = delete;

  static size_t page() { return static_cast<size_t>(sysconf(_SC_PAGESIZE)); }
  static size_t up(size_t bytes) { return (bytes + page() - 1) / page() * page(); }

  char* begin() { return static_cast<char*>(begin_); }
  void open(size_t first, size_t bytes) {
    const size_t from = first / page() * page();
    if (mprotect(begin() + from, up(first + bytes) - from, PROT_READ | PROT_WRITE) != 0)
      throw std::system_error(errno, std::generic_category(), "mprotect");
  }

 private:
  void* begin_;
  size_t bytes_;
};

enum class Edge { begin, end };

// Memory that begins or ends at a page that nobody may touch: masked loads and stores are invisible to
// the address sanitizer, but not to the processor.
class Memory {
 public:
  template <class T>
  Memory(const std::vector<T>& values, Edge edge)
      : space_(AddressSpace::up(values.size() * sizeof(T)) + 2 * AddressSpace::page()) {
    const size_t wanted = values.size() * sizeof(T), usable = AddressSpace::up(wanted);
    space_.open(AddressSpace::page(), usable);
    data_ = space_.begin() + AddressSpace::page() + (edge == Edge::begin ? 0 : usable - wanted);
    std::memcpy(data_, values.data(), wanted);
  }

  void* data() { return data_; }

 private:
  AddressSpace space_;
  void* data_;
};

// From the outermost dimension to the innermost; batch dimensions lie outside of them.
enum class Order { token_head_element, head_token_element, element_head_token };
inline constexpr Order kOrders[] = {Order::token_head_element, Order::head_token_element,
                                    Order::element_head_token};

// The stride of the innermost dimension, what is left unused behind every row of the others, and ahead of
// the first.
struct Spacing {
  int64_t innermost = 1, gap = 0, ahead = 0;
};

struct Sizes {
  std::vector<int64_t> batch;
  int64_t tokens, heads, elements;
};

struct Layout {
  Strides strides;
  int64_t extent;  // from the first element to the last
};

inline Layout lay_out(const Sizes& sizes, Order order, Spacing spacing) {
  Layout layout{{}, 1};
  int64_t stride = spacing.innermost;
  const auto add = [&](int64_t size, int64_t& target) {
    target = stride;
    layout.extent += std::max<int64_t>(size - 1, 0) * stride;
    stride = layout.extent + spacing.gap;
  };
  const auto token = [&] { add(sizes.tokens, layout.strides.token); };
  const auto head = [&] { add(sizes.heads, layout.strides.head); };
  const auto element = [&] { add(sizes.elements, layout.strides.element); };
  switch (order) {
    case Order::token_head_element: element(), head(), token(); break;
    case Order::head_token_element: element(), token(), head(); break;
    case Order::element_head_token: token(), head(), element(); break;
  }
  for (size_t d = sizes.batch.size(); d-- > 0;) add(sizes.batch[d], layout.strides.batch[d]);
  return layout;
}

// An axis being a head.
inline Strides strides_of(const Positions& positions) {
  Strides strides{.batch = {}, .token = positions.token, .head = positions.axis, .element = 0};
  std::copy_n(positions.batch, kBatchDims, strides.batch);
  return strides;
}

// An axis being a token.
inline Strides strides_of(const Frequencies& frequencies) {
  return {.batch = {}, .token = frequencies.axis, .head = frequencies.head, .element = frequencies.pair};
}

// Where an element lies behind the first.
inline size_t place(const Strides& strides, const std::vector<int64_t>& batch, int64_t token, int64_t head,
                    int64_t element) {
  int64_t sum = token * strides.token + head * strides.head + element * strides.element;
  for (size_t d = 0; d < batch.size(); ++d) sum += batch[d] * strides.batch[d];
  return static_cast<size_t>(sum);
}

enum class Source { tables, turns, radians };

// Floating positions are for radians.
enum class PositionType { none, int32, int64, float32, float64 };

// Calls body with a position of that type.
template <class Body>
auto visit(PositionType type, Body body) {
  switch (type) {
    case PositionType::none: break;
    case PositionType::int32: return body(int32_t{});
    case PositionType::int64: return body(int64_t{});
    case PositionType::float32: return body(float{});
    case PositionType::float64: return body(double{});
  }
  throw std::logic_error("there are no positions");
}

struct Side {
  int64_t heads = 3;
  int64_t kept_heads = 0;
  Order order = Order::token_head_element;
  Spacing spacing = {};
  int64_t target_gap = 0, target_ahead = 0;  // out of place
};

struct Call {
  Element element = Element::float32;
  Source source = Source::tables;
  Element angle_element = Element::float32;  // of tables or radians
  bool interleaved = false;
  bool inverse = false;
  bool in_place = true;
  std::vector<int64_t> batch = {2};
  int64_t tokens = 3;
  int64_t head_dim = 16;
  int64_t start = 0;
  int64_t pairs = 8;
  std::vector<Side> sides = {{.heads = 3}, {.heads = 2}};
  bool table_per_batch = false;
  bool angles_per_head = false;
  Order angle_order = Order::token_head_element;
  Spacing cos_spacing = {};
  Spacing sin_spacing = {};
  int64_t axes = 1;  // of frequencies and their positions
  Spacing frequency_spacing = {};
  double scale = 1;
  PositionType positions = PositionType::none;
  int64_t position_bits = 63;  // how far those of frequencies lie on either side of zero
  bool positions_per_batch = false;
  Order position_order = Order::element_head_token;  // an axis being a head
  Spacing positions_spacing = {};
  int64_t rarity = 0;        // of special values in query and key
  int64_t angle_rarity = 0;  // and in tables, radians and floating positions
  Edge edge = Edge::end;
};

inline std::ostream& operator<<(std::ostream& out, Spacing spacing) {
  return out << spacing.ahead << "+" << spacing.innermost << "+" << spacing.gap;
}

inline std::ostream& operator<<(std::ostream& out, const Call& call) {
  out << call.element << " source " << static_cast<int>(call.source) << " of " << call.angle_element
      << (call.interleaved ? " interleaved" : " half-split") << (call.inverse ? " inverse" : "")
      << (call.in_place ? " in place" : " out of place") << " batch " << testing::PrintToString(call.batch)
      << " tokens " << call.tokens << " head_dim " << call.head_dim << " start " << call.start << " pairs "
      << call.pairs;
  for (const Side& side : call.sides)
    out << " [heads " << side.heads << " kept " << side.kept_heads << " order "
        << static_cast<int>(side.order) << " spacing " << side.spacing << " target gap " << side.target_gap
        << " ahead " << side.target_ahead << "]";
  return out << " table per batch " << call.table_per_batch << " angles per head " << call.angles_per_head
             << " order " << static_cast<int>(call.angle_order) << " cos " << call.cos_spacing << " sin "
             << call.sin_spacing << " axes " << call.axes << " frequencies " << call.frequency_spacing
             << " scale " << call.scale << " positions " << static_cast<int>(call.positions) << " bits "
             << call.position_bits << " per batch " << call.positions_per_batch << " order "
             << static_cast<int>(call.position_order) << " spacing " << call.positions_spacing << " rarity "
             << call.rarity << " of angles " << call.angle_rarity;
}

// Calls body with a frequency of the call's type.
template <class Body>
auto visit_frequency(const Call& call, Body body) {
  return call.source == Source::turns ? body(Turns{}) : visit(call.angle_element, body);
}

// What a cosine or sine of turns may differ from the exact one.
template <class C>
inline constexpr long double kCosSinError = std::is_same_v<C, float> ? 1.26e-7L : 3e-16L;

// A call with memory of its own. T is the type of query and key.
template <class T>
class Rotation {
 public:
  using C = Compute<T>;
  using Index = std::vector<int64_t>;

  Rotation(const Call& call, Random& random) : call_(call) {
    problem_.element = call.element;
    problem_.interleaved = call.interleaved;
    problem_.batch_dims = static_cast<int>(call.batch.size());
    problem_.batches = 1;
    for (size_t d = 0; d < call.batch.size(); ++d) {
      problem_.batch_sizes[d] = call.batch[d];
      problem_.batches *= call.batch[d];
    }
    problem_.tokens = call.tokens;
    problem_.head_dim = call.head_dim;
    problem_.start = call.start;
    problem_.pairs = call.pairs;
    problem_.views = static_cast<int>(call.sides.size());
    for (const Side& side : call.sides) add(side, random);
    problem_.angles.inverse = call.inverse;
    call.source == Source::tables ? add_tables(random) : add_frequencies(random);
    if (call.positions != PositionType::none) add_positions(random);
    for (int v = 0; v < problem_.views; ++v) define(v);
  }

  const Problem& problem() const { return problem_; }

  const std::vector<T>& before(int v) const { return tensors_[v].source; }
  // By the definition, one pair behind the other; every other element as it was.
  const std::vector<T>& expected(int v) const { return tensors_[v].expected; }
  std::vector<T> result(int v) const {
    const T* target = tensors_[v].target;
    return {target, target + tensors_[v].expected.size()};
  }

  // Of some token a head's pair.
  struct At {
    const Index& batch;
    int64_t token, head, pair;
  };

  // body(where, x, y, place of x in the result, place of y)
  template <class Body>
  void for_every_pair(int v, Body body) const {
    const View& view = problem_.view[v];
    const std::vector<T>& source = before(v);
    for_every_token([&](const Index& batch, int64_t token) {
      for (int64_t head = 0; head < view.heads; ++head) {
        for (int64_t i = 0; i < call_.pairs; ++i) {
          const int64_t x = call_.start + (call_.interleaved ? 2 * i : i);
          const int64_t y = x + (call_.interleaved ? 1 : call_.pairs);
          body(At{batch, token, head, i}, source[place(view.from, batch, token, head, x)],
               source[place(view.from, batch, token, head, y)], place(view.to, batch, token, head, x),
               place(view.to, batch, token, head, y));
        }
      }
    });
  }

  // By the definition; x is the cosine.
  Pair<C> cos_sin(const At& at) const {
    const Pair<C> angle = call_.source == Source::tables ? of_tables(at) : of_frequencies(at);
    return {angle.x, call_.inverse ? -angle.y : angle.y};
  }

  // And what the cosine and sine of the definition may differ from them by.
  struct ExactAngle {
    long double cos, sin, error;
  };

  ExactAngle exact_cos_sin(const At& at) const {
    if (call_.source == Source::tables) {
      const Pair<C> angle = cos_sin(at);
      return {angle.x, angle.y, 0};
    }
    constexpr long double epsilon = std::numeric_limits<long double>::epsilon();
    constexpr long double last_place = std::numbers::pi_v<long double> / (uint64_t{1} << 63);  // of turns
    Pair<long double> angle{1, 0};
    long double error = kCosSinError<C> + 2 * kUnit<C>;  // of the cosine, and of its product with the scale
    for_every_axis(at, [&](const Position& position, const Frequency& frequency) {
      // In radians, exact as a sum of two.
      long double main, rest = 0;
      if (call_.source == Source::turns) {
        main = last_place * static_cast<long double>(
                                static_cast<int64_t>(static_cast<Turns>(position.whole) * frequency.turns));
      } else {
        const bool floating = problem_.angles.positions.floating;
        const long double factor =
            floating ? number(position.floating) : static_cast<long double>(position.whole);
        main = factor * number(frequency.radians);
        rest = std::fma(factor, number(frequency.radians), -main);
        error += last_place / 2 * (floating ? 1 : std::abs(factor));
      }
      const long double cos = std::cos(main) - rest * std::sin(main);
      const long double sin = std::sin(main) + rest * std::cos(main);
      angle = {angle.x * cos - angle.y * sin, angle.y * cos + angle.x * sin};
      error += 16 * epsilon;
    });
    const long double scale = call_.scale;
    return {scale * angle.x, scale * (call_.inverse ? -angle.y : angle.y), std::abs(scale) * error};
  }

  int64_t row_of(const Index& batch, int64_t token) const {
    return call_.positions == PositionType::none
               ? token
               : positions_[place(strides_of(problem_.angles.positions), batch, token, 0, 0)].whole;
  }

  template <class Body>
  void for_every_token(Body body) const {
    Index batch(call_.batch.size());
    for (int64_t flat = 0; flat < problem_.batches; ++flat) {
      int64_t rest = flat;
      for (size_t d = batch.size(); d-- > 0; rest /= call_.batch[d]) batch[d] = rest % call_.batch[d];
      for (int64_t token = 0; token < call_.tokens; ++token) body(batch, token);
    }
  }

 private:
  struct Tensor {
    std::vector<T> source, expected;
    const T* target;
  };
  struct Position {
    int64_t whole;
    Exact floating;
  };
  struct Frequency {
    Turns turns;
    Exact radians;
  };

  static long double number(Exact exact) {
    const long double value = std::ldexp(static_cast<long double>(exact.significand), exact.exponent);
    return exact.negative ? -value : value;
  }

  Pair<C> of_tables(const At& at) const {
    const int64_t row = row_of(at.batch, at.token);
    const auto read = [&](const std::vector<double>& numbers, const Table& table) {
      return static_cast<C>(numbers[place(table.strides, at.batch, row, at.head, at.pair)]);
    };
    return {read(cos_, problem_.angles.cos), read(sin_, problem_.angles.sin)};
  }

  Pair<C> of_frequencies(const At& at) const {
    Turns turns = 0;
    bool finite = true;
    for_every_axis(at, [&](const Position& position, const Frequency& frequency) {
      const bool floating = problem_.angles.positions.floating;
      turns += floating ? turns_of(position.floating, frequency.radians)
                        : static_cast<Turns>(position.whole) * frequency.turns;
      finite &= position.floating.finite && frequency.radians.finite;
    });
    if (!finite) return {static_cast<C>(NAN), static_cast<C>(NAN)};
    const Pair<C> angle = rope_ext::cos_sin(turns, C{});
    return {multiply(angle.x, static_cast<C>(call_.scale)), multiply(angle.y, static_cast<C>(call_.scale))};
  }

  // body(position, frequency)
  template <class Body>
  void for_every_axis(const At& at, Body body) const {
    for (int64_t axis = 0; axis < call_.axes; ++axis) {
      const Position position =
          call_.positions == PositionType::none
              ? Position{at.token, kZero}
              : positions_[place(strides_of(problem_.angles.positions), at.batch, at.token, axis, 0)];
      body(position,
           frequencies_[place(strides_of(problem_.angles.frequencies), {}, axis, at.head, at.pair)]);
    }
  }

  void add(const Side& side, Random& random) {
    const Sizes sizes{call_.batch, call_.tokens, side.heads + side.kept_heads, call_.head_dim};
    const Layout from = lay_out(sizes, side.order, side.spacing);
    const Layout to =
        call_.in_place ? from : lay_out(sizes, side.order, {side.spacing.innermost, side.target_gap});
    const std::vector<T> source = values<T>(random, from.extent, call_.rarity);
    const std::vector<T> target = call_.in_place ? source : values<T>(random, to.extent, 0);
    T* const source_data = keep(source, side.spacing.ahead);
    T* const target_data = call_.in_place ? source_data : keep(target, side.target_ahead);
    problem_.view[tensors_.size()] = {.source = source_data + call_.start * from.strides.element,
                                      .target = target_data + call_.start * to.strides.element,
                                      .from = from.strides,
                                      .to = to.strides,
                                      .heads = side.heads,
                                      .kept_heads = side.kept_heads};
    tensors_.push_back({source, target, target_data});
  }

  template <class V>
  V* keep(std::vector<V> values, int64_t ahead) {
    values.insert(values.begin(), static_cast<size_t>(ahead), V{});
    return static_cast<V*>(memory_.emplace_back(values, call_.edge).data()) + ahead;
  }

  void add_tables(Random& random) {
    Angles& angles = problem_.angles;
    angles.element = call_.angle_element;
    angles.rows = call_.tokens + (call_.positions == PositionType::none ? 0 : 3);
    angles.cos = add_table(cos_, call_.cos_spacing, random);
    angles.sin = add_table(sin_, call_.sin_spacing, random);
  }

  Table add_table(std::vector<double>& numbers, Spacing spacing, Random& random) {
    const Index ones(call_.batch.size(), 1);
    const int64_t heads = call_.angles_per_head ? call_.sides[0].heads : 1;
    Layout layout =
        lay_out({call_.table_per_batch ? call_.batch : ones, problem_.angles.rows, heads, call_.pairs},
                call_.angle_order, spacing);
    if (!call_.table_per_batch) std::fill_n(layout.strides.batch, kBatchDims, 0);
    if (!call_.angles_per_head) layout.strides.head = 0;
    return visit(call_.angle_element, [&](auto element) -> Table {
      const auto table = values<decltype(element)>(random, layout.extent, call_.angle_rarity);
      for (const auto value : table) numbers.push_back(to_compute(value));
      return {keep(table, spacing.ahead), layout.strides};
    });
  }

  void add_frequencies(Random& random) {
    const int64_t heads = call_.angles_per_head ? call_.sides[0].heads : 1;
    Layout layout = lay_out({{}, call_.axes, heads, call_.pairs}, call_.angle_order, call_.frequency_spacing);
    if (!call_.angles_per_head) layout.strides.head = 0;
    problem_.angles.frequencies = {.data = keep_frequencies(layout.extent, random),
                                   .fixed = call_.source == Source::turns,
                                   .element = call_.angle_element,
                                   .axes = call_.axes,
                                   .axis = layout.strides.token,
                                   .head = layout.strides.head,
                                   .pair = layout.strides.element,
                                   .scale = call_.scale};
  }

  const void* keep_frequencies(int64_t extent, Random& random) {
    return visit_frequency(call_, [&]<class F>(F) -> const void* {
      std::vector<F> frequencies(static_cast<size_t>(extent));
      if constexpr (std::is_same_v<F, Turns>) {
        for (Turns& turns : frequencies) {
          turns = random.word() >> (random.one_in(2) ? 0 : random.between(0, 40));
          frequencies_.push_back({turns, kZero});
        }
      } else {
        frequencies = values<F>(random, extent, call_.angle_rarity);
        for (const F radians : frequencies) {
          const Exact parts = exact(to_compute(radians));
          frequencies_.push_back({turns_of(parts), parts});
        }
      }
      return keep(frequencies, call_.frequency_spacing.ahead);
    });
  }

  void add_positions(Random& random) {
    const Index ones(call_.batch.size(), 1);
    const Layout layout =
        lay_out({call_.positions_per_batch ? call_.batch : ones, call_.tokens, call_.axes, 1},
                call_.position_order, call_.positions_spacing);
    Positions& positions = problem_.angles.positions;
    visit(call_.positions, [&]<class P>(P) {
      positions.wide = sizeof(P) == sizeof(int64_t);
      positions.floating = std::is_floating_point_v<P>;
      positions.data = keep(any_positions<P>(layout.extent, random), call_.positions_spacing.ahead);
    });
    if (call_.positions_per_batch) std::copy_n(layout.strides.batch, kBatchDims, positions.batch);
    positions.token = layout.strides.token;
    positions.axis = layout.strides.head;
  }

  template <class P>
  std::vector<P> any_positions(int64_t count, Random& random) {
    if constexpr (std::is_floating_point_v<P>) {
      std::vector<P> result = values<P>(random, count, call_.angle_rarity);
      for (P& value : result) {
        if (std::abs(value) <= 1) value = std::ldexp(value, static_cast<int>(call_.position_bits));
        positions_.push_back({0, exact(value)});
      }
      return result;
    } else {
      std::vector<P> result;
      // Runs one behind the other, as in a batch of sequences, and jumps.
      const int64_t bits = std::min<int64_t>(call_.position_bits, 8 * sizeof(P) - 1);
      const bool of_rows = call_.source == Source::tables;
      const int64_t last = of_rows ? problem_.angles.rows - 1 : INT64_MAX >> (63 - bits);
      const int64_t first = of_rows ? 0 : -last - 1;
      int64_t position = 0;
      for (int64_t i = 0; i < count; ++i) {
        if (random.one_in(4)) {
          position = of_rows            ? random.between(first, last)
                     : random.one_in(4) ? last
                                        : static_cast<int64_t>(random.word()) >> (63 - bits);
        } else {
          position = position == last ? first : position + 1;
        }
        positions_.push_back({position, kZero});
        result.push_back(static_cast<P>(position));
      }
      return result;
    }
  }

  void define(int v) {
    Tensor& tensor = tensors_[v];
    for_every_pair(v, [&](const At& at, T x, T y, size_t x_place, size_t y_place) {
      const Pair<C> by = cos_sin(at);
      const Pair<C> turned = rotate(Pair<C>{to_compute(x), to_compute(y)}, by.x, by.y);
      store(&tensor.expected[x_place], turned.x);
      store(&tensor.expected[y_place], turned.y);
    });
    if (call_.in_place) return;
    const View& view = problem_.view[v];
    for_every_token([&](const Index& batch, int64_t token) {
      for (int64_t head = 0; head < view.heads + view.kept_heads; ++head) {
        for (int64_t e = 0; e < call_.head_dim; ++e) {
          const bool turned = head < view.heads && call_.start <= e && e < call_.start + 2 * call_.pairs;
          if (!turned)
            tensor.expected[place(view.to, batch, token, head, e)] =
                tensor.source[place(view.from, batch, token, head, e)];
        }
      }
    });
  }

  const Call call_;
  Problem problem_{};
  std::deque<Memory> memory_;
  std::vector<Tensor> tensors_;
  static constexpr Exact kZero{0, 0, false, true};
  std::vector<double> cos_, sin_;
  std::vector<Frequency> frequencies_;
  std::vector<Position> positions_;
};

// Calls body with a Rotation of the type that the call names.
template <class Body>
void with_rotation(const Call& call, Random& random, Body body) {
  visit(call.element, [&](auto element) {
    Rotation<decltype(element)> rotation(call, random);
    body(rotation);
  });
}

// The first element that differs, in words; empty where none does.
template <class T>
std::string difference(const std::vector<T>& expected, const std::vector<T>& result) {
  for (size_t i = 0; i < expected.size(); ++i) {
    if (!same(expected[i], result[i]))
      return "element " + std::to_string(i) + " must be " + std::to_string(to_compute(expected[i])) +
             ", got " + std::to_string(to_compute(result[i]));
  }
  return {};
}

// rotate(problem) must give the bits of the definition, and change nothing else.
template <class Rotate>
void expect_as_defined(const Call& call, Random& random, Rotate rotate) {
  with_rotation(call, random, [&](auto& rotation) {
    rotate(rotation.problem());
    for (int v = 0; v < rotation.problem().views; ++v)
      EXPECT_EQ("", difference(rotation.expected(v), rotation.result(v))) << call << " view " << v;
  });
}

// rotate(problem) must round as often as the definition may, and no more.
template <class Rotate>
void expect_near_the_exact_rotation(const Call& call, Random& random, Rotate rotate) {
  with_rotation(call, random, [&]<class T>(Rotation<T>& rotation) {
    rotate(rotation.problem());
    for (int v = 0; v < rotation.problem().views; ++v) {
      const std::vector<T> result = rotation.result(v);
      const auto expect_near = [&](long double cosine_product, long double sine_product, long double of_angle,
                                   T value) {
        EXPECT_LE(std::abs(to_compute(value) - (cosine_product + sine_product)),
                  rounding_bound<T>(cosine_product, sine_product) + of_angle)
            << call << " view " << v;
      };
      rotation.for_every_pair(v, [&](const auto& at, T x_before, T y_before, size_t x_place, size_t y_place) {
        const auto by = rotation.exact_cos_sin(at);
        const long double x = to_compute(x_before), y = to_compute(y_before);
        // The roundings are those of products that are off by as much.
        const long double of_angle = by.error * (std::abs(x) + std::abs(y)) * (1 + 4 * kUnit<T>);
        expect_near(x * by.cos, -y * by.sin, of_angle, result[x_place]);
        expect_near(y * by.cos, x * by.sin, of_angle, result[y_place]);
      });
    }
  });
}

// Calls check for every element and both pairings, in place and not.
template <class Check>
void for_every_kind(Call call, Check check) {
  for (const Element element : kElements) {
    for (const bool interleaved : {false, true}) {
      for (const bool in_place : {true, false}) {
        call.element = element;
        call.interleaved = interleaved;
        call.in_place = in_place;
        check(call);
        if (testing::Test::HasFailure()) return;
      }
    }
  }
}

struct FrequencyKind {
  Source source;
  Element element;
  PositionType positions;
};
inline constexpr FrequencyKind kFrequencyKinds[] = {
    {Source::turns, Element::float64, PositionType::none},
    {Source::turns, Element::float64, PositionType::int32},
    {Source::turns, Element::float64, PositionType::int64},
    {Source::radians, Element::float32, PositionType::none},
    {Source::radians, Element::float32, PositionType::int32},
    {Source::radians, Element::float32, PositionType::int64},
    {Source::radians, Element::float32, PositionType::float32},
    {Source::radians, Element::float32, PositionType::float64},
    {Source::radians, Element::float64, PositionType::none},
    {Source::radians, Element::float64, PositionType::int32},
    {Source::radians, Element::float64, PositionType::int64},
    {Source::radians, Element::float64, PositionType::float32},
    {Source::radians, Element::float64, PositionType::float64},
};

// The same with angles made of frequencies.
inline Call by_frequencies(Call call, FrequencyKind kind) {
  call.source = kind.source;
  call.angle_element = kind.element;
  call.positions = kind.positions;
  return call;
}

// Every kind and up to three axes in turn: of the n-th call in a row.
inline Call by_frequencies_in_turn(Call call, int64_t n) {
  call.axes = 1 + n % 3;
  return by_frequencies(call, kFrequencyKinds[n % std::size(kFrequencyKinds)]);
}

template <class Check>
void for_every_frequency_kind(const Call& call, Check check) {
  for (const FrequencyKind kind : kFrequencyKinds) check(by_frequencies(call, kind));
}

inline Call any_call(Random& random) {
  const auto flip = [&] { return random.one_in(2); };
  const auto any_order = [&] { return kOrders[random.between(0, 2)]; };
  const auto rarely = [&](int64_t low, int64_t high, int64_t otherwise) {
    return random.one_in(3) ? random.between(low, high) : otherwise;
  };
  const auto any_spacing = [&] { return Spacing{rarely(2, 3, 1), rarely(1, 9, 0), rarely(1, 9, 0)}; };
  const Element element = kElements[random.between(0, 3)];
  const Element tables[] = {element, Element::float32, Element::float64};
  Call call{.element = element,
            .angle_element = tables[random.between(0, 2)],
            .interleaved = flip(),
            .inverse = flip(),
            .in_place = flip(),
            .tokens = random.between(1, random.one_in(8) ? 90 : 9),
            .pairs = random.between(1, random.one_in(8) ? 300 : 40),
            .table_per_batch = flip(),
            .angles_per_head = random.one_in(4),
            .angle_order = any_order(),
            .cos_spacing = any_spacing(),
            .sin_spacing = any_spacing(),
            .positions = static_cast<PositionType>(random.between(0, 2)),
            .positions_per_batch = flip(),
            .position_order = any_order(),
            .positions_spacing = any_spacing(),
            .rarity = any_rarity(random),
            .angle_rarity = any_rarity(random),
            .edge = flip() ? Edge::begin : Edge::end};
  call.batch.assign(static_cast<size_t>(random.between(0, 3)), 1);
  for (int64_t& size : call.batch) size = random.between(1, 3);
  call.start = flip() ? 0 : random.between(0, 9);
  call.head_dim = call.start + 2 * call.pairs + (flip() ? 0 : random.between(0, 9));
  call.sides.resize(static_cast<size_t>(random.between(1, 2)));
  for (Side& side : call.sides)
    side = {random.between(1, 7), flip() ? 0 : random.between(1, 3),
            any_order(),          any_spacing(),
            rarely(1, 9, 0),      rarely(1, 9, 0)};
  if (call.angles_per_head) call.sides.back().heads = call.sides.front().heads;
  if (flip()) return call;
  call.axes = random.one_in(20) ? kMaxAxes : rarely(2, 4, 1);
  call.frequency_spacing = any_spacing();
  call.scale = flip() ? 1 : 2 * random.between_minus_one_and_one();
  constexpr int64_t position_bits[] = {10, 31, 63};
  call.position_bits = position_bits[random.between(0, 2)];
  return by_frequencies(call, kFrequencyKinds[random.between(0, std::size(kFrequencyKinds) - 1)]);
}

}  // namespace rope_ext::test
