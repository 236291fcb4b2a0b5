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
  const void* data;  // null: token t takes row t
  bool wide;         // int64, otherwise int32
  int64_t batch[kBatchDims];
  int64_t token;
};

struct Angles {
  Table cos, sin;
  Element element;
  int64_t rows;
  Positions positions;
  bool inverse;  // the sign of every sine
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
