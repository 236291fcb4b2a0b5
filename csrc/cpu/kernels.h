// What the launcher asks of an instruction set: plain structs and a table of functions.
#pragma once

#include <cstdint>

#include "../core/element.h"

namespace rope_ext::cpu {

// Equally spaced rows of one tensor: the heads of a token, or the tokens of a head. Strides in elements.
// Passed by value: read through a pointer, the loop reloads them after every store (0.97 -> 0.70 of
// the ceiling).
template <class T>
struct Rows {
  T* target;
  const T* source;
  int64_t count, target_stride, source_stride;
  int64_t pairs;
  int64_t distance;                        // from x to y, in steps of `element`
  int64_t target_element, source_element;  // 1, except in the strided kernel
};

template <class C>
struct AngleRows {
  const C* cos;
  const C* sin;
  int64_t stride;  // 0 where all rows share one
};

// How an interleaved kernel wants a row: once per pair, or twice with the sine's sign alternating.
enum class AngleLayout : uint8_t { single, doubled };

struct TableRow {
  const void* cos;
  const void* sin;
  int64_t cos_element, sin_element;
  Element element;
  bool inverse;
  int64_t pairs;
};

template <class T>
struct KernelsOf {
  using C = Compute<T>;
  void (*half_split)(Rows<T>, AngleRows<C>);
  void (*interleaved)(Rows<T>, AngleRows<C>);
  void (*strided)(Rows<T>, AngleRows<C>, int64_t pair_step);
  void (*fill)(TableRow, AngleLayout, C* cos, C* sin);
  AngleLayout interleaved_layout;
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
