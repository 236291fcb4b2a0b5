// The one kernel body: rows of a tensor meet rows of angles. Each instruction set compiles its own copy.
//
// Isa gives, for every storage type T and its compute type C:
//   Vector<C> with `lanes`; load and store of a vector, and of its first n lanes;
//   load_two and store_twos: two vectors of T at once, in whatever order comes cheapest, and
//   load_two_angles<T>: two vectors of C in the same order;
//   where makes_angles<C>: cos_sin of a row of turns, one vector of pairs from the i-th on;
//   for interleaved pairs where takes_pairs_apart<T>, load_pairs and store_many_pairs, and load_pairs and
//   store_pairs of the first n; otherwise doubled and doubled_with_signs: a vector of angles as two,
//   every lane twice.
//
// Memory bounds the loops, so their shape follows it. A row is walked from its first line to its last, x
// before y: lines that are not touched in the order of memory cost a third to a half. There is no software
// prefetch: 2 KiB ahead it took 10 to 15 % off prefill on Zen 4.
#pragma once

#include <type_traits>

#include "kernels.h"

#if defined(_MSC_VER)
#define ROPE_NOINLINE __declspec(noinline)
#define ROPE_ALWAYS_INLINE
#else
#define ROPE_NOINLINE __attribute__((noinline))
#define ROPE_ALWAYS_INLINE __attribute__((always_inline))  // of a lambda
#endif

namespace rope_ext::cpu {

template <class V>
struct Two {
  V first, second;
};

// A form says how pairs lie in a row: it turns `width` pairs by one Angles, n times over, or a rest of n
// pairs. `many` of them is a block: as many as keep their angles in registers.

template <class Isa, class T>
struct HalfSplit {
  using C = Compute<T>;
  using V = typename Isa::template Vector<C>;
  struct Angles {
    Two<V> cos, sin;
  };
  static constexpr int64_t lanes = V::lanes, width = 2 * lanes;
  static constexpr int many = 2;
  static constexpr int64_t elements_per_pair = 1;

  static ROPE_INLINE Angles load(const C* cos, const C* sin, V sign) {
    const Two<V> s = Isa::template load_two_angles<T>(sin);
    return {Isa::template load_two_angles<T>(cos), {multiply(s.first, sign), multiply(s.second, sign)}};
  }

  template <int n>
  static ROPE_INLINE void turn(const T* source, T* target, int64_t distance, const Angles* angles) {
    Two<V> packs[2 * n];  // all of x, then all of y, as they lie in memory
    T* targets[2 * n];
    for (int v = 0; v < 2 * n; ++v) {
      const int64_t offset = v < n ? v * width : distance + (v - n) * width;
      packs[v] = Isa::load_two(source + offset);
      targets[v] = target + offset;
    }
    for (int v = 0; v < n; ++v) {
      Two<V>&x = packs[v], &y = packs[n + v];
      const Pair<V> first = rotate(Pair<V>{x.first, y.first}, angles[v].cos.first, angles[v].sin.first);
      const Pair<V> second = rotate(Pair<V>{x.second, y.second}, angles[v].cos.second, angles[v].sin.second);
      x = {first.x, second.x};
      y = {first.y, second.y};
    }
    Isa::store_twos(targets, packs);
  }

  // In the order of memory.
  static ROPE_INLINE Angles load_rest(const C* cos, const C* sin, V sign, int64_t n) {
    const int64_t low = n < lanes ? n : lanes;
    return {{Isa::load(cos, low), Isa::load(cos + lanes, n - low)},
            {multiply(Isa::load(sin, low), sign), multiply(Isa::load(sin + lanes, n - low), sign)}};
  }

  static ROPE_INLINE void turn_rest(const T* source, T* target, int64_t distance, const Angles& angles,
                                    int64_t n) {
    if (n >= lanes) {
      const Pair<V> pair = rotate(Pair<V>{Isa::load(source), Isa::load(source + distance)}, angles.cos.first,
                                  angles.sin.first);
      Isa::store(target, pair.x);
      Isa::store(target + distance, pair.y);
      if (n > lanes)
        turn_few(source + lanes, target + lanes, distance, angles.cos.second, angles.sin.second, n - lanes);
    } else {
      turn_few(source, target, distance, angles.cos.first, angles.sin.first, n);
    }
  }

 private:
  static ROPE_INLINE void turn_few(const T* source, T* target, int64_t distance, V cos, V sin, int64_t n) {
    const Pair<V> pair = rotate(Pair<V>{Isa::load(source, n), Isa::load(source + distance, n)}, cos, sin);
    Isa::store(target, pair.x, n);
    Isa::store(target + distance, pair.y, n);
  }
};

// Interleaved pairs that come apart into vectors of x and of y.
template <class Isa, class T>
struct InterleavedApart {
  using C = Compute<T>;
  using V = typename Isa::template Vector<C>;
  struct Angles {
    V cos, sin;
  };
  static constexpr int64_t lanes = V::lanes, width = lanes;
  static constexpr int many = 4;
  static constexpr int64_t elements_per_pair = 2;

  static ROPE_INLINE Angles load(const C* cos, const C* sin, V sign) {
    return {Isa::load(cos), multiply(Isa::load(sin), sign)};
  }

  template <int n>
  static ROPE_INLINE void turn(const T* source, T* target, int64_t, const Angles* angles) {
    Pair<V> pairs[n];
    for (int v = 0; v < n; ++v) pairs[v] = Isa::load_pairs(source + 2 * v * lanes);
    for (int v = 0; v < n; ++v) pairs[v] = rotate(pairs[v], angles[v].cos, angles[v].sin);
    Isa::store_many_pairs(target, pairs);
  }

  static ROPE_INLINE Angles load_rest(const C* cos, const C* sin, V sign, int64_t n) {
    return {Isa::load(cos, n), multiply(Isa::load(sin, n), sign)};
  }

  static ROPE_INLINE void turn_rest(const T* source, T* target, int64_t, const Angles& angles, int64_t n) {
    Isa::store_pairs(target, rotate(Isa::load_pairs(source, n), angles.cos, angles.sin), n);
  }
};

// Interleaved pairs that stay together and meet every angle twice.
template <class Isa, class T>
struct InterleavedTogether {
  using C = Compute<T>;
  using V = typename Isa::template Vector<C>;
  struct Angles {
    Two<V> cos, sin;
  };
  static constexpr int64_t lanes = V::lanes, width = lanes;
  static constexpr int many = 2;
  static constexpr int64_t elements_per_pair = 2;

  static ROPE_INLINE Angles load(const C* cos, const C* sin, V sign) {
    return {Isa::doubled(Isa::load(cos)), Isa::doubled_with_signs(multiply(Isa::load(sin), sign))};
  }

  template <int n>
  static ROPE_INLINE void turn(const T* source, T* target, int64_t, const Angles* angles) {
    Two<V> pairs[n];
    for (int v = 0; v < n; ++v)
      pairs[v] = {Isa::load(source + 2 * v * lanes), Isa::load(source + (2 * v + 1) * lanes)};
    for (int v = 0; v < n; ++v)
      pairs[v] = {rotate_interleaved(pairs[v].first, angles[v].cos.first, angles[v].sin.first),
                  rotate_interleaved(pairs[v].second, angles[v].cos.second, angles[v].sin.second)};
    for (int v = 0; v < n; ++v) {
      Isa::store(target + 2 * v * lanes, pairs[v].first);
      Isa::store(target + (2 * v + 1) * lanes, pairs[v].second);
    }
  }

  static ROPE_INLINE Angles load_rest(const C* cos, const C* sin, V sign, int64_t n) {
    return {Isa::doubled(Isa::load(cos, n)), Isa::doubled_with_signs(multiply(Isa::load(sin, n), sign))};
  }

  static ROPE_INLINE void turn_rest(const T* source, T* target, int64_t, const Angles& angles, int64_t n) {
    const int64_t low = 2 * n < lanes ? 2 * n : lanes, high = 2 * n - low;
    const V first = rotate_interleaved(Isa::load(source, low), angles.cos.first, angles.sin.first);
    const V second =
        rotate_interleaved(Isa::load(source + lanes, high), angles.cos.second, angles.sin.second);
    Isa::store(target, first, low);
    Isa::store(target + lanes, second, high);
  }
};

template <class Isa, class T>
struct Kernel {
  using C = Compute<T>;
  using V = typename Isa::template Vector<C>;

  template <class Form>
  static ROPE_NOINLINE void rotate_rows(Rows<T> rows, AngleRows<C> angles) {
    for (int64_t token = 0; token < rows.tokens.count; ++token) {
      if (rows.pairs == Form::many * Form::width) {
        rotate_blocks<Form, Form::many>(rows, angles);
      } else if (rows.pairs == Form::width) {
        rotate_blocks<Form, 1>(rows, angles);
      } else {
        rotate_any<Form>(rows, angles);
      }
      next_token(rows, angles);
    }
  }

  // Any element stride, one pair at a time.
  static ROPE_NOINLINE void rotate_strided(Rows<T> rows, AngleRows<C> angles, int64_t pair_step) {
    for (int64_t token = 0; token < rows.tokens.count; ++token) {
      for_each_head(rows, [&](const T* source, T* target) ROPE_ALWAYS_INLINE {
        for (int64_t i = 0; i < rows.pairs; ++i) {
          const T* x = source + i * pair_step * rows.source_element;
          T* x_out = target + i * pair_step * rows.target_element;
          const Pair<C> pair =
              rotate(Pair<C>{to_compute(*x), to_compute(x[rows.distance * rows.source_element])},
                     angles.cos[i], multiply(angles.sin[i], angles.sign));
          rope_ext::store(x_out, pair.x);
          rope_ext::store(x_out + rows.distance * rows.target_element, pair.y);
        }
      });
      next_token(rows, angles);
    }
  }

  // A row of a table in the compute type, element behind element.
  static ROPE_NOINLINE void fill(TableRow row, C* cos, C* sin) {
    visit(row.element, [&](auto element) {
      using A = decltype(element);
      convert(cos, static_cast<const A*>(row.cos), row.cos_element, row.pairs);
      convert(sin, static_cast<const A*>(row.sin), row.sin_element, row.pairs);
    });
  }

  static ROPE_NOINLINE void cos_sin_row(TurnsRow row, C scale, C* cos, C* sin) {
    if constexpr (Isa::template makes_angles<C>) {
      for (int64_t i = 0; i < row.pairs; i += V::lanes) {
        const Pair<V> pair = Isa::cos_sin(row, i);
        Isa::store(cos + i, multiply(pair.x, Isa::broadcast(scale)));
        Isa::store(sin + i, multiply(pair.y, Isa::broadcast(scale)));
      }
    } else {
      for (int64_t i = 0; i < row.pairs; ++i) {
        Turns turns = 0;
        for (int64_t a = 0; a < row.axes; ++a)
          turns += row.turns[a * row.axis_stride + i] * static_cast<Turns>(row.positions[a]);
        const Pair<C> pair = cos_sin(turns, C{});
        cos[i] = multiply(pair.x, scale);
        sin[i] = multiply(pair.y, scale);
      }
    }
  }

  static constexpr KernelsOf<T> functions() {
    using Interleaved = std::conditional_t<Isa::template takes_pairs_apart<T>, InterleavedApart<Isa, T>,
                                           InterleavedTogether<Isa, T>>;
    return {rotate_rows<HalfSplit<Isa, T>>, rotate_rows<Interleaved>, rotate_strided, fill, cos_sin_row};
  }

 private:
  static ROPE_INLINE void next_token(Rows<T>& rows, AngleRows<C>& angles) {
    rows.source += rows.tokens.source_stride;
    rows.target += rows.tokens.target_stride;
    angles.cos += angles.stride;
    angles.sin += angles.stride;
  }

  template <class Body>
  static ROPE_INLINE void for_each_head(const Rows<T>& rows, Body body) {
    const T* source = rows.source;
    T* target = rows.target;
    for (int64_t head = 0; head < rows.heads.count; ++head) {
      body(source, target);
      source += rows.heads.source_stride;
      target += rows.heads.target_stride;
    }
  }

  // A row is one block: its angles stay in registers for all heads.
  template <class Form, int n>
  static ROPE_INLINE void rotate_blocks(const Rows<T>& rows, const AngleRows<C>& row) {
    const V sign = Isa::broadcast(row.sign);
    typename Form::Angles angles[n];
    for (int v = 0; v < n; ++v)
      angles[v] = Form::load(row.cos + v * Form::width, row.sin + v * Form::width, sign);
    const int64_t distance = rows.distance;
    for_each_head(rows, [&](const T* source, T* target)
                            ROPE_ALWAYS_INLINE { Form::template turn<n>(source, target, distance, angles); });
  }

  // Rows of any length: angles are brought into the order of the form once, and wait in the first-level
  // cache.
  template <class Form>
  static ROPE_INLINE void rotate_any(const Rows<T>& rows, const AngleRows<C>& row) {
    const V sign = Isa::broadcast(row.sign);
    const int64_t whole = rows.pairs / Form::width, rest = rows.pairs % Form::width;
    typename Form::Angles angles[kMaxPairs / Form::width + 1];
    for (int64_t v = 0; v < whole; ++v)
      angles[v] = Form::load(row.cos + v * Form::width, row.sin + v * Form::width, sign);
    if (rest > 0)
      angles[whole] =
          Form::load_rest(row.cos + whole * Form::width, row.sin + whole * Form::width, sign, rest);
    constexpr int64_t step = Form::width * Form::elements_per_pair;
    for_each_head(rows, [&](const T* source, T* target) ROPE_ALWAYS_INLINE {
      int64_t v = 0;
      for (; v + Form::many <= whole; v += Form::many)
        Form::template turn<Form::many>(source + v * step, target + v * step, rows.distance, angles + v);
      for (; v < whole; ++v)
        Form::template turn<1>(source + v * step, target + v * step, rows.distance, angles + v);
      if (rest > 0) Form::turn_rest(source + v * step, target + v * step, rows.distance, angles[v], rest);
    });
  }

  template <class A>
  static ROPE_INLINE void convert(C* target, const A* source, int64_t element, int64_t count) {
    int64_t i = 0;
    if constexpr (std::is_same_v<Compute<A>, C>) {
      for (; element == 1 && i + V::lanes <= count; i += V::lanes)
        Isa::store(target + i, Isa::load(source + i));
    }
    for (; i < count; ++i) target[i] = static_cast<C>(to_compute(source[i * element]));
  }
};

template <class Isa>
constexpr Kernels kernels_of() {
  return {Kernel<Isa, float16>::functions(), Kernel<Isa, bfloat16>::functions(),
          Kernel<Isa, float>::functions(), Kernel<Isa, double>::functions()};
}

}  // namespace rope_ext::cpu
