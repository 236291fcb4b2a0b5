#include "overlap.h"

#include <algorithm>

namespace rope_ext::ops {
namespace {

// coefficient * z, with z in [low, high]
struct Term {
  int64_t coefficient, low, high;
};

// Is there a choice of z with sum(coefficient * z) = target? Terms are kept by falling coefficient, so
// that what is left bounds each z to a value or two wherever dimensions nest, as they do in practice.
// A search that does not end soon is undecided.
class Search {
 public:
  void add(Term term) {
    int place = count_++;
    for (; place > 0 && terms_[place - 1].coefficient < term.coefficient; --place)
      terms_[place] = terms_[place - 1];
    terms_[place] = term;
  }

  // With `nonzero`, a choice of nothing but zeros counts.
  Overlap solve(int64_t target, bool nonzero) { return solve(0, target, nonzero); }

 private:
  Overlap solve(int depth, int64_t target, bool nonzero) {
    if (depth == count_) return target == 0 && nonzero ? Overlap::some : Overlap::none;
    if (++steps_ > kSteps) return Overlap::undecided;
    int64_t low = 0, high = 0;
    for (int rest = depth + 1; rest < count_; ++rest) {
      low += terms_[rest].coefficient * terms_[rest].low;
      high += terms_[rest].coefficient * terms_[rest].high;
    }
    const Term& term = terms_[depth];
    const int64_t first = std::max(term.low, ceil_div(target - high, term.coefficient));
    const int64_t last = std::min(term.high, floor_div(target - low, term.coefficient));
    for (int64_t z = first; z <= last; ++z) {
      const Overlap found = solve(depth + 1, target - z * term.coefficient, nonzero || z != 0);
      if (found != Overlap::none) return found;
    }
    return Overlap::none;
  }

  static int64_t floor_div(int64_t a, int64_t b) { return a / b - (a % b < 0); }
  static int64_t ceil_div(int64_t a, int64_t b) { return a / b + (a % b > 0); }

  static constexpr int kSteps = 1 << 16;
  Term terms_[2 * Region::kDims + 1];
  int count_ = 0;
  int steps_ = 0;
};

}  // namespace

bool Region::empty() const { return std::find(sizes, sizes + dims, 0) != sizes + dims; }

const char* Region::end() const {
  int64_t last = item_bytes;
  for (int d = 0; d < dims; ++d) last += (sizes[d] - 1) * strides[d];
  return begin + last;
}

Overlap overlap(const Region& a, const Region& b) {
  if (a.empty() || b.empty() || a.end() <= b.begin || b.end() <= a.begin) return Overlap::none;
  Search search;
  for (int d = 0; d < a.dims; ++d) {
    if (a.strides[d] != 0) search.add({a.strides[d], 0, a.sizes[d] - 1});
  }
  for (int d = 0; d < b.dims; ++d) {
    if (b.strides[d] != 0) search.add({b.strides[d], 1 - b.sizes[d], 0});
  }
  search.add({1, 1 - b.item_bytes, a.item_bytes - 1});
  return search.solve(b.begin - a.begin, true);
}

Overlap self_overlap(const Region& region) {
  if (region.empty()) return Overlap::none;
  Search search;
  for (int d = 0; d < region.dims; ++d) {
    if (region.sizes[d] == 1) continue;
    if (region.strides[d] == 0) return Overlap::some;
    search.add({region.strides[d], 1 - region.sizes[d], region.sizes[d] - 1});
  }
  return search.solve(0, false);
}

}  // namespace rope_ext::ops
