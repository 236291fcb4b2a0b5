#include <gtest/gtest.h>

#include <ostream>
#include <set>
#include <vector>

#include "ops/overlap.h"
#include "values.h"

namespace rope_ext::ops {

void PrintTo(Overlap overlap, std::ostream* out) {
  constexpr const char* names[] = {"none", "some", "undecided"};
  *out << names[static_cast<int>(overlap)];
}

}  // namespace rope_ext::ops

namespace rope_ext::test {
namespace {

using ops::Overlap;
using ops::Region;

// Only addresses count: nothing lies there.
const char* address_of(int64_t byte) { return reinterpret_cast<const char*>((intptr_t{1} << 40) + byte); }

// Sizes and strides in elements; `first` is the element that the region begins with.
Region region(int64_t item_bytes, int64_t first, const std::vector<int64_t>& sizes,
              const std::vector<int64_t>& strides) {
  Region result{address_of(first * item_bytes), static_cast<int>(sizes.size()), {}, {}, item_bytes};
  for (size_t d = 0; d < sizes.size(); ++d) {
    result.sizes[d] = sizes[d];
    result.strides[d] = strides[d] * item_bytes;
  }
  return result;
}

// Where every element begins, in bytes.
std::vector<int64_t> addresses(const Region& region) {
  std::vector<int64_t> found = {region.begin - address_of(0)};
  for (int d = 0; d < region.dims; ++d) {
    std::vector<int64_t> next;
    for (const int64_t address : found)
      for (int64_t i = 0; i < region.sizes[d]; ++i) next.push_back(address + i * region.strides[d]);
    found = std::move(next);
  }
  return found;
}

Overlap by_brute_force(const Region& a, const Region& b) {
  std::set<int64_t> bytes;
  for (const int64_t address : addresses(a))
    for (int64_t i = 0; i < a.item_bytes; ++i) bytes.insert(address + i);
  for (const int64_t address : addresses(b))
    for (int64_t i = 0; i < b.item_bytes; ++i)
      if (bytes.contains(address + i)) return Overlap::some;
  return Overlap::none;
}

Overlap by_brute_force(const Region& region) {
  const std::vector<int64_t> all = addresses(region);
  return std::set<int64_t>(all.begin(), all.end()).size() == all.size() ? Overlap::none : Overlap::some;
}

// Steps of any number of bytes: views of one memory may differ in their type.
Region any_region(Random& random) {
  Region result{address_of(random.between(0, 40)),
                static_cast<int>(random.between(0, 4)),
                {},
                {},
                int64_t{1} << random.between(0, 3)};
  for (int d = 0; d < result.dims; ++d) {
    result.sizes[d] = random.one_in(20) ? 0 : random.between(1, 4);
    result.strides[d] = random.between(0, 24) * (random.one_in(2) ? result.item_bytes : 1);
  }
  return result;
}

std::string text(const Region& region) {
  const std::vector<int64_t> sizes(region.sizes, region.sizes + region.dims);
  const std::vector<int64_t> strides(region.strides, region.strides + region.dims);
  return std::to_string(region.begin - address_of(0)) + " sizes " + testing::PrintToString(sizes) +
         " strides " + testing::PrintToString(strides) + " item " + std::to_string(region.item_bytes) + "\n";
}

TEST(Overlap, OfTwoRegionsIsWhatTheirBytesSay) {
  Random random(1);
  int touching = 0, apart = 0;
  for (int trial = 0; trial < 20000; ++trial) {
    const Region a = any_region(random), b = any_region(random);
    const Overlap expected = by_brute_force(a, b);
    ASSERT_EQ(expected, overlap(a, b)) << text(a) << text(b);
    ASSERT_EQ(expected, overlap(b, a)) << text(a) << text(b);
    const bool ranges_meet = !a.empty() && !b.empty() && a.begin < b.end() && b.begin < a.end();
    touching += expected == Overlap::some;
    apart += expected == Overlap::none && ranges_meet;
  }
  EXPECT_GT(touching, 1000);
  EXPECT_GT(apart, 1000) << "regions that interleave without touching are the point";
}

TEST(Overlap, OfOneRegionIsWhatItsAddressesSay) {
  Random random(2);
  int found[2] = {};
  for (int trial = 0; trial < 20000; ++trial) {
    Region one = any_region(random);
    for (int d = 0; d < one.dims; ++d) one.strides[d] = one.strides[d] / one.item_bytes * one.item_bytes;
    const Overlap expected = by_brute_force(one);
    ASSERT_EQ(expected, self_overlap(one)) << text(one);
    ++found[static_cast<int>(expected)];
  }
  EXPECT_GT(found[0], 1000);
  EXPECT_GT(found[1], 1000);
}

TEST(Overlap, OfSlicesOfAPackedProjectionIsNone) {
  constexpr int64_t tokens = 4096, heads = 32, kv_heads = 8, head_dim = 128;
  constexpr int64_t row = (heads + 2 * kv_heads) * head_dim;
  const auto slice = [&](int64_t first_head, int64_t count) {
    return region(2, first_head * head_dim, {8, tokens, count, head_dim}, {tokens * row, row, head_dim, 1});
  };
  const Region query = slice(0, heads), key = slice(heads, kv_heads),
               value = slice(heads + kv_heads, kv_heads);
  EXPECT_EQ(Overlap::none, overlap(query, key));
  EXPECT_EQ(Overlap::none, overlap(key, value));
  EXPECT_EQ(Overlap::none, overlap(query, value));
  EXPECT_EQ(Overlap::some, overlap(query, query));
  EXPECT_EQ(Overlap::some, overlap(slice(0, heads + 1), key)) << "one head too many";
  EXPECT_EQ(Overlap::none, self_overlap(query));
}

TEST(Overlap, OfEvenAndOddElementsIsNone) {
  const auto every_second = [](int64_t first) { return region(4, first, {16, 8}, {16, 2}); };
  EXPECT_EQ(Overlap::none, overlap(every_second(0), every_second(1)));
  EXPECT_EQ(Overlap::some, overlap(every_second(0), every_second(2)));
}

TEST(Overlap, OfTheHalvesOfEveryHeadIsNone) {
  const auto half = [](int64_t first, int64_t width) {
    return region(2, first, {16, 4, width}, {64, 16, 1});
  };
  EXPECT_EQ(Overlap::none, overlap(half(0, 8), half(8, 8)));
  EXPECT_EQ(Overlap::some, overlap(half(0, 9), half(8, 8)));
}

TEST(Overlap, OfATransposedRegionIsThatOfTheRegion) {
  const Region transposed = region(4, 0, {8, 16}, {1, 8});
  EXPECT_EQ(Overlap::none, self_overlap(transposed));
  EXPECT_EQ(Overlap::some, overlap(transposed, region(4, 127, {1}, {1})));
  EXPECT_EQ(Overlap::none, overlap(transposed, region(4, 128, {1}, {1})));
}

TEST(Overlap, OfAnExpandedRegionWithItselfIsSome) {
  EXPECT_EQ(Overlap::some, self_overlap(region(4, 0, {4, 8}, {0, 1})));
  EXPECT_EQ(Overlap::none, self_overlap(region(4, 0, {1, 8}, {0, 1}))) << "a stride that is never taken";
}

TEST(Overlap, OfSlidingWindowsWithEachOtherIsSome) {
  EXPECT_EQ(Overlap::some, self_overlap(region(4, 0, {8, 4}, {3, 1})));
  EXPECT_EQ(Overlap::none, self_overlap(region(4, 0, {8, 4}, {4, 1})));
}

TEST(Overlap, OfAnEmptyRegionIsNone) {
  const Region empty = region(4, 0, {4, 0}, {0, 1}), whole = region(4, 0, {8}, {1});
  EXPECT_EQ(Overlap::none, overlap(empty, whole));
  EXPECT_EQ(Overlap::none, overlap(whole, empty));
  EXPECT_EQ(Overlap::none, self_overlap(empty));
}

// Strides that do not nest make a search long; the bytes are still few enough to be counted.
TEST(Overlap, OfWhatTakesTooLongIsUndecidedAndNeverNone) {
  Random random(3);
  int undecided = 0;
  for (int trial = 0; trial < 20; ++trial) {
    std::vector<int64_t> sizes, strides;
    for (int d = 0; d < Region::kDims; ++d) {
      sizes.push_back(3);
      strides.push_back(random.between(1 << 20, 1 << 21));
    }
    const Region one = region(1, 0, sizes, strides);
    const Overlap answer = self_overlap(one);
    undecided += answer == Overlap::undecided;
    if (answer != Overlap::undecided) {
      ASSERT_EQ(by_brute_force(one), answer) << text(one);
    }
  }
  EXPECT_GT(undecided, 0) << "no search was long";
}

}  // namespace
}  // namespace rope_ext::test
