// Division of 64-bit numbers by a number known beforehand, as a multiplication: on a GPU the division
// itself is a call of a hundred instructions.
#pragma once

#include <cstdint>

#include "../core/wide.h"

namespace rope_ext::cuda {

// With 2^shift the first power of two that is not below the divisor, 2^64 + multiplier is 2^(64 + shift) /
// divisor, rounded up: exact for every number below 2^63 (Granlund and Montgomery, 1994).
class Divisor {
 public:
  Divisor() = default;
  explicit Divisor(int64_t divisor) : divisor_(static_cast<uint64_t>(divisor)), shift_(0) {
    while (uint64_t{1} << shift_ < divisor_) ++shift_;
    const uint64_t excess = (uint64_t{1} << shift_) - divisor_;
    multiplier_ = static_cast<uint64_t>((static_cast<unsigned __int128>(excess) << 64) / divisor_) + 1;
  }

  // Returns the quotient and leaves the remainder.
  ROPE_INLINE int64_t divide(int64_t& number) const {
    const uint64_t n = static_cast<uint64_t>(number);
    const uint64_t quotient = (high_half_of_product(n, multiplier_) + n) >> shift_;
    number = static_cast<int64_t>(n - quotient * divisor_);
    return static_cast<int64_t>(quotient);
  }

 private:
  uint64_t divisor_, multiplier_;
  int shift_;
};

}  // namespace rope_ext::cuda
