// All that a launcher may know of a call: plain data, for every device.
#pragma once

#include <cstdint>

#include "element.h"

namespace rope_ext {

// Leading dimensions that are left after those that can be walked as one are merged.
inline constexpr int kBatchDims = 6;

// In elements.
struct Strides {
  int64_t batch[kBatchDims];
  int64_t token, head, element;
};

// The rotated slice of one tensor: source and target are the same in place.
struct View {
  const void* source;  // the first rotated element: token 0, head 0, element `start`
  void* target;
  Strides from, to;
  int64_t heads;       // rotated
  int64_t kept_heads;  // behind them: copied when out of place
};

struct Table {
  const void* data;
  Strides strides;  // token: from row to row; head: 0 where all heads share a row
};

struct Positions {
  const void* data;  // null: the index of the token, on every axis
  bool wide;         // int64 or float64, otherwise of 32 bits
  int64_t batch[kBatchDims];
  int64_t token;
  int64_t axis = 0;
  bool floating = false;
};

// Of positions and frequencies.
inline constexpr int64_t kMaxAxes = 64;

// What a unit of position turns a pair by, in place of tables.
struct Frequencies {
  const void* data = nullptr;  // null: there are tables
  bool fixed = false;          // turns, 2^64 to one; otherwise radians, of `element`
  Element element = Element::float64;
  int64_t axes = 1;
  int64_t axis = 0, head = 0, pair = 1;  // strides
  double scale = 1;
};

struct Angles {
  Table cos, sin;
  Element element;
  int64_t rows;
  Positions positions;
  bool inverse;  // the sign of every sine
  Frequencies frequencies = {};
};

struct Problem {
  Element element;
  bool interleaved;
  int batch_dims;
  int64_t batch_sizes[kBatchDims];
  int64_t batches;  // their product
  int64_t tokens;   // of one batch
  int64_t head_dim, start, pairs;
  int views;  // query, or query and key
  View view[2];
  Angles angles;
};

}  // namespace rope_ext
