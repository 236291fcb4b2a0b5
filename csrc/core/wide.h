// The upper half of a product of 64-bit numbers.
#pragma once

#include <cstdint>

#include "rotate.h"

namespace rope_ext {

ROPE_INLINE uint64_t high_half_of_product(uint64_t a, uint64_t b) {
#if defined(__CUDA_ARCH__)
  return __umul64hi(a, b);
#else
  return static_cast<uint64_t>(static_cast<unsigned __int128>(a) * b >> 64);
#endif
}

}  // namespace rope_ext
