// The CUDA kernel and its launcher, compiled for the host and walked thread by thread.
#include <gtest/gtest.h>

#include <algorithm>
#include <deque>
#include <limits>
#include <optional>

#include "problems.h"
#include "walks.h"

namespace rope_ext::test {
namespace {

constexpr int64_t kBeyond32Bits = int64_t{1} << 31;
// Of tables; none stands for the query's own type.
constexpr std::optional<Element> kTables[] = {std::nullopt, Element::float32, Element::float64};

TEST(Cuda, TurnsHeadsOfEverySize) {
  Random random(1);
  for (int64_t pairs = 1; pairs <= 256; ++pairs) {
    const int64_t start = random.between(0, 3) * random.between(0, 5), rest = random.between(0, 3);
    const Call tables{.batch = {}, .tokens = 2, .head_dim = 2 * pairs, .pairs = pairs};
    for (const Call& source : {tables, by_frequencies_in_turn(tables, pairs)}) {
      for_every_kind(source, [&](Call call) {
        expect_as_defined(call, random, [](const Problem& problem) { launch(problem); });
        call.start = start;
        call.head_dim += start + rest;
        call.edge = Edge::begin;
        expect_as_defined(call, random, [](const Problem& problem) { launch(problem); });
      });
    }
  }
}

TEST(Cuda, TurnsHeadsWiderThanABlock) {
  Random random(17);
  for (const Source source : {Source::tables, Source::turns, Source::radians}) {
    const Call call{.source = source, .batch = {}, .tokens = 2, .head_dim = 12100, .start = 2, .pairs = 6000};
    for_every_kind(call, [&](const Call& kind) {
      expect_as_defined(kind, random, [](const Problem& problem) { launch(problem); });
    });
  }
}

TEST(Cuda, TurnsEveryNumberOfHeads) {
  Random random(2);
  for (int64_t heads = 1; heads <= 129; ++heads) {
    const Order order = kOrders[heads % 3];
    const Call call{.batch = {},
                    .tokens = random.between(1, 3),
                    .head_dim = 18,
                    .pairs = 8,
                    .sides = {{heads, random.between(0, 2), order}, {130 - heads, 0, order}}};
    for (const Call& source : {call, by_frequencies_in_turn(call, heads)}) {
      for_every_kind(source, [&](const Call& kind) {
        expect_as_defined(kind, random, [&](const Problem& problem) {
          launch(problem, in_order, {nullptr, kMultiprocessors[random.between(0, 2)]});
        });
      });
    }
  }
}

TEST(Cuda, TurnsEveryNumberOfTokens) {
  Random random(3);
  for (int64_t tokens = 1; tokens <= 300; tokens += random.between(1, 9)) {
    const Order order = kOrders[random.between(0, 1)];
    const Call call{.tokens = tokens, .head_dim = 8, .pairs = 4, .sides = {{2, 1, order}, {1, 0, order}}};
    for (const Call& source : {call, by_frequencies_in_turn(call, tokens)}) {
      for_every_kind(source, [&](const Call& kind) {
        expect_as_defined(kind, random, [&](const Problem& problem) {
          launch(problem, in_order, {nullptr, kMultiprocessors[random.between(0, 2)]});
        });
      });
    }
  }
}

TEST(Cuda, RoundsNoMoreThanTheDefinition) {
  Random random(4);
  for (const int64_t pairs : {1, 2, 3, 8, 31, 64, 256}) {
    for (const bool inverse : {false, true}) {
      const Call call{.inverse = inverse, .batch = {}, .head_dim = 2 * pairs, .pairs = pairs};
      for_every_kind(call, [&](Call kind) {
        if (kind.element == Element::float64) kind.angle_element = Element::float64;
        expect_near_the_exact_rotation(kind, random, [](const Problem& problem) { launch(problem); });
      });
    }
  }
}

// Pairs that a thread takes in accesses of so many bytes.
int64_t pairs_of(int64_t bytes, const Call& call) {
  return std::max<int64_t>(bytes / bytes_of(call.element) / (call.interleaved ? 2 : 1), 1);
}

void expect_access(int64_t bytes, const Call& call, Random& random) {
  const int64_t pairs = pairs_of(bytes, call), rest = call.in_place ? 0 : call.head_dim - 2 * call.pairs;
  expect_as_defined(call, random, [&](const Problem& problem) {
    EXPECT_EQ(call.pairs / pairs + (rest + 2 * pairs - 1) / (2 * pairs), launch(problem).at(0).block.x)
        << call;
  });
}

constexpr int64_t kOffsets[] = {0, 1, 2, 3, 4, 8};

// The largest power of two that divides it, 16 at most.
int64_t alignment_of(int64_t bytes) { return bytes % 16 == 0 ? 16 : bytes & -bytes; }

TEST(Cuda, TakesTheWidestAccessThatEveryAddressAdmits) {
  Random random(5);
  const std::vector<void (*)(Call&, int64_t)> places = {
      [](Call& call, int64_t offset) { call.sides[0].spacing.ahead = offset; },
      [](Call& call, int64_t offset) { call.sides[1].spacing.ahead = offset; },
      [](Call& call, int64_t offset) { call.sides[0].spacing.gap = offset; },
      [](Call& call, int64_t offset) { call.sides[1].spacing.gap = offset; },
      [](Call& call, int64_t offset) { call.head_dim += call.start = offset; },
  };
  const std::vector<void (*)(Call&, int64_t)> target_places = {
      [](Call& call, int64_t offset) { call.sides[0].target_ahead = offset; },
      [](Call& call, int64_t offset) { call.sides[1].target_ahead = offset; },
      [](Call& call, int64_t offset) { call.sides[0].target_gap = offset; },
      [](Call& call, int64_t offset) { call.sides[1].target_gap = offset; },
  };
  for (const int64_t offset : kOffsets) {
    const auto check = [&](Call call, void (*place)(Call&, int64_t)) {
      place(call, offset);
      if (!call.in_place) call.head_dim = (call.head_dim + 7) / 8 * 8;
      expect_access(alignment_of(offset * bytes_of(call.element)), call, random);
    };
    for (const Order order : {Order::token_head_element, Order::head_token_element}) {
      const Call aligned{.head_dim = 64,
                         .pairs = 32,
                         .sides = {{.heads = 3, .order = order}, {.heads = 2, .order = order}},
                         .edge = Edge::begin};
      for_every_kind(aligned, [&](const Call& call) {
        for (const auto place : places) check(call, place);
        if (call.in_place) return;
        for (const auto place : target_places) check(call, place);
      });
    }
  }
}

TEST(Cuda, TakesTheWidestAccessThatItsTablesAdmit) {
  Random random(6);
  const auto set = std::vector<void (*)(Call&, int64_t)>{
      [](Call& call, int64_t offset) { call.cos_spacing.ahead = offset; },
      [](Call& call, int64_t offset) { call.sin_spacing.ahead = offset; },
      [](Call& call, int64_t offset) { call.cos_spacing.gap = offset; },
      [](Call& call, int64_t offset) { call.sin_spacing.gap = offset; },
  };
  for (const int64_t offset : kOffsets) {
    for (const std::optional<Element> table : kTables) {
      for (const auto place : set) {
        Call aligned{.head_dim = 64, .pairs = 32, .edge = Edge::begin};
        place(aligned, offset);
        for_every_kind(aligned, [&](Call call) {
          call.angle_element = table.value_or(call.element);
          int64_t bytes = 16;
          const auto fits = [&] {
            const int64_t of_angle = bytes_of(call.angle_element);
            const int64_t of_table = pairs_of(bytes, call) * of_angle;
            return of_table <= 32 && offset * of_angle % std::min<int64_t>(of_table, 16) == 0;
          };
          while (pairs_of(bytes, call) > 1 && !fits()) bytes /= 2;
          expect_access(bytes, call, random);
        });
      }
    }
  }
}

TEST(Cuda, TakesTheWidestAccessThatItsFrequenciesAdmit) {
  Random random(18);
  const std::vector<void (*)(Call&, int64_t)> places = {
      [](Call& call, int64_t offset) { call.frequency_spacing.ahead = offset; },
      [](Call& call, int64_t offset) { call.frequency_spacing.gap = offset; },
      [](Call& call, int64_t offset) { call.frequency_spacing.innermost = 1 + offset; },
  };
  for (const int64_t offset : kOffsets) {
    for (const auto place : places) {
      for (const bool per_head : {false, true}) {
        for_every_frequency_kind(
            {.head_dim = 64,
             .pairs = 32,
             .sides = {{3}, {3}},
             .angles_per_head = per_head,
             .axes = 2,
             .edge = Edge::begin},
            [&](Call with_frequencies) {
              place(with_frequencies, offset);
              const Spacing spacing = with_frequencies.frequency_spacing;
              for_every_kind(with_frequencies, [&](const Call& call) {
                const bool aligned = spacing.innermost == 1 && offset % 2 == 0;
                const int64_t most_pairs = call.source == Source::radians ? 2 : aligned ? 8 : 1;
                int64_t bytes = 16;
                while (pairs_of(bytes, call) > most_pairs) bytes /= 2;
                expect_access(bytes, call, random);
              });
            });
      }
    }
  }
}

TEST(Cuda, TakesAnyStrideOneElementAtATime) {
  Random random(7);
  for (const int64_t innermost : {2, 3, 8}) {
    const Call call{.head_dim = 36, .start = 2, .pairs = 16, .sides = {{3, 2, kOrders[0], {innermost}}, {2}}};
    for_every_kind(call, [&](const Call& kind) {
      expect_as_defined(kind, random, [&](const Problem& problem) { launch(problem); });
    });
    for_every_kind({.head_dim = 64, .pairs = 32, .sides = {{3, 0, kOrders[0], {innermost}}, {2}}},
                   [&](const Call& kind) { expect_access(1, kind, random); });
  }
}

TEST(Cuda, DependsOnNoOrderOfItsThreads) {
  Random random(8);
  for (int trial = 0; trial < 300 && !HasFailure(); ++trial) {
    expect_as_defined(any_call(random), random, [&](const Problem& problem) {
      launch(problem, shuffled(random.word()), {nullptr, kMultiprocessors[random.between(0, 2)]});
    });
  }
}

TEST(Cuda, DoesNothingInThreadsThatHaveNothingToDo) {
  Random random(9);
  for (int trial = 0; trial < 300 && !HasFailure(); ++trial) {
    const auto few = [&] { return static_cast<unsigned>(random.between(0, 2)); };
    expect_as_defined(any_call(random), random, [&](const Problem& problem) {
      launch(problem, enlarged({few(), few(), few()}, {few(), few(), few()}));
    });
  }
}

// A tensor of which only what is put into it takes memory.
template <class T>
class Sparse {
 public:
  explicit Sparse(size_t extent) : space_(extent * sizeof(T)) {}

  T* data() { return reinterpret_cast<T*>(space_.begin()); }
  void put(size_t place, T value) {
    space_.open(place * sizeof(T), sizeof(T));
    data()[place] = value;
  }

 private:
  AddressSpace space_;
};

TEST(Cuda, ReachesElementsThatLieFarApart) {
  Random random(10);
  const std::vector<int64_t& (*)(Strides&)> dimensions = {
      [](Strides& strides) -> int64_t& { return strides.batch[0]; },
      [](Strides& strides) -> int64_t& { return strides.token; },
      [](Strides& strides) -> int64_t& { return strides.head; },
      [](Strides& strides) -> int64_t& { return strides.element; },
  };
  for (const auto far : dimensions) {
    const Call call{.tokens = 2, .head_dim = 24, .start = 8, .pairs = 8, .sides = {{6, 2}, {5, 2}}};
    for_every_kind(call, [&](const Call& kind) {
      with_rotation(kind, random, [&]<class T>(const Rotation<T>& near) {
        Problem problem = near.problem();
        std::deque<Sparse<T>> memory;
        const auto spread = [&](Strides strides) {
          far(strides) = kBeyond32Bits + 64;
          const int64_t last = strides.batch[0] + strides.token + 7 * strides.head + 23 * strides.element;
          memory.emplace_back(static_cast<size_t>(last + 1));
          return strides;
        };
        const auto for_every_element = [&](const View& view, auto body) {
          near.for_every_token([&](const auto& batch, int64_t token) {
            for (int64_t head = 0; head < view.heads + view.kept_heads; ++head) {
              for (int64_t element = 0; element < kind.head_dim; ++element)
                body([&](const Strides& strides) { return place(strides, batch, token, head, element); });
            }
          });
        };
        for (int v = 0; v < problem.views; ++v) {
          View& view = problem.view[v];
          const View dense = view;
          view.from = spread(dense.from);
          Sparse<T>& source = memory.back();
          view.to = kind.in_place ? view.from : spread(dense.to);
          Sparse<T>& target = memory.back();
          view.source = source.data() + kind.start * view.from.element;
          view.target = target.data() + kind.start * view.to.element;
          for_every_element(dense, [&](auto place) {
            target.put(place(view.to), T{});
            source.put(place(view.from), near.before(v)[place(dense.from)]);
          });
        }
        launch(problem);
        for (int v = 0; v < problem.views; ++v) {
          const View& view = problem.view[v];
          const T* const target = static_cast<const T*>(view.target) - kind.start * view.to.element;
          for_every_element(near.problem().view[v], [&](auto place) {
            const T expected = near.expected(v)[place(near.problem().view[v].to)];
            ASSERT_TRUE(same(expected, target[place(view.to)])) << kind;
          });
        }
      });
    });
  }
}

// Moves the rows of a table so far behind its beginning.
template <class E>
void move_rows(Table& table, int64_t rows, int64_t distance, std::deque<Sparse<E>>& memory) {
  const int64_t pairs = table.strides.token;
  Sparse<E>& moved = memory.emplace_back(static_cast<size_t>((rows + distance) * pairs));
  for (int64_t i = 0; i < rows * pairs; ++i)
    moved.put(static_cast<size_t>(distance * pairs + i), static_cast<const E*>(table.data)[i]);
  table.data = moved.data();
}

// The same tensor with other strides.
template <class E>
const void* spread(const void* data, const Strides& from, const Strides& to, const Sizes& sizes,
                   std::deque<Sparse<E>>& memory) {
  const auto last = [](int64_t size) { return size - 1; };
  Sparse<E>& target = memory.emplace_back(
      place(to, {last(sizes.batch[0])}, last(sizes.tokens), last(sizes.heads), last(sizes.elements)) + 1);
  for (int64_t batch = 0; batch < sizes.batch[0]; ++batch) {
    for (int64_t token = 0; token < sizes.tokens; ++token) {
      for (int64_t head = 0; head < sizes.heads; ++head) {
        for (int64_t element = 0; element < sizes.elements; ++element)
          target.put(place(to, {batch}, token, head, element),
                     static_cast<const E*>(data)[place(from, {batch}, token, head, element)]);
      }
    }
  }
  return target.data();
}

TEST(Cuda, ReachesFrequenciesAndPositionsThatLieFarApart) {
  Random random(19);
  const std::vector<int64_t& (*)(Angles&)> strides = {
      [](Angles& angles) -> int64_t& { return angles.frequencies.axis; },
      [](Angles& angles) -> int64_t& { return angles.frequencies.head; },
      [](Angles& angles) -> int64_t& { return angles.frequencies.pair; },
      [](Angles& angles) -> int64_t& { return angles.positions.axis; },
      [](Angles& angles) -> int64_t& { return angles.positions.token; },
      [](Angles& angles) -> int64_t& { return angles.positions.batch[0]; },
  };
  for (const auto far : strides) {
    const Call call{.batch = {2},
                    .tokens = 2,
                    .sides = {{2}, {2}},
                    .angles_per_head = true,
                    .axes = 2,
                    .positions_per_batch = true};
    for_every_frequency_kind(call, [&](const Call& kind) {
      if (kind.positions == PositionType::none) return;
      expect_as_defined(kind, random, [&](Problem problem) {
        Angles& angles = problem.angles;
        const Angles near = angles;
        far(angles) = kBeyond32Bits + 64;
        visit(kind.positions, [&]<class P>(P) {
          visit_frequency(kind, [&]<class F>(F) {
            std::deque<Sparse<P>> positions;
            std::deque<Sparse<F>> frequencies;
            angles.positions.data =
                spread(near.positions.data, strides_of(near.positions), strides_of(angles.positions),
                       {call.batch, call.tokens, call.axes, 1}, positions);
            angles.frequencies.data =
                spread(near.frequencies.data, strides_of(near.frequencies), strides_of(angles.frequencies),
                       {{1}, call.axes, call.sides[0].heads, call.pairs}, frequencies);
            launch(problem);
          });
        });
      });
    });
  }
}

template <class Index>
class CudaPositions : public testing::Test {
 protected:
  static constexpr bool wide = std::is_same_v<Index, int64_t>;
  static constexpr PositionType type = wide ? PositionType::int64 : PositionType::int32;
};
using IndexTypes = testing::Types<int32_t, int64_t>;
TYPED_TEST_SUITE(CudaPositions, IndexTypes);

TYPED_TEST(CudaPositions, NameRowsThatLieFarBehind) {
  Random random(11);
  for (const std::optional<Element> table : kTables) {
    for_every_kind({.batch = {}, .positions = this->type}, [&](Call kind) {
      kind.angle_element = table.value_or(kind.element);
      expect_as_defined(kind, random, [&](Problem problem) {
        Angles& angles = problem.angles;
        const int64_t distance = this->wide ? int64_t{1} << 34 : kBeyond32Bits - angles.rows;
        std::vector<TypeParam> positions(static_cast<size_t>(kind.tokens));
        std::copy_n(static_cast<const TypeParam*>(angles.positions.data), kind.tokens, positions.begin());
        for (TypeParam& position : positions) position = static_cast<TypeParam>(position + distance);
        angles.positions.data = positions.data();
        visit(kind.angle_element, [&](auto element) {
          std::deque<Sparse<decltype(element)>> memory;
          move_rows(angles.cos, angles.rows, distance, memory);
          move_rows(angles.sin, angles.rows, distance, memory);
          angles.rows += distance;
          launch(problem);
        });
      });
    });
  }
}

// The tables begin and end at memory that cannot be read.
TYPED_TEST(CudaPositions, OutsideOfTheTableStopTheKernel) {
  using Limits = std::numeric_limits<TypeParam>;
  Random random(12);
  for (const Edge edge : {Edge::begin, Edge::end}) {
    const Call call{.positions = this->type, .positions_per_batch = true, .edge = edge};
    with_rotation(call, random, [&](const auto& rotation) {
      Problem problem = rotation.problem();
      const int64_t rows = problem.angles.rows;
      for (const int64_t position : {int64_t{-1}, rows, int64_t{Limits::min()}, int64_t{Limits::max()}}) {
        std::vector<TypeParam> positions(6, TypeParam{1});
        positions[static_cast<size_t>(random.between(0, 5))] = static_cast<TypeParam>(position);
        problem.angles.positions.data = positions.data();
        EXPECT_DEATH(launch(problem), "Assertion.*row") << position;
      }
    });
  }
}

TEST(CudaLaunch, IsOneForQueryAndKeyOnTheStream) {
  Random random(13);
  int stream;
  const cuda::Queue queue{reinterpret_cast<cudaStream_t>(&stream), 132};
  for (int trial = 0; trial < 300; ++trial) {
    with_rotation(any_call(random), random, [&](const auto& rotation) {
      const std::vector<Shape> shapes = launch(rotation.problem(), by_none, queue);
      ASSERT_EQ(1u, shapes.size());
      EXPECT_EQ(queue.stream, shapes[0].stream);
    });
  }
}

TEST(CudaLaunch, IsNoneForNothing) {
  Random random(14);
  for (const Call& call : {Call{.tokens = 0}, Call{.batch = {2, 0}}, Call{.head_dim = 4, .pairs = 0},
                           Call{.sides = {{.heads = 0, .kept_heads = 3}, {.heads = 0}}},
                           Call{.in_place = false, .head_dim = 0, .pairs = 0}}) {
    with_rotation(call, random, [&](const auto& rotation) {
      EXPECT_EQ(0u, launch(rotation.problem(), by_none).size()) << call;
    });
  }
}

TEST(CudaLaunch, CopiesWhereNothingTurns) {
  Random random(15);
  for (Call call : {Call{.head_dim = 5, .pairs = 0}, Call{.sides = {{.heads = 0, .kept_heads = 3}}},
                    Call{.sides = {{.heads = 2}, {.heads = 0}}}}) {
    call.in_place = false;
    for (const Source source : {Source::tables, Source::turns, Source::radians}) {
      call.source = source;
      expect_as_defined(call, random, [](const Problem& problem) { launch(problem); });
    }
  }
}

// No memory lies behind it: for launches by none.
Problem problem_of(int64_t tokens, int64_t heads, int64_t key_heads, int64_t head_dim) {
  Problem problem{};
  problem.element = Element::bfloat16;
  problem.batches = 1;
  problem.tokens = problem.angles.rows = tokens;
  problem.head_dim = head_dim;
  problem.pairs = head_dim / 2;
  problem.views = 2;
  problem.view[0].heads = heads;
  problem.view[1].heads = key_heads;
  for (View& view : problem.view) {
    view.from = {{}, heads * head_dim, head_dim, 1};
    view.to = view.from;
  }
  problem.angles.element = Element::float32;
  for (Table* table : {&problem.angles.cos, &problem.angles.sin}) table->strides = {{}, head_dim / 2, 0, 1};
  return problem;
}

TEST(CudaLaunch, KeepsWithinTheLimitsOfEveryDevice) {
  Random random(16);
  for (int trial = 0; trial < 20000 && !HasFailure(); ++trial) {
    const auto any = [&](int most) { return random.between(1, int64_t{1} << random.between(0, most)); };
    Problem problem = problem_of(any(30), any(18), random.between(0, any(18)), 2 * any(16));
    if (random.one_in(2))
      for (View& view : problem.view) std::swap(view.to.token, view.to.head);
    if (random.one_in(2)) problem.angles.cos.strides.head = 1;
    const cuda::Queue queue{nullptr, static_cast<int>(any(10))};
    for (const Shape& shape : launch(problem, by_none, queue)) EXPECT_LE(size_of(shape.block), 256);
  }
}

TEST(CudaLaunch, SpreadsOneTokenOverSeveralMultiprocessors) {
  EXPECT_GT(size_of(launch(problem_of(1, 32, 8, 128), by_none).at(0).grid), 1);
}

// Of every launch the first block and the last that has tokens, which are the only ones in memory.
TEST(CudaLaunch, IsRepeatedBeyondTheLargestGrid) {
  constexpr int64_t most_blocks = 0x7fffffff, tokens_of_block = 256, more = 1000;
  constexpr int64_t tokens = most_blocks * tokens_of_block + more;
  Sparse<float> query(2 * tokens);
  Problem problem = problem_of(tokens, 1, 0, 2);
  problem.element = Element::float32;
  problem.views = 1;
  problem.view[0].source = problem.view[0].target = query.data();
  const float cos = 2, sin = 0;  // every token's
  problem.angles.cos = {&cos, {}};
  problem.angles.sin = {&sin, {}};

  constexpr int64_t tokens_of_launch = most_blocks * tokens_of_block;
  const auto last_block = [&](int64_t launched) {
    return std::min(most_blocks, (tokens - launched + tokens_of_block - 1) / tokens_of_block) - 1;
  };
  std::vector<size_t> turned;
  for (const int64_t launched : {int64_t{0}, tokens_of_launch}) {
    for (const int64_t block : {int64_t{0}, last_block(launched)}) {
      const int64_t first = launched + block * tokens_of_block;
      for (int64_t token = first; token < std::min(first + tokens_of_block, tokens); ++token)
        turned.insert(turned.end(), {static_cast<size_t>(2 * token), static_cast<size_t>(2 * token + 1)});
    }
  }
  for (const size_t element : turned) query.put(element, 1);
  int64_t launched = 0;
  const std::vector<Shape> shapes = launch(problem, [&](const cuda_on_host::Launch& launch) {
    ASSERT_EQ(tokens_of_block, size_of(launch.block));
    run_block(launch, 0);
    run_block(launch, last_block(launched));
    launched += tokens_of_launch;
  });
  ASSERT_EQ(2u, shapes.size());
  for (const size_t element : turned) ASSERT_EQ(2, query.data()[element]) << element;
}

}  // namespace
}  // namespace rope_ext::test
