// The one kernel body: rows of a tensor meet rows of angles. Each instruction set compiles its own copy.
//
// Isa gives, for every storage type T: Vector<Compute<T>> with `lanes`, load and store of a full
// vector and of its first n lanes, and, where pairs come apart without a shuffle, load_pairs and
// store_pairs. Memory bounds the loops, so their shape follows it: measured reasons stand beside.
#pragma once

#include <type_traits>

#include "kernels.h"

#if defined(_MSC_VER)
#define ROPE_NOINLINE __declspec(noinline)
#else
#define ROPE_NOINLINE __attribute__((noinline))
#endif

namespace rope_ext::cpu {

template <class Isa, class T>
struct Kernel {
  using C = Compute<T>;
  using V = typename Isa::template Vector<C>;
  static constexpr int64_t lanes = V::lanes;
  // One 64-byte line of x and one of y a step, so that each is prefetched once.
  static constexpr int64_t vectors = Isa::vectorized ? 64 / int64_t(sizeof(T)) / lanes : 1;
  static constexpr int64_t step = vectors * lanes;
  // Hardware prefetchers restart at every page and never cross it; 2 KiB ahead covers the gap
  // (bfloat16, D = 256: 0.53 -> 1.03 of the ceiling).
  static constexpr int64_t prefetch_bytes = 2048;

  static ROPE_INLINE void prefetch(const T* source) {
    Isa::prefetch(reinterpret_cast<const char*>(source) + prefetch_bytes);
  }

  static ROPE_INLINE Pair<V> turn(Pair<V> pair, AngleRows<C> angles, int64_t i) {
    return rotate(pair, Isa::load(angles.cos + i), Isa::load(angles.sin + i));
  }

  // All of x before y, in loads and in stores: touching the upper half first costs a third (0.98 -> 0.69).
  static ROPE_NOINLINE void half_split(Rows<T> rows, AngleRows<C> angles) {
    for (int64_t row = 0; row < rows.count; ++row) {
      const T* x = rows.source;
      const T* y = rows.source + rows.distance;
      T* x_out = rows.target;
      T* y_out = rows.target + rows.distance;
      int64_t i = 0;
      for (; i + step <= rows.pairs; i += step) {
        if constexpr (Isa::vectorized) {
          prefetch(x + i);
          prefetch(y + i);
        }
        Pair<V> pairs[vectors];
        for (int64_t v = 0; v < vectors; ++v) pairs[v].x = Isa::load(x + i + v * lanes);
        for (int64_t v = 0; v < vectors; ++v) pairs[v].y = Isa::load(y + i + v * lanes);
        for (int64_t v = 0; v < vectors; ++v) pairs[v] = turn(pairs[v], angles, i + v * lanes);
        for (int64_t v = 0; v < vectors; ++v) Isa::store(x_out + i + v * lanes, pairs[v].x);
        for (int64_t v = 0; v < vectors; ++v) Isa::store(y_out + i + v * lanes, pairs[v].y);
      }
      for (; i + lanes <= rows.pairs; i += lanes) {
        const Pair<V> pair = turn({Isa::load(x + i), Isa::load(y + i)}, angles, i);
        Isa::store(x_out + i, pair.x);
        Isa::store(y_out + i, pair.y);
      }
      if (const int64_t n = rows.pairs - i; n > 0) {
        const Pair<V> pair = rotate(Pair<V>{Isa::load(x + i, n), Isa::load(y + i, n)},
                                    Isa::load(angles.cos + i, n), Isa::load(angles.sin + i, n));
        Isa::store(x_out + i, pair.x, n);
        Isa::store(y_out + i, pair.y, n);
      }
      rows.source += rows.source_stride;
      rows.target += rows.target_stride;
      angles.cos += angles.stride;
      angles.sin += angles.stride;
    }
  }

  static ROPE_NOINLINE void interleaved(Rows<T> rows, AngleRows<C> angles) {
    for (int64_t row = 0; row < rows.count; ++row) {
      if constexpr (Isa::template takes_pairs_apart<T>) {
        row_of_pairs(rows, angles);
      } else {
        row_of_elements(rows, angles);
      }
      rows.source += rows.source_stride;
      rows.target += rows.target_stride;
      angles.cos += angles.stride;
      angles.sin += angles.stride;
    }
  }

  static ROPE_INLINE void row_of_pairs(const Rows<T>& rows, AngleRows<C> angles) {
    constexpr int64_t pair_vectors = vectors > 1 ? vectors / 2 : 1;
    constexpr int64_t pair_step = pair_vectors * lanes;
    int64_t i = 0;
    for (; i + pair_step <= rows.pairs; i += pair_step) {
      if constexpr (Isa::vectorized) prefetch(rows.source + 2 * i);
      Pair<V> pairs[pair_vectors];
      for (int64_t v = 0; v < pair_vectors; ++v)
        pairs[v] = Isa::load_pairs(rows.source + 2 * (i + v * lanes));
      for (int64_t v = 0; v < pair_vectors; ++v) pairs[v] = turn(pairs[v], angles, i + v * lanes);
      for (int64_t v = 0; v < pair_vectors; ++v)
        Isa::store_pairs(rows.target + 2 * (i + v * lanes), pairs[v]);
    }
    for (; i + lanes <= rows.pairs; i += lanes)
      Isa::store_pairs(rows.target + 2 * i, turn(Isa::load_pairs(rows.source + 2 * i), angles, i));
    if (const int64_t n = rows.pairs - i; n > 0) {
      const Pair<V> pairs = Isa::load_pairs(rows.source + 2 * i, n);
      Isa::store_pairs(rows.target + 2 * i,
                       rotate(pairs, Isa::load(angles.cos + i, n), Isa::load(angles.sin + i, n)), n);
    }
  }

  static ROPE_INLINE void row_of_elements(const Rows<T>& rows, AngleRows<C> angles) {
    const int64_t elements = 2 * rows.pairs;
    int64_t i = 0;
    for (; i + step <= elements; i += step) {
      prefetch(rows.source + i);
      V pairs[vectors];
      for (int64_t v = 0; v < vectors; ++v) pairs[v] = Isa::load(rows.source + i + v * lanes);
      for (int64_t v = 0; v < vectors; ++v)
        pairs[v] = rotate_interleaved(pairs[v], Isa::load(angles.cos + i + v * lanes),
                                      Isa::load(angles.sin + i + v * lanes));
      for (int64_t v = 0; v < vectors; ++v) Isa::store(rows.target + i + v * lanes, pairs[v]);
    }
    for (; i + lanes <= elements; i += lanes)
      Isa::store(rows.target + i, rotate_interleaved(Isa::load(rows.source + i), Isa::load(angles.cos + i),
                                                     Isa::load(angles.sin + i)));
    if (const int64_t n = elements - i; n > 0)
      Isa::store(rows.target + i,
                 rotate_interleaved(Isa::load(rows.source + i, n), Isa::load(angles.cos + i, n),
                                    Isa::load(angles.sin + i, n)),
                 n);
  }

  // Any element stride, one pair at a time.
  static ROPE_NOINLINE void strided(Rows<T> rows, AngleRows<C> angles, int64_t pair_step) {
    for (int64_t row = 0; row < rows.count; ++row) {
      for (int64_t i = 0; i < rows.pairs; ++i) {
        const T* x = rows.source + i * pair_step * rows.source_element;
        T* x_out = rows.target + i * pair_step * rows.target_element;
        const Pair<C> pair =
            rotate(Pair<C>{to_compute(*x), to_compute(x[rows.distance * rows.source_element])}, angles.cos[i],
                   angles.sin[i]);
        rope_ext::store(x_out, pair.x);
        rope_ext::store(x_out + rows.distance * rows.target_element, pair.y);
      }
      rows.source += rows.source_stride;
      rows.target += rows.target_stride;
      angles.cos += angles.stride;
      angles.sin += angles.stride;
    }
  }

  // A row of a table in the compute type, in the layout and with the sign that the loops want.
  static ROPE_NOINLINE void fill(TableRow row, AngleLayout layout, C* cos, C* sin) {
    visit(row.element, [&](auto element) {
      using A = decltype(element);
      const A* cos_in = static_cast<const A*>(row.cos);
      const A* sin_in = static_cast<const A*>(row.sin);
      constexpr int64_t chunk = 16;
      for (int64_t i = 0; i < row.pairs; i += chunk) {
        const int64_t n = row.pairs - i < chunk ? row.pairs - i : chunk;
        C c[chunk], s[chunk];
        convert<chunk>(c, cos_in + i * row.cos_element, row.cos_element, n);
        convert<chunk>(s, sin_in + i * row.sin_element, row.sin_element, n);
        const C sign = row.inverse ? C(-1) : C(1);
        for (int64_t j = 0; j < n; ++j) s[j] *= sign;
        if (layout == AngleLayout::single) {
          for (int64_t j = 0; j < n; ++j) cos[i + j] = c[j];
          for (int64_t j = 0; j < n; ++j) sin[i + j] = s[j];
        } else {
          for (int64_t j = 0; j < n; ++j) cos[2 * (i + j)] = cos[2 * (i + j) + 1] = c[j];
          for (int64_t j = 0; j < n; ++j) sin[2 * (i + j)] = -(sin[2 * (i + j) + 1] = s[j]);
        }
      }
    });
  }

  template <int64_t chunk, class A>
  static ROPE_INLINE void convert(C* target, const A* source, int64_t element, int64_t n) {
    if constexpr (std::is_same_v<Compute<A>, C>) {
      if (element == 1 && n == chunk) {
        for (int64_t j = 0; j < chunk; j += lanes) Isa::store(target + j, Isa::load(source + j));
        return;
      }
    }
    for (int64_t j = 0; j < n; ++j) target[j] = static_cast<C>(to_compute(source[j * element]));
  }

  static constexpr KernelsOf<T> functions() {
    const bool doubled = !Isa::template takes_pairs_apart<T>;
    return {half_split, interleaved, strided, fill, doubled ? AngleLayout::doubled : AngleLayout::single};
  }
};

template <class Isa>
constexpr Kernels kernels_of() {
  return {Kernel<Isa, float16>::functions(), Kernel<Isa, bfloat16>::functions(),
          Kernel<Isa, float>::functions(), Kernel<Isa, double>::functions()};
}

}  // namespace rope_ext::cpu
