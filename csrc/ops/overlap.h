// Do strided regions of memory share a byte? Exact, where address ranges alone cannot tell: slices of
// one packed tensor interleave without touching.
#pragma once

#include <cstdint>

namespace rope_ext::ops {

struct Region {
  static constexpr int kDims = 12;
  const char* begin;
  int dims;
  int64_t sizes[kDims];
  int64_t strides[kDims];  // in bytes, not negative
  int64_t item_bytes;

  bool empty() const;
  const char* end() const;  // behind the last byte
};

enum class Overlap { none, some, undecided };

// Between two regions.
Overlap overlap(const Region& a, const Region& b);

// Between two elements of one region.
Overlap self_overlap(const Region& region);

}  // namespace rope_ext::ops
