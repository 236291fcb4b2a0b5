// The loops of every instruction set, reached through the launcher: all widths of a row, whole vectors
// and what is left of one.
#include <gtest/gtest.h>

#include <numeric>
#include <stdexcept>

#include "cpu/launch.h"
#include "instruction_sets.h"
#include "problems.h"

namespace rope_ext::test {
namespace {

class Kernels : public OnInstructionSet {};
INSTANTIATE_TEST_SUITE_P(, Kernels, kInstructionSets, instruction_set_name);

std::vector<int64_t> widths() {
  std::vector<int64_t> pairs(70);
  std::iota(pairs.begin(), pairs.end(), 1);
  pairs.insert(pairs.end(), {256, 513, 600});
  return pairs;
}

// Rows of every width, for both pairings and all elements; tables that a kernel reads as they are.
template <class Check>
void for_every_row(Check check) {
  for (const int64_t pairs : widths()) {
    for (const Element element : kElements) {
      for (const bool interleaved : {false, true}) {
        check({.element = element,
               .angle_element = element == Element::float64 ? Element::float64 : Element::float32,
               .interleaved = interleaved,
               .batch = {},
               .head_dim = 2 * pairs,
               .pairs = pairs});
        if (testing::Test::HasFailure()) return;
      }
    }
  }
}

void rotate(const Problem& problem) { cpu::rotate_tokens(problem, 0, problem.batches * problem.tokens); }

TEST_P(Kernels, GiveTheBitsOfTheDefinition) {
  Random random(1);
  for_every_row([&](Call call) {
    for (const Order order : {Order::token_head_element, Order::head_token_element}) {
      for (const int64_t gap : {0, 1, 5}) {
        for (Side& side : call.sides) side = {.heads = side.heads, .order = order, .spacing = {1, gap}};
        call.cos_spacing = call.sin_spacing = {1, random.between(0, 3)};
        call.inverse = random.one_in(2);
        call.in_place = random.one_in(2);
        call.rarity = call.angle_rarity = any_rarity(random);
        expect_as_defined(call, random, rotate);
      }
    }
  });
}

TEST_P(Kernels, GiveTheBitsOfTheDefinitionForAnyElementStride) {
  Random random(2);
  for_every_row([&](Call call) {
    for (Side& side : call.sides) side.spacing = {random.between(2, 3), random.between(0, 2)};
    call.inverse = random.one_in(2);
    call.in_place = random.one_in(2);
    call.rarity = call.angle_rarity = any_rarity(random);
    expect_as_defined(call, random, rotate);
  });
}

TEST_P(Kernels, StayInsideTheirRows) {
  Random random(3);
  for_every_row([&](Call call) {
    for (const Edge edge : {Edge::begin, Edge::end}) {
      for (const bool in_place : {true, false}) {
        call.sides = {{.heads = 1}};
        call.tokens = 1;
        call.in_place = in_place;
        call.edge = edge;
        expect_as_defined(call, random, rotate);
      }
    }
  });
}

TEST_P(Kernels, AreWithinTheirRoundingsOfTheExactRotation) {
  Random random(4);
  for_every_row([&](const Call& call) { expect_near_the_exact_rotation(call, random, rotate); });
}

TEST(Capability, IsScalarAtLeast) { EXPECT_EQ("scalar", cpu::capabilities().front()); }

TEST(Capability, IsWhatWasSet) {
  for (const std::string& name : cpu::capabilities()) {
    cpu::set_capability(name);
    EXPECT_EQ(name, cpu::capability());
  }
}

TEST(Capability, IsRefusedByNameWhereThereIsNone) {
  try {
    cpu::set_capability("avx3");
    FAIL() << "accepted";
  } catch (const std::invalid_argument& error) {
    EXPECT_NE(std::string::npos, std::string(error.what()).find("got avx3")) << error.what();
  }
}

}  // namespace
}  // namespace rope_ext::test
