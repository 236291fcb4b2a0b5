#include <gtest/gtest.h>

#include <algorithm>
#include <string_view>

#include "cpu/launch.h"
#include "instruction_sets.h"
#include "problems.h"
#include "walks.h"

namespace rope_ext::test {
namespace {

class Launch : public OnInstructionSet {
 protected:
  void SetUp() override {
    if (!on_cuda()) OnInstructionSet::SetUp();
  }

  static void rotate(const Problem& problem) {
    if (on_cuda()) {
      launch(problem);
    } else {
      cpu::rotate_tokens(problem, 0, problem.batches * problem.tokens);
    }
  }

  // As threads would take them.
  static void rotate_in_pieces(const Problem& problem, Random& random) {
    if (on_cuda()) {
      launch(problem, shuffled(random.word()), {nullptr, kMultiprocessors[random.between(0, 2)]});
      return;
    }
    const int64_t tokens = problem.batches * problem.tokens, longest = random.between(1, 40);
    for (int64_t begin = 0; begin < tokens;) {
      const int64_t end = std::min(tokens, begin + random.between(1, longest));
      cpu::rotate_tokens(problem, begin, end);
      begin = end;
    }
  }

  // For every element and both pairings, in place and not. On CUDA a 16-bit table is of the query's type.
  static void expect_as_defined(const Call& call) {
    Random random(1);
    for_every_kind(call, [&](const Call& kind) {
      const bool another = bytes_of(kind.angle_element) == 2 && kind.angle_element != kind.element;
      if (!on_cuda() || !another) test::expect_as_defined(kind, random, rotate);
    });
  }

 private:
  static bool on_cuda() { return std::string_view(GetParam()) == "cuda"; }
};
INSTANTIATE_TEST_SUITE_P(, Launch, kInstructionSets, instruction_set_name);
INSTANTIATE_TEST_SUITE_P(OnTheHost, Launch, testing::Values("cuda"), instruction_set_name);

TEST_P(Launch, TakesTablesOfEveryElementAndStride) {
  for (const Element element : kElements) {
    for (const Spacing cos : {Spacing{1, 0}, Spacing{1, 5}, Spacing{3, 2}}) {
      for (const Spacing sin : {Spacing{1, 0}, Spacing{1, 5}, Spacing{2, 0}}) {
        expect_as_defined({.angle_element = element, .pairs = 8, .cos_spacing = cos, .sin_spacing = sin});
      }
    }
  }
}

TEST_P(Launch, TakesTablesThatAreTransposed) {
  expect_as_defined({.angle_order = Order::element_head_token});
}

TEST_P(Launch, TurnsBackwardsForTheInverse) {
  for (const Element element : kElements) expect_as_defined({.angle_element = element, .inverse = true});
  for_every_frequency_kind({.inverse = true}, expect_as_defined);
}

TEST_P(Launch, TakesEveryOrderOfTokensHeadsAndElements) {
  for (const Order query : kOrders) {
    for (const Order key : kOrders) {
      expect_as_defined({.sides = {{.heads = 3, .order = query}, {.heads = 2, .order = key}}});
      expect_as_defined({.sides = {{.heads = 19, .order = query, .spacing = {1, 2}},
                                   {.heads = 5, .order = key, .spacing = {2, 1}}}});
    }
  }
}

TEST_P(Launch, TurnsAQueryAlone) { expect_as_defined({.sides = {{.heads = 4}}}); }

TEST_P(Launch, WalksEveryBatchDimension) {
  expect_as_defined({.batch = {}});
  expect_as_defined({.batch = {2, 1, 3}});
  expect_as_defined({.batch = {2, 1, 2, 1, 2, 2}, .table_per_batch = true});
}

TEST_P(Launch, TakesATablePerBatch) {
  for (const Order order : kOrders)
    expect_as_defined({.batch = {2, 3}, .table_per_batch = true, .angle_order = order});
}

TEST_P(Launch, TakesATablePerHead) {
  for (const Order order : kOrders) {
    for (const bool per_batch : {false, true})
      expect_as_defined({.sides = {{.heads = 3}, {.heads = 3, .order = Order::head_token_element}},
                         .table_per_batch = per_batch,
                         .angles_per_head = true,
                         .angle_order = order});
  }
}

TEST_P(Launch, TakesTheRowsThatPositionsName) {
  for (const PositionType positions : {PositionType::int32, PositionType::int64}) {
    for (const bool per_batch : {false, true}) {
      for (const Spacing spacing : {Spacing{1, 0}, Spacing{2, 3}}) {
        for (const Element table : {Element::float16, Element::float32, Element::float64})
          expect_as_defined({.angle_element = table,
                             .batch = {2, 2},
                             .tokens = 9,
                             .positions = positions,
                             .positions_per_batch = per_batch,
                             .positions_spacing = spacing});
      }
    }
  }
}

TEST_P(Launch, TakesFrequenciesOfEveryStride) {
  for (const Order order : kOrders) {
    for (const Spacing spacing : {Spacing{1, 0}, Spacing{1, 5}, Spacing{3, 2}, Spacing{0, 1}}) {
      for (const bool per_head : {false, true})
        for_every_frequency_kind({.sides = {{.heads = 3}, {.heads = 3, .order = Order::head_token_element}},
                                  .angles_per_head = per_head,
                                  .angle_order = order,
                                  .axes = 2,
                                  .frequency_spacing = spacing},
                                 expect_as_defined);
    }
  }
}

TEST_P(Launch, SumsAnglesOverAxes) {
  for (const int64_t axes : {int64_t{1}, int64_t{2}, int64_t{3}, int64_t{4}, kMaxAxes})
    for_every_frequency_kind({.axes = axes, .positions_per_batch = true}, expect_as_defined);
}

TEST_P(Launch, TakesPositionsOfEveryStride) {
  for (const Order order : kOrders) {
    for (const Spacing spacing : {Spacing{1, 0}, Spacing{2, 3}, Spacing{0, 1}}) {
      for (const bool per_batch : {false, true})
        for_every_frequency_kind({.batch = {2, 2},
                                  .tokens = 5,
                                  .axes = 3,
                                  .positions_per_batch = per_batch,
                                  .position_order = order,
                                  .positions_spacing = spacing},
                                 expect_as_defined);
    }
  }
}

TEST_P(Launch, ScalesCosineAndSine) {
  for (const double scale : {0.0, -1.5, 0.1}) for_every_frequency_kind({.scale = scale}, expect_as_defined);
}

// They would lie outside of its memory.
TEST_P(Launch, ReadsNoFrequenciesOfHeadsThatAreKept) {
  for (const Order order : kOrders) {
    for (const Edge edge : {Edge::begin, Edge::end})
      for_every_frequency_kind({.sides = {{2, 9}, {2, 3, Order::head_token_element}},
                                .angles_per_head = true,
                                .angle_order = order,
                                .axes = 2,
                                .edge = edge},
                               expect_as_defined);
  }
}

TEST_P(Launch, GivesNaNWhereAnAngleIsNotFinite) {
  for_every_frequency_kind({.axes = 2, .angle_rarity = 4}, [](const Call& call) {
    if (call.source == Source::turns) return;
    expect_as_defined(call);
    Random random(1);
    with_rotation(call, random, [&]<class T>(const Rotation<T>& rotation) {
      const std::vector<T>& expected = rotation.expected(0);
      EXPECT_TRUE(std::any_of(expected.begin(), expected.end(), is_nan<T>)) << call;
      EXPECT_FALSE(std::all_of(expected.begin(), expected.end(), is_nan<T>)) << call;
    });
  });
}

TEST_P(Launch, IsNearTheExactRotationByFrequencies) {
  Random random(5);
  for (const int64_t bits : {8, 31}) {
    for (const int64_t axes : {1, 3}) {
      const Call call{.inverse = axes == 3, .axes = axes, .scale = 1.1, .position_bits = bits};
      for_every_frequency_kind(call, [&](const Call& with_frequencies) {
        for_every_kind(with_frequencies,
                       [&](const Call& kind) { expect_near_the_exact_rotation(kind, random, rotate); });
      });
    }
  }
}

TEST_P(Launch, IsNearTheExactRotationByTurnsAtAnyPosition) {
  Random random(6);
  for (const PositionType positions : {PositionType::int32, PositionType::int64}) {
    const Call call{.source = Source::turns, .tokens = 9, .axes = 2, .positions = positions};
    for_every_kind(call, [&](const Call& kind) { expect_near_the_exact_rotation(kind, random, rotate); });
  }
}

TEST_P(Launch, LeavesTheRestOfAHeadAlone) {
  for (const int64_t start : {0, 1, 5, 10}) {
    expect_as_defined({.head_dim = 20, .start = start, .pairs = 5});
    expect_as_defined({.head_dim = 20,
                       .start = start,
                       .pairs = 5,
                       .sides = {{.spacing = {2, 1}}, {.order = Order::element_head_token}}});
  }
}

TEST_P(Launch, LeavesTheHeadsBehindAlone) {
  for (const Order order : kOrders) {
    for (const int64_t gap : {0, 4}) {
      for (const int64_t target_gap : {0, 3})
        expect_as_defined(
            {.sides = {{2, 3, order, {1, gap}, target_gap}, {1, 2, order, {2, gap}, target_gap}}});
    }
  }
}

TEST_P(Launch, TurnsMoreTokensThanItKeepsAnglesFor) {
  for (const Element table : {Element::float32, Element::float64})
    expect_as_defined({.angle_element = table, .batch = {}, .tokens = 3000, .head_dim = 24, .pairs = 12});
  expect_as_defined({.batch = {},
                     .tokens = 150,
                     .head_dim = 480,
                     .pairs = 240,
                     .sides = {{.heads = 2}, {.heads = 2, .order = Order::head_token_element}},
                     .angles_per_head = true,
                     .sin_spacing = {2, 0}});
  for (const Source source : {Source::turns, Source::radians})
    expect_as_defined({.source = source, .batch = {}, .tokens = 700, .head_dim = 24, .pairs = 12, .axes = 3});
}

TEST_P(Launch, TurnsMorePairsThanItKeepsAnglesFor) {
  for (const Element table : {Element::float32, Element::float64})
    expect_as_defined({.angle_element = table,
                       .batch = {},
                       .tokens = 2,
                       .head_dim = 40004,
                       .start = 1,
                       .pairs = 20001,
                       .sides = {{.heads = 1}}});
  for (const Source source : {Source::turns, Source::radians}) {
    for (const int64_t axes : {int64_t{1}, int64_t{5}, kMaxAxes})
      expect_as_defined({.source = source,
                         .batch = {},
                         .tokens = 2,
                         .head_dim = 2404,
                         .start = 1,
                         .pairs = 1201,
                         .sides = {{.heads = 1}},
                         .axes = axes});
  }
}

TEST_P(Launch, TurnsNothingOfNoTokens) {
  for (const Call& call : {Call{.tokens = 0}, Call{.batch = {0}}}) {
    Random random(1);
    with_rotation(call, random, [](auto& rotation) {
      rotate(rotation.problem());
      EXPECT_EQ("", difference(rotation.before(0), rotation.result(0)));
    });
  }
}

// Back and forth multiplies by cos^2 + sin^2, but for the roundings of both ways.
TEST_P(Launch, UndoesARotationByItsInverse) {
  Random random(2);
  for (const Element element : kElements) {
    for (const bool interleaved : {false, true}) {
      for (const Source source : {Source::tables, Source::turns, Source::radians}) {
        const Call call{
            .element = element, .source = source, .interleaved = interleaved, .head_dim = 18, .pairs = 9};
        with_rotation(call, random, [&]<class T>(Rotation<T>& rotation) {
          Problem problem = rotation.problem();
          rotate(problem);
          const std::vector<T> there = rotation.result(0);
          problem.angles.inverse = true;
          rotate(problem);
          const std::vector<T> back = rotation.result(0);
          rotation.for_every_pair(0, [&](const auto& at, T x, T y, size_t at_x, size_t at_y) {
            const auto by = rotation.cos_sin(at);
            const long double cos = by.x, sin = by.y;
            const long double x_bound = rounding_bound<T>(to_compute(x) * cos, -to_compute(y) * sin);
            const long double y_bound = rounding_bound<T>(to_compute(y) * cos, to_compute(x) * sin);
            const long double x_back = to_compute(there[at_x]), y_back = to_compute(there[at_y]);
            const long double square = cos * cos + sin * sin;
            EXPECT_LE(std::abs(to_compute(back[at_x]) - to_compute(x) * square),
                      std::abs(cos) * x_bound + std::abs(sin) * y_bound +
                          rounding_bound<T>(x_back * cos, y_back * sin));
            EXPECT_LE(std::abs(to_compute(back[at_y]) - to_compute(y) * square),
                      std::abs(cos) * y_bound + std::abs(sin) * x_bound +
                          rounding_bound<T>(y_back * cos, -x_back * sin));
          });
        });
      }
    }
  }
}

TEST_P(Launch, GivesTheSameBitsForAnyCallInAnyPieces) {
  Random random(3);
  for (int trial = 0; trial < 600 && !HasFailure(); ++trial)
    test::expect_as_defined(any_call(random), random,
                            [&](const Problem& problem) { rotate_in_pieces(problem, random); });
}

// Bit for bit, each on memory of its own.
TEST(Launchers, GiveTheSameBits) {
  Random random(4);
  for (int trial = 0; trial < 600 && !testing::Test::HasFailure(); ++trial) {
    const Call call = any_call(random);
    Random copy = random;
    with_rotation(call, random, [&]<class T>(Rotation<T>& on_cuda) {
      Rotation<T> on_cpu(call, copy);
      launch(on_cuda.problem());
      cpu::rotate_tokens(on_cpu.problem(), 0, on_cpu.problem().batches * on_cpu.problem().tokens);
      for (int v = 0; v < on_cuda.problem().views; ++v)
        EXPECT_EQ("", difference(on_cpu.result(v), on_cuda.result(v))) << call << " view " << v;
    });
  }
}

// Two batches of three positions, every second number of the memory.
Problem problem_of(const void* positions, bool wide, int64_t rows) {
  Problem problem{};
  problem.batch_dims = 1;
  problem.batch_sizes[0] = problem.batches = 2;
  problem.tokens = 3;
  problem.angles.rows = rows;
  problem.angles.positions = {.data = positions, .wide = wide, .batch = {6}, .token = 2};
  return problem;
}

template <class Index>
class PositionOutOfRange : public testing::Test {
 protected:
  static std::optional<int64_t> of(std::vector<Index> positions, int64_t rows) {
    return cpu::position_out_of_range(problem_of(positions.data(), std::is_same_v<Index, int64_t>, rows));
  }
};
using IndexTypes = testing::Types<int32_t, int64_t>;
TYPED_TEST_SUITE(PositionOutOfRange, IndexTypes);

// -9 and 99 lie between the positions and are none.
TYPED_TEST(PositionOutOfRange, IsNothingWhereAllAreInside) {
  EXPECT_EQ(std::nullopt, this->of({0, -9, 4, 99, 2, -9, 3, 99, 4, -9, 1}, 5));
}

TYPED_TEST(PositionOutOfRange, IsTheFirstThatIsTooLarge) {
  EXPECT_EQ(5, this->of({0, -9, 4, 99, 2, -9, 3, 99, 5, -9, 6}, 5));
  EXPECT_EQ(std::numeric_limits<TypeParam>::max(),
            this->of({0, 0, std::numeric_limits<TypeParam>::max(), 0, 0, 0, 0, 0, 0, 0, 0}, 5));
}

TYPED_TEST(PositionOutOfRange, IsTheFirstThatIsNegative) {
  EXPECT_EQ(-1, this->of({0, 0, 0, 0, 0, 0, 0, 0, 0, 0, -1}, 5));
  EXPECT_EQ(std::numeric_limits<TypeParam>::min(),
            this->of({std::numeric_limits<TypeParam>::min(), 0, 0, 0, 0, 0, 0, 0, 0, 0, 9}, 5));
}

TYPED_TEST(PositionOutOfRange, IsAnyPositionWhereThereAreNoRows) {
  EXPECT_EQ(0, this->of({0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, 0));
}

TEST(PositionsOutOfRange, AreNoneWithoutPositions) {
  EXPECT_EQ(std::nullopt, cpu::position_out_of_range(problem_of(nullptr, true, 0)));
}

}  // namespace
}  // namespace rope_ext::test
