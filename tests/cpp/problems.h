// Problems built by hand, and what the definition of the rotation makes of them.
#pragma once

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <deque>
#include <string>
#include <system_error>
#include <vector>

#include "core/problem.h"
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

enum class Rows { by_token, by_int32, by_int64 };

struct Side {
  int64_t heads = 3;
  int64_t kept_heads = 0;
  Order order = Order::token_head_element;
  Spacing spacing = {};
  int64_t target_gap = 0, target_ahead = 0;  // out of place
};

struct Call {
  Element element = Element::float32;
  Element table_element = Element::float32;
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
  bool table_per_head = false;
  Order table_order = Order::token_head_element;
  Spacing cos_spacing = {};
  Spacing sin_spacing = {};
  Rows rows = Rows::by_token;
  bool positions_per_batch = false;
  Spacing positions_spacing = {};
  int64_t rarity = 0;  // of special values
  Edge edge = Edge::end;
};

inline std::ostream& operator<<(std::ostream& out, Spacing spacing) {
  return out << spacing.ahead << "+" << spacing.innermost << "+" << spacing.gap;
}

inline std::ostream& operator<<(std::ostream& out, const Call& call) {
  out << call.element << " tables " << call.table_element
      << (call.interleaved ? " interleaved" : " half-split") << (call.inverse ? " inverse" : "")
      << (call.in_place ? " in place" : " out of place") << " batch " << testing::PrintToString(call.batch)
      << " tokens " << call.tokens << " head_dim " << call.head_dim << " start " << call.start << " pairs "
      << call.pairs;
  for (const Side& side : call.sides)
    out << " [heads " << side.heads << " kept " << side.kept_heads << " order "
        << static_cast<int>(side.order) << " spacing " << side.spacing << " target gap " << side.target_gap
        << " ahead " << side.target_ahead << "]";
  return out << " table per batch " << call.table_per_batch << " per head " << call.table_per_head
             << " order " << static_cast<int>(call.table_order) << " cos " << call.cos_spacing << " sin "
             << call.sin_spacing << " rows " << static_cast<int>(call.rows) << " positions per batch "
             << call.positions_per_batch << " spacing " << call.positions_spacing << " rarity "
             << call.rarity;
}

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
    add_tables(random);
    if (call.rows != Rows::by_token) add_positions(random);
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

  // body(x, y, cos, sin, place of x in the result, place of y)
  template <class Body>
  void for_every_pair(int v, Body body) const {
    const View& view = problem_.view[v];
    const std::vector<T>& source = before(v);
    const Strides &cos = problem_.angles.cos.strides, &sin = problem_.angles.sin.strides;
    for_every_token([&](const Index& batch, int64_t token) {
      const int64_t row = row_of(batch, token);
      for (int64_t head = 0; head < view.heads; ++head) {
        for (int64_t i = 0; i < call_.pairs; ++i) {
          const int64_t x = call_.start + (call_.interleaved ? 2 * i : i);
          const int64_t y = x + (call_.interleaved ? 1 : call_.pairs);
          const C c = static_cast<C>(cos_[place(cos, batch, row, head, i)]);
          const C s = static_cast<C>(sin_[place(sin, batch, row, head, i)]);
          body(source[place(view.from, batch, token, head, x)],
               source[place(view.from, batch, token, head, y)], c, call_.inverse ? -s : s,
               place(view.to, batch, token, head, x), place(view.to, batch, token, head, y));
        }
      }
    });
  }

  static size_t place(const Strides& strides, const Index& batch, int64_t token, int64_t head,
                      int64_t element) {
    int64_t sum = token * strides.token + head * strides.head + element * strides.element;
    for (size_t d = 0; d < batch.size(); ++d) sum += batch[d] * strides.batch[d];
    return static_cast<size_t>(sum);
  }

  int64_t row_of(const Index& batch, int64_t token) const {
    if (call_.rows == Rows::by_token) return token;
    const Positions& positions = problem_.angles.positions;
    int64_t at = token * positions.token;
    for (size_t d = 0; d < batch.size(); ++d) at += batch[d] * positions.batch[d];
    return positions_[static_cast<size_t>(at)];
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
    angles.element = call_.table_element;
    angles.inverse = call_.inverse;
    angles.rows = call_.tokens + (call_.rows == Rows::by_token ? 0 : 3);
    angles.cos = add_table(cos_, call_.cos_spacing, random);
    angles.sin = add_table(sin_, call_.sin_spacing, random);
  }

  Table add_table(std::vector<double>& numbers, Spacing spacing, Random& random) {
    const Index ones(call_.batch.size(), 1);
    const int64_t heads = call_.table_per_head ? call_.sides[0].heads : 1;
    Layout layout =
        lay_out({call_.table_per_batch ? call_.batch : ones, problem_.angles.rows, heads, call_.pairs},
                call_.table_order, spacing);
    if (!call_.table_per_batch) std::fill_n(layout.strides.batch, kBatchDims, 0);
    if (!call_.table_per_head) layout.strides.head = 0;
    return visit(call_.table_element, [&](auto element) -> Table {
      const auto table = values<decltype(element)>(random, layout.extent, call_.rarity);
      for (const auto value : table) numbers.push_back(to_compute(value));
      return {keep(table, spacing.ahead), layout.strides};
    });
  }

  // Runs of rows one behind the other, as in a batch of sequences, and jumps.
  void add_positions(Random& random) {
    const Index ones(call_.batch.size(), 1);
    const Layout layout = lay_out({call_.positions_per_batch ? call_.batch : ones, call_.tokens, 1, 1},
                                  Order::element_head_token, call_.positions_spacing);
    int64_t row = 0;
    for (int64_t i = 0; i < layout.extent; ++i) {
      row = random.one_in(4) ? random.between(0, problem_.angles.rows - 1) : (row + 1) % problem_.angles.rows;
      positions_.push_back(row);
    }
    Positions& positions = problem_.angles.positions;
    positions.wide = call_.rows == Rows::by_int64;
    if (positions.wide) {
      positions.data = keep(positions_, call_.positions_spacing.ahead);
    } else {
      positions.data =
          keep(std::vector<int32_t>(positions_.begin(), positions_.end()), call_.positions_spacing.ahead);
    }
    if (call_.positions_per_batch) std::copy_n(layout.strides.batch, kBatchDims, positions.batch);
    positions.token = layout.strides.token;
  }

  void define(int v) {
    Tensor& tensor = tensors_[v];
    for_every_pair(v, [&](T x, T y, C cos, C sin, size_t x_place, size_t y_place) {
      const Pair<C> turned = rotate(Pair<C>{to_compute(x), to_compute(y)}, cos, sin);
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
  std::vector<double> cos_, sin_;
  std::vector<int64_t> positions_;
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
      const auto expect_near = [&](long double cosine_product, long double sine_product, T value) {
        EXPECT_LE(std::abs(to_compute(value) - (cosine_product + sine_product)),
                  rounding_bound<T>(cosine_product, sine_product))
            << call << " view " << v;
      };
      rotation.for_every_pair(
          v, [&](T x, T y, long double cos, long double sin, size_t x_place, size_t y_place) {
            expect_near(to_compute(x) * cos, -to_compute(y) * sin, result[x_place]);
            expect_near(to_compute(y) * cos, to_compute(x) * sin, result[y_place]);
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
            .table_element = tables[random.between(0, 2)],
            .interleaved = flip(),
            .inverse = flip(),
            .in_place = flip(),
            .tokens = random.between(1, random.one_in(8) ? 90 : 9),
            .pairs = random.between(1, random.one_in(8) ? 300 : 40),
            .table_per_batch = flip(),
            .table_per_head = random.one_in(4),
            .table_order = any_order(),
            .cos_spacing = any_spacing(),
            .sin_spacing = any_spacing(),
            .rows = static_cast<Rows>(random.between(0, 2)),
            .positions_per_batch = flip(),
            .positions_spacing = any_spacing(),
            .rarity = any_rarity(random),
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
  if (call.table_per_head) call.sides.back().heads = call.sides.front().heads;
  return call;
}

}  // namespace rope_ext::test
