// Rows of angles for the kernels, whatever they come from.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "../core/angle.h"
#include "../core/problem.h"
#include "kernels.h"

namespace rope_ext::cpu {

// Tokens that are rotated at a stretch, query before key: their angles stay in a second-level cache, and
// longer stretches are longer runs of memory (BHSD prefill, float32: 32 tokens 0.70, 128 0.88, 512 1.00 of
// the ceiling).
inline constexpr int64_t kStretch = 512;
// Where angles are made or converted first, they stand on a thread's stack, and the stretch is what fits.
inline constexpr int64_t kScratchBytes = 64 * 1024;
// Turns of so many pairs and axes stand there too.
inline constexpr int64_t kTurns = 2048;

// Of tokens, heads or pairs.
struct Range {
  int64_t first, count;
};

// What a leading index adds to where angles are read.
struct AngleOffsets {
  int64_t cos, sin, positions;
};

inline int64_t position(const Positions& positions, int64_t offset) {
  return positions.wide ? static_cast<const int64_t*>(positions.data)[offset]
                        : static_cast<const int32_t*>(positions.data)[offset];
}

// The angles of one batch. T is the storage type of query and key.
template <class T>
class RowsOfAngles {
 public:
  using C = Compute<T>;

  RowsOfAngles(const Angles& angles, const AngleOffsets& batch, const KernelsOf<T>& kernels)
      : angles_(angles), batch_(batch), kernels_(kernels) {}

  bool differ_by_head() const {
    return made() ? frequencies_.head != 0 : angles_.cos.strides.head != 0 || angles_.sin.strides.head != 0;
  }

  // At most, in one call of rows.
  int64_t pairs_together() const {
    return made() ? std::min(kMaxPairs, kTurns / frequencies_.axes) : kMaxPairs;
  }
  int64_t tokens_together(int64_t pairs) const {
    if (!made() && readable() && !angles_.positions.data) return kStretch;
    return kScratchBytes / (2 * std::clamp<int64_t>(pairs, 1, pairs_together()) * int64_t(sizeof(C)));
  }

  AngleRows<C> rows(Range tokens, int64_t head, Range pairs) {
    return made() ? make(tokens, head, pairs) : read(tokens, head, pairs);
  }

 private:
  bool made() const { return frequencies_.data != nullptr; }
  C sign() const { return angles_.inverse ? C(-1) : C(1); }

  // Whether the table holds what the kernel reads.
  bool readable() const {
    const Strides &cos = angles_.cos.strides, &sin = angles_.sin.strides;
    const Element wanted = std::is_same_v<C, double> ? Element::float64 : Element::float32;
    return angles_.element == wanted && cos.element == 1 && sin.element == 1 && cos.token == sin.token;
  }

  // The table itself, or a copy of these rows that the kernel can read.
  AngleRows<C> read(Range tokens, int64_t head, Range pairs) {
    const Strides &cos = angles_.cos.strides, &sin = angles_.sin.strides;
    const int64_t first = row_of(tokens.first);
    if (readable() && consecutive(tokens, first)) {
      return {static_cast<const C*>(start(angles_.cos, batch_.cos, first, head, pairs)),
              static_cast<const C*>(start(angles_.sin, batch_.sin, first, head, pairs)), cos.token, sign()};
    }
    C* const sines = scratch_ + tokens.count * pairs.count;
    for (int64_t t = 0; t < tokens.count; ++t) {
      const int64_t row = row_of(tokens.first + t);
      kernels_.fill(
          {start(angles_.cos, batch_.cos, row, head, pairs), start(angles_.sin, batch_.sin, row, head, pairs),
           cos.element, sin.element, angles_.element, pairs.count},
          scratch_ + t * pairs.count, sines + t * pairs.count);
    }
    return {scratch_, sines, pairs.count, sign()};
  }

  int64_t row_of(int64_t token) const {
    const Positions& positions = angles_.positions;
    return positions.data ? position(positions, batch_.positions + token * positions.token) : token;
  }

  bool consecutive(Range tokens, int64_t row) const {
    if (!angles_.positions.data) return true;
    for (int64_t t = 1; t < tokens.count; ++t) {
      if (row_of(tokens.first + t) != row + t) return false;
    }
    return true;
  }

  const void* start(const Table& table, int64_t batch, int64_t row, int64_t head, Range pairs) const {
    const Strides& strides = table.strides;
    const int64_t offset = batch + row * strides.token + head * strides.head + pairs.first * strides.element;
    return static_cast<const char*>(table.data) + offset * bytes_of(angles_.element);
  }

  AngleRows<C> make(Range tokens, int64_t head, Range pairs) {
    const bool floating = angles_.positions.floating;
    const int64_t unit = head * frequencies_.head + pairs.first * frequencies_.pair;
    if (!floating) turns_of_unit(unit, pairs.count);
    C* const sines = scratch_ + tokens.count * pairs.count + kRoom;
    for (int64_t t = 0; t < tokens.count; ++t) {
      C *const cos = scratch_ + t * pairs.count, *const sin = sines + t * pairs.count;
      const int64_t token = tokens.first + t, place = batch_.positions + token * angles_.positions.token;
      if (floating) turns_of_token(place, unit, pairs.count);
      int64_t positions[kMaxAxes] = {1};
      for (int64_t a = 0; a < frequencies_.axes && !floating; ++a)
        positions[a] =
            angles_.positions.data ? position(angles_.positions, place + a * angles_.positions.axis) : token;
      const int64_t axes = floating ? 1 : frequencies_.axes;
      kernels_.cos_sin({turns_, pairs.count, axes, positions, pairs.count}, C(frequencies_.scale), cos, sin);
      if (!finite_) unmake(place, unit, pairs.count, cos, sin);
    }
    return {scratch_, sines, pairs.count, sign()};
  }

  Exact exact_position(int64_t place, int64_t axis) const {
    const Positions& positions = angles_.positions;
    const int64_t at = place + axis * positions.axis;
    return positions.wide ? exact(static_cast<const double*>(positions.data)[at])
                          : exact(static_cast<const float*>(positions.data)[at]);
  }

  int64_t frequency_at(int64_t unit, int64_t axis, int64_t pair) const {
    return unit + axis * frequencies_.axis + pair * frequencies_.pair;
  }

  Exact exact_frequency(int64_t at) const {
    return frequencies_.element == Element::float64 ? exact(static_cast<const double*>(frequencies_.data)[at])
                                                    : exact(static_cast<const float*>(frequencies_.data)[at]);
  }

  // Of each axis and pair, for integer positions.
  void turns_of_unit(int64_t unit, int64_t pairs) {
    finite_ = true;
    for (int64_t a = 0; a < frequencies_.axes; ++a) {
      for (int64_t i = 0; i < pairs; ++i) {
        const int64_t at = frequency_at(unit, a, i);
        if (frequencies_.fixed) {
          turns_[a * pairs + i] = static_cast<const Turns*>(frequencies_.data)[at];
        } else {
          const Exact frequency = exact_frequency(at);
          finite_ &= frequency.finite;
          turns_[a * pairs + i] = turns_of(frequency);
        }
      }
    }
  }

  // Of each pair, for the floating positions of a token.
  void turns_of_token(int64_t place, int64_t unit, int64_t pairs) {
    finite_ = true;
    std::fill_n(turns_, pairs, Turns{0});
    for (int64_t a = 0; a < frequencies_.axes; ++a) {
      const Exact position = exact_position(place, a);
      finite_ &= position.finite;
      for (int64_t i = 0; i < pairs; ++i) {
        const Exact frequency = exact_frequency(frequency_at(unit, a, i));
        finite_ &= frequency.finite;
        turns_[i] += turns_of(position, frequency);
      }
    }
  }

  // An infinite angle has no cosine, and is not to be taken for a finite one.
  void unmake(int64_t place, int64_t unit, int64_t pairs, C* cos, C* sin) const {
    for (int64_t a = 0; a < frequencies_.axes; ++a) {
      const bool somewhere = !angles_.positions.floating || exact_position(place, a).finite;
      for (int64_t i = 0; i < pairs; ++i) {
        if (!somewhere || !exact_frequency(frequency_at(unit, a, i)).finite)
          cos[i] = sin[i] = std::numeric_limits<C>::quiet_NaN();
      }
    }
  }

  const Angles& angles_;
  const Frequencies& frequencies_ = angles_.frequencies;
  const AngleOffsets& batch_;
  const KernelsOf<T>& kernels_;
  bool finite_ = true;
  // Both with room behind for the rest of a vector; between cosines and sines is more.
  Turns turns_[kTurns + kRoom];
  alignas(64) C scratch_[kScratchBytes / sizeof(C) + 2 * kRoom];
};

}  // namespace rope_ext::cpu
