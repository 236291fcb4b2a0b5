// The one kernel: forward and backward, in place and not, any layout, any stride.
//
// Why this shape. A rotation moves memory and computes little, so a thread owns whole pairs: it loads x and y
// in accesses of up to 16 bytes, turns them and stores them where they belong. Every element is read once
// and written once, by one thread: there is no shared memory, no shuffle, no barrier and no race. Its cosines
// and sines stay in registers while it goes from head to head, through query and key in one launch, and it
// loads `Form::together` heads before it turns the first.
#pragma once

#include <cuda_runtime.h>

// A position is checked in every build.
#undef NDEBUG
#include <cassert>
#include <cmath>
#include <type_traits>

#include "../core/angle.h"
#include "../core/problem.h"
#include "../core/rotate.h"
#include "divisor.h"

#if defined(__GNUC__)
#define ROPE_MAY_ALIAS __attribute__((may_alias))
#else
#define ROPE_MAY_ALIAS
#endif

namespace rope_ext::cuda {

// Of a block. Four blocks are resident on a multiprocessor where a thread has 64 registers.
inline constexpr int kThreads = 256;
inline constexpr int kResidentBlocks = 4;

inline constexpr int kAccessBytes = 16;
// That a thread reads of each table: more would not fit into registers beside its pairs.
inline constexpr int kTableBytes = 32;

// Radians become turns by long products: more pairs of them would not fit either.
inline constexpr int kRadianPairs = 2;

template <class T, int count>
struct alignas(count * sizeof(T)) Chunk {
  T values[count];
};

// The bytes of an access, untouched in registers until they are turned.
template <int bytes>
struct alignas(bytes) Raw {
  uint32_t words[bytes / 4];
} ROPE_MAY_ALIAS;
template <>
struct alignas(2) Raw<2> {
  uint16_t word;
} ROPE_MAY_ALIAS;

// A form says how pairs lie in a thread's accesses.

// x and y apart, `count` of each in an access: half-split. A count of one serves any pairing and any stride.
template <class Element, int count>
struct Apart {
  using T = Element;
  using Access = Raw<count * sizeof(T)>;
  static constexpr int pairs = count, elements = count, accesses = 2;
  static constexpr bool any_stride = count == 1;
  static constexpr int together = 2;

  template <class Chunks>
  static ROPE_INLINE T& x(Chunks& chunks, int i) {
    return chunks[0].values[i];
  }
  template <class Chunks>
  static ROPE_INLINE T& y(Chunks& chunks, int i) {
    return chunks[1].values[i];
  }
};

// x and y side by side in one access: interleaved.
template <class Element, int count>
struct Together {
  using T = Element;
  using Access = Raw<2 * count * sizeof(T)>;
  static constexpr int pairs = count, elements = 2 * count, accesses = 1;
  static constexpr bool any_stride = false;
  static constexpr int together = 4;

  template <class Chunks>
  static ROPE_INLINE T& x(Chunks& chunks, int i) {
    return chunks[0].values[2 * i];
  }
  template <class Chunks>
  static ROPE_INLINE T& y(Chunks& chunks, int i) {
    return chunks[0].values[2 * i + 1];
  }
};

// Heads dealt out to lanes in turn: `each` or, in the first `extra` lanes, one more.
struct Share {
  int32_t each;
  int64_t extra;

  ROPE_INLINE int32_t of(int64_t lane) const { return each + (lane < extra); }
};

// What the launcher adds to a problem.
struct Work {
  bool tokens_are_neighbours;  // of threads in a warp; otherwise heads are
  Problem problem;
  Divisor tokens_of_batch, batch_sizes[kBatchDims];
  int64_t first_token, tokens;  // of all batches
  // Of a view: the threads that share its heads, the heads that move and those of them that turn.
  int64_t lanes[2], from_step[2], to_step[2];
  Share moving[2], turning[2];
  // A column is one thread's part of a head: first those that turn, then those that are only copied.
  int64_t turning_columns, columns;
  int64_t pair_step, y_distance;  // in elements, from pair to pair and from x to y
  float scale;                    // of the frequencies, for float
};

// What a thread does: one column of one token, in some heads of query or key.
struct Place {
  int64_t token, column, head;
  bool key;
  bool exists;

  // One of two by a selection: an index that the compiler does not know costs it the constant memory's
  // addressing.
  template <class T>
  ROPE_INLINE T of(T query, T of_key) const {
    return key ? of_key : query;
  }
};

ROPE_INLINE Place place_of(const Work& work) {
  const bool swapped = work.tokens_are_neighbours;
  const unsigned tokens = swapped ? blockDim.y : blockDim.z, heads = swapped ? blockDim.z : blockDim.y;
  const unsigned token = swapped ? threadIdx.y : threadIdx.z, head = swapped ? threadIdx.z : threadIdx.y;
  const int64_t lane = int64_t{blockIdx.y} * heads + head;
  const bool key = lane >= work.lanes[0];
  Place place{work.first_token + int64_t{blockIdx.x} * tokens + token,
              int64_t{blockIdx.z} * blockDim.x + threadIdx.x, key ? lane - work.lanes[0] : lane, key};
  place.exists =
      place.token < work.tokens && place.column < work.columns && lane < work.lanes[0] + work.lanes[1];
  return place;
}

// A token of one batch: its index, and what it adds to each address, in elements.
struct Token {
  int64_t index, cos, sin, positions, from, to;
};

ROPE_INLINE int64_t position_at(const Positions& positions, int64_t offset) {
  return positions.wide ? static_cast<const int64_t*>(positions.data)[offset]
                        : static_cast<const int32_t*>(positions.data)[offset];
}

ROPE_INLINE Token token_at(const Work& work, const Place& place) {
  const Problem& problem = work.problem;
  const View &query = problem.view[0], &key = problem.view[1];
  const Angles& angles = problem.angles;
  int64_t index = place.token;
  int64_t batch = work.tokens_of_batch.divide(index);
  Token token{.index = index,
              .cos = 0,
              .sin = 0,
              .positions = index * angles.positions.token,
              .from = index * place.of(query.from.token, key.from.token),
              .to = index * place.of(query.to.token, key.to.token)};
#pragma unroll
  for (int d = kBatchDims; d-- > 0;) {
    if (d >= problem.batch_dims) continue;
    int64_t own = batch;
    batch = work.batch_sizes[d].divide(own);
    token.cos += own * angles.cos.strides.batch[d];
    token.sin += own * angles.sin.strides.batch[d];
    token.positions += own * angles.positions.batch[d];
    token.from += own * place.of(query.from.batch[d], key.from.batch[d]);
    token.to += own * place.of(query.to.batch[d], key.to.batch[d]);
  }
  return token;
}

template <class Form>
struct Turn {
  Compute<typename Form::T> cos[Form::pairs], sin[Form::pairs];
};

ROPE_INLINE double converted(double angle, double) { return angle; }
ROPE_INLINE float converted(double angle, float) { return narrow(angle); }
ROPE_INLINE Turns converted(Turns turns, Turns) { return turns; }
template <class E, class C>
ROPE_INLINE C converted(E angle, C) {
  return to_compute(angle);
}

template <class E, class C, int pairs>
ROPE_INLINE void read(const void* table, int64_t offset, C (&angles)[pairs]) {
  constexpr int count = pairs * int(sizeof(E)) <= kAccessBytes ? pairs : kAccessBytes / int(sizeof(E));
  using Access = Chunk<E, count>;
  const Access* const accesses = reinterpret_cast<const Access*>(static_cast<const E*>(table) + offset);
#pragma unroll
  for (int i = 0; i < pairs; i += count) {
    const Access access = accesses[i / count];
#pragma unroll
    for (int k = 0; k < count; ++k) angles[i + k] = converted(access.values[k], C{});
  }
}

// Where angles come from: made of a work, a place and a token, it gives the turn of the thread's pairs. What
// it does when it is made comes before the first heads are loaded, what `turn` does behind.

// A row of each table. A position is checked before anything else happens.
template <class Form>
class FromTables {
 public:
  ROPE_INLINE FromTables(const Work& work, const Place& place, const Token& token)
      : angles_(work.problem.angles) {
    const Positions& positions = angles_.positions;
    const int64_t row = positions.data ? position_at(positions, token.positions) : token.index;
    assert(0 <= row && row < angles_.rows);
    const auto offset = [&](const Strides& strides, int64_t batch) {
      return batch + row * strides.token + place.head * strides.head +
             place.column * Form::pairs * strides.element;
    };
    cos_ = offset(angles_.cos.strides, token.cos);
    sin_ = offset(angles_.sin.strides, token.sin);
  }

  ROPE_INLINE Turn<Form> turn() const {
    using T = typename Form::T;
    Turn<Form> by;
    const auto read_both = [&](auto element) {
      read<decltype(element)>(angles_.cos.data, cos_, by.cos);
      read<decltype(element)>(angles_.sin.data, sin_, by.sin);
    };
    if (angles_.element == Element::float64) {
      if constexpr (Form::pairs * int(sizeof(double)) <= kTableBytes) read_both(double{});
    } else if (sizeof(T) >= 4 || angles_.element == Element::float32) {
      read_both(float{});
    } else {
      read_both(T{});
    }
    return by;
  }

 private:
  const Angles& angles_;
  int64_t cos_, sin_;
};

template <class Form>
ROPE_INLINE Turn<Form> turn_by(const Work& work, const Turns (&turns)[Form::pairs]) {
  using C = Compute<typename Form::T>;
  C scale;
  if constexpr (sizeof(C) == sizeof(double)) {
    scale = work.problem.angles.frequencies.scale;
  } else {
    scale = work.scale;
  }
  Turn<Form> by;
#pragma unroll
  for (int i = 0; i < Form::pairs; ++i) {
    const Pair<C> pair = cos_sin(turns[i], C{});
    by.cos[i] = multiply(pair.x, scale);
    by.sin[i] = multiply(pair.y, scale);
  }
  return by;
}

// None where the thread's heads are only kept: frequencies may have no such head.
ROPE_INLINE int64_t axes_of(const Work& work, const Place& place) {
  const Problem& problem = work.problem;
  return place.head < place.of(problem.view[0].heads, problem.view[1].heads) ? problem.angles.frequencies.axes
                                                                             : 0;
}

// Frequencies in turns, at integer positions.
template <class Form>
class FromTurns {
 public:
  ROPE_INLINE FromTurns(const Work& work, const Place& place, const Token& token) {
    const Positions& positions = work.problem.angles.positions;
    const Frequencies& frequencies = work.problem.angles.frequencies;
    const int64_t axes = axes_of(work, place);
    Turns turns[Form::pairs] = {};
    int64_t unit = place.head * frequencies.head + place.column * Form::pairs * frequencies.pair;
    int64_t at = token.positions;
#pragma unroll 1
    for (int64_t axis = 0; axis < axes; ++axis) {
      const int64_t position = positions.data ? position_at(positions, at) : token.index;
      Turns of_unit[Form::pairs];
      read<Turns>(frequencies.data, unit, of_unit);
#pragma unroll
      for (int i = 0; i < Form::pairs; ++i) turns[i] += of_unit[i] * static_cast<Turns>(position);
      unit += frequencies.axis;
      at += positions.axis;
    }
    by_ = turn_by<Form>(work, turns);
  }

  ROPE_INLINE Turn<Form> turn() const { return by_; }

 private:
  Turn<Form> by_;
};

ROPE_INLINE Exact exact_at(const void* data, bool wide, int64_t offset) {
  return wide ? exact(static_cast<const double*>(data)[offset])
              : exact(static_cast<const float*>(data)[offset]);
}

// Frequencies in radians, at integer or floating positions.
template <class Form>
class FromRadians {
 public:
  ROPE_INLINE FromRadians(const Work& work, const Place& place, const Token& token) {
    const Positions& positions = work.problem.angles.positions;
    const Frequencies& frequencies = work.problem.angles.frequencies;
    const int64_t axes = axes_of(work, place);
    // Asked here, or nvcc loses the address space of positions where it takes the loops apart.
    const bool given = positions.data != nullptr;
    Turns turns[Form::pairs];
    bool finite[Form::pairs];
#pragma unroll
    for (int i = 0; i < Form::pairs; ++i) {
      int64_t unit = place.head * frequencies.head + (place.column * Form::pairs + i) * frequencies.pair;
      int64_t at = token.positions;
      turns[i] = 0;
      finite[i] = true;
#pragma unroll 1
      for (int64_t axis = 0; axis < axes; ++axis) {
        const Exact frequency = exact_at(frequencies.data, frequencies.element == Element::float64, unit);
        finite[i] &= frequency.finite;
        if (positions.floating) {
          const Exact position = exact_at(positions.data, positions.wide, at);
          finite[i] &= position.finite;
          turns[i] += turns_of(position, frequency);
        } else {
          const int64_t position = given ? position_at(positions, at) : token.index;
          turns[i] += turns_of(frequency) * static_cast<Turns>(position);
        }
        unit += frequencies.axis;
        at += positions.axis;
      }
    }
    by_ = turn_by<Form>(work, turns);
#pragma unroll
    for (int i = 0; i < Form::pairs; ++i) {
      if (!finite[i]) by_.cos[i] = by_.sin[i] = static_cast<Compute<typename Form::T>>(NAN);
    }
  }

  ROPE_INLINE Turn<Form> turn() const { return by_; }

 private:
  Turn<Form> by_;
};

// A thread's elements: those of its first head, and the way to those of its next.
template <class T>
struct Elements {
  const T* source;
  T* target;
  int64_t from_step, to_step, from_element, to_element;
};

template <class Form>
ROPE_INLINE Elements<typename Form::T> elements_of(const Work& work, const Place& place, const Token& token) {
  using T = typename Form::T;
  const View &query = work.problem.view[0], &key = work.problem.view[1];
  const int64_t from = token.from + place.head * place.of(query.from.head, key.from.head);
  const int64_t to = token.to + place.head * place.of(query.to.head, key.to.head);
  return {.source = static_cast<const T*>(place.of(query.source, key.source)) + from,
          .target = static_cast<T*>(place.of(query.target, key.target)) + to,
          .from_step = place.of(work.from_step[0], work.from_step[1]),
          .to_step = place.of(work.to_step[0], work.to_step[1]),
          .from_element = Form::any_stride ? place.of(query.from.element, key.from.element) : 1,
          .to_element = Form::any_stride ? place.of(query.to.element, key.to.element) : 1};
}

template <class Form>
ROPE_INLINE void turn(typename Form::Access (&accesses)[Form::accesses], const Turn<Form>& by) {
  using T = typename Form::T;
  Chunk<T, Form::elements> chunks[Form::accesses];
  memcpy(&chunks, &accesses, sizeof chunks);
#pragma unroll
  for (int i = 0; i < Form::pairs; ++i) {
    T &x = Form::x(chunks, i), &y = Form::y(chunks, i);
    const Pair<Compute<T>> pair = {to_compute(x), to_compute(y)};
    const Pair<Compute<T>> turned = rotate(pair, by.cos[i], by.sin[i]);
    store(&x, turned.x);
    store(&y, turned.y);
  }
  memcpy(&accesses, &chunks, sizeof chunks);
}

template <class Form, template <class> class Source>
ROPE_INLINE void turn_heads(const Work& work, const Place& place) {
  using T = typename Form::T;
  using Access = typename Form::Access;
  const Token token = token_at(work, place);
  const Source<Form> source(work, place, token);
  Elements<T> elements = elements_of<Form>(work, place, token);
  const int64_t first = place.column * Form::pairs * work.pair_step;
  elements.source += first * elements.from_element;
  elements.target += first * elements.to_element;

  int32_t heads = place.of(work.turning[0].of(place.head), work.turning[1].of(place.head));
  Access accesses[Form::together][Form::accesses];
  const auto load = [&] {
#pragma unroll
    for (int h = 0; h < Form::together; ++h) {
#pragma unroll
      for (int a = 0; a < Form::accesses; ++a) {
        const T* const place = elements.source + a * work.y_distance * elements.from_element;
        if (h < heads) accesses[h][a] = *reinterpret_cast<const Access*>(place);
      }
      elements.source += elements.from_step;
    }
  };
  if (heads <= 0) return;  // a lane of heads that are only kept has no angles of its own
  load();
  Turn<Form> by = source.turn();
#pragma unroll
  for (int i = 0; i < Form::pairs; ++i) by.sin[i] = work.problem.angles.inverse ? -by.sin[i] : by.sin[i];
  // Not unrolled further: nvcc would take the accesses of a third copy apart.
#pragma unroll 1
  for (; heads > 0; load()) {
#pragma unroll
    for (int h = 0; h < Form::together; ++h) {
      if (h < heads) {
        turn<Form>(accesses[h], by);
#pragma unroll
        for (int a = 0; a < Form::accesses; ++a) {
          T* const target = elements.target + a * work.y_distance * elements.to_element;
          *reinterpret_cast<Access*>(target) = accesses[h][a];
        }
      }
      elements.target += elements.to_step;
    }
    heads -= Form::together;
  }
}

// Out of place: what is beside the rotated slice of a head, and the heads that are not rotated.
template <class Form>
ROPE_INLINE void keep_rest(const Work& work, const Place& place) {
  using Access = typename Form::Access;
  const Problem& problem = work.problem;
  const int64_t rotated = 2 * problem.pairs, rest = problem.head_dim - rotated;
  const int32_t turned = place.of(work.turning[0].of(place.head), work.turning[1].of(place.head));
  const int32_t heads = place.of(work.moving[0].of(place.head), work.moving[1].of(place.head));
  Elements<typename Form::T> elements = elements_of<Form>(work, place, token_at(work, place));
#pragma unroll 1
  for (int32_t head = 0; head < heads; ++head) {
    const bool whole = head >= turned;
#pragma unroll
    for (int a = 0; a < Form::accesses; ++a) {
      // A thread's accesses lie half of all of them apart, so that neighbours touch neighbouring memory.
      const int64_t access = place.column - work.turning_columns + a * (work.columns - work.turning_columns);
      const int64_t element = access * Form::elements;
      const int64_t at = element - problem.start + (whole || element < problem.start ? 0 : rotated);
      if (element < (whole ? problem.head_dim : rest))
        *reinterpret_cast<Access*>(elements.target + at * elements.to_element) =
            *reinterpret_cast<const Access*>(elements.source + at * elements.from_element);
    }
    elements.source += elements.from_step;
    elements.target += elements.to_step;
  }
}

template <class Form, template <class> class Source>
__global__ void __launch_bounds__(kThreads, kResidentBlocks) rotate_heads(const Work work) {
  const Place place = place_of(work);
  if (!place.exists) return;
  if (place.column < work.turning_columns) {
    turn_heads<Form, Source>(work, place);
  } else {
    keep_rest<Form>(work, place);
  }
}

}  // namespace rope_ext::cuda
