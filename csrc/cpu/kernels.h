// What the launcher asks of an instruction set: plain structs and a table of functions.
#pragma once

#include <cstdint>

#include "../core/angle.h"
#include "../core/element.h"

namespace rope_ext::cpu {

// Of one call: a wider slice is rotated in parts.
inline constexpr int64_t kMaxPairs = 512;

struct Axis {
  int64_t count, target_stride, source_stride;
};

// The rotated slices of some tokens, all heads of a token by the same angles. Strides in elements.
// Passed by value: read through a pointer, the loop reloads them after every store (0.97 -> 0.70 of
// the ceiling).
template <class T>
struct Rows {
  T* target;
  const T* source;
  Axis tokens, heads;
  int64_t pairs;                           // at most kMaxPairs
  int64_t distance;                        // from x to y, in steps of `element`
  int64_t target_element, source_element;  // 1, except in the strided kernel
};

// One row of angles a token.
template <class C>
struct AngleRows {
  const C* cos;
  const C* sin;
  int64_t stride;
  C sign;  // of every sine: -1 for the inverse
};

struct TableRow {
  const void* cos;
  const void* sin;
  int64_t cos_element, sin_element;
  Element element;
  int64_t pairs;
};

// The turns of one token: for each pair the sum over axes of a position times what one unit turns.
struct TurnsRow {
  const Turns* turns;  // of axis 0; there is room for kRoom pairs behind the last axis
  int64_t axis_stride, axes;
  const int64_t* positions;  // of each axis
  int64_t pairs;
};

// Rows of angles are made in whole vectors: what is read and written of them has room for so many pairs more.
inline constexpr int64_t kRoom = 16;

template <class T>
struct KernelsOf {
  using C = Compute<T>;
  void (*half_split)(Rows<T>, AngleRows<C>);
  void (*interleaved)(Rows<T>, AngleRows<C>);
  void (*strided)(Rows<T>, AngleRows<C>, int64_t pair_step);
  void (*fill)(TableRow, C* cos, C* sin);
  void (*cos_sin)(TurnsRow, C scale, C* cos, C* sin);
};

// What one instruction set offers.
struct Kernels : KernelsOf<float16>, KernelsOf<bfloat16>, KernelsOf<float>, KernelsOf<double> {
  template <class T>
  const KernelsOf<T>& of() const {
    return *this;
  }
};

extern const Kernels scalar_kernels;
extern const Kernels avx2_kernels, avx512_kernels, avx512_bf16_kernels;  // on x86-64 alone

}  // namespace rope_ext::cpu
