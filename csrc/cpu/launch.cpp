#include "launch.h"

#include <algorithm>
#include <cstring>

#include "capability.h"
#include "kernels.h"

namespace rope_ext::cpu {
namespace {

// Angle rows that are made before use: half of a first-level cache of 32 KiB, the other half is for data.
constexpr int64_t kScratchBytes = 16 * 1024;
// The widest slice of a row: doubled cosines and sines in double precision fill the scratch once.
constexpr int64_t kScratchPairs = kScratchBytes / (4 * sizeof(double));
// Tokens that one head takes at a stretch where tokens lie closer than heads.
constexpr int64_t kTokensPerHead = 64;

struct Slice {
  int64_t first, pairs;
};

struct Tokens {
  int64_t first, count;
};

// One leading index of a problem: what its strides add to every tensor.
struct Batch {
  int64_t from[2], to[2], cos, sin, positions;
};

int64_t dot(const int64_t* index, const int64_t* strides, int dims) {
  int64_t sum = 0;
  for (int d = 0; d < dims; ++d) sum += index[d] * strides[d];
  return sum;
}

Batch batch_at(const Problem& problem, int64_t flat) {
  int64_t index[kBatchDims];
  for (int d = problem.batch_dims; d-- > 0; flat /= problem.batch_sizes[d])
    index[d] = flat % problem.batch_sizes[d];
  const auto offset = [&](const int64_t* strides) { return dot(index, strides, problem.batch_dims); };
  Batch batch;
  for (int v = 0; v < problem.views; ++v) {
    batch.from[v] = offset(problem.view[v].from.batch);
    batch.to[v] = offset(problem.view[v].to.batch);
  }
  batch.cos = offset(problem.angles.cos.strides.batch);
  batch.sin = offset(problem.angles.sin.strides.batch);
  batch.positions = offset(problem.angles.positions.batch);
  return batch;
}

int64_t position(const Positions& positions, int64_t offset) {
  return positions.wide ? static_cast<const int64_t*>(positions.data)[offset]
                        : static_cast<const int32_t*>(positions.data)[offset];
}

const void* advance(const void* data, Element element, int64_t offset) {
  const int64_t size = element == Element::float64 ? 8 : element == Element::float32 ? 4 : 2;
  return static_cast<const char*>(data) + offset * size;
}

// Rotates the tokens of one batch. T is the storage type of query and key.
template <class T>
class Walk {
 public:
  using C = Compute<T>;

  Walk(const Problem& problem, const Batch& batch)
      : problem_(problem), angles_(problem.angles), kernels_(kernels().of<T>()), batch_(batch) {}

  void run(Tokens tokens) {
    const bool alike = problem_.views == 2 && layout(problem_.view[0]) == layout(problem_.view[1]);
    if (alike) return run(tokens, 0, 2);
    for (int v = 0; v < problem_.views; ++v) run(tokens, v, v + 1);
  }

 private:
  static bool contiguous(const View& view) { return view.from.element == 1 && view.to.element == 1; }

  static bool heads_outer(const View& view) { return view.to.token < view.to.head; }

  AngleLayout layout(const View& view) const {
    const bool vector = problem_.interleaved && contiguous(view);
    return vector ? kernels_.interleaved_layout : AngleLayout::single;
  }

  // Rotates views [first, last), which want the same angles.
  void run(Tokens tokens, int first, int last) {
    const AngleLayout layout = this->layout(problem_.view[first]);
    if (angles_.cos.strides.head != 0 || angles_.sin.strides.head != 0) {
      per_head(tokens, first, last, layout);
    } else if (usable_as_they_are(layout)) {
      shared_table(tokens, first, last);
    } else {
      shared_scratch(tokens, first, last, layout);
    }
    for (int v = first; v < last; ++v) {
      if (problem_.view[v].source != problem_.view[v].target) keep_rest(v, tokens);
    }
  }

  bool usable_as_they_are(AngleLayout layout) const {
    const Strides &cos = angles_.cos.strides, &sin = angles_.sin.strides;
    const Element wanted = std::is_same_v<C, double> ? Element::float64 : Element::float32;
    return layout == AngleLayout::single && angles_.element == wanted && !angles_.inverse &&
           cos.element == 1 && sin.element == 1 && cos.token == sin.token;
  }

  int64_t row_of(int64_t token) const {
    const Positions& positions = angles_.positions;
    return positions.data ? position(positions, batch_.positions + token * positions.token) : token;
  }

  // As many tokens as take rows one behind the other.
  int64_t consecutive(Tokens tokens, int64_t row) const {
    if (!angles_.positions.data) return tokens.count;
    int64_t count = 1;
    while (count < tokens.count && row_of(tokens.first + count) == row + count) ++count;
    return count;
  }

  void shared_table(Tokens tokens, int first, int last) {
    const int64_t limit = heads_outer(problem_.view[first]) ? kTokensPerHead : tokens.count;
    while (tokens.count > 0) {
      const int64_t row = row_of(tokens.first);
      const int64_t count = consecutive({tokens.first, std::min(tokens.count, limit)}, row);
      const C* cos = static_cast<const C*>(angles_.cos.data) + batch_.cos + row * angles_.cos.strides.token;
      const C* sin = static_cast<const C*>(angles_.sin.data) + batch_.sin + row * angles_.sin.strides.token;
      for (int v = first; v < last; ++v)
        rotate(v, {tokens.first, count}, {0, problem_.pairs}, {cos, sin, angles_.cos.strides.token});
      tokens = {tokens.first + count, tokens.count - count};
    }
  }

  void shared_scratch(Tokens tokens, int first, int last, AngleLayout layout) {
    for (Slice slice{0, 0}; slice.first < problem_.pairs; slice.first += slice.pairs) {
      slice.pairs = std::min(kScratchPairs, problem_.pairs - slice.first);
      const int64_t width = layout == AngleLayout::doubled ? 2 * slice.pairs : slice.pairs;
      const int64_t capacity = kScratchBytes / (2 * width * int64_t(sizeof(C)));
      for (int64_t done = 0; done < tokens.count; done += capacity) {
        const Tokens tile{tokens.first + done, std::min(capacity, tokens.count - done)};
        for (int64_t t = 0; t < tile.count; ++t)
          fill(t, width, row_of(tile.first + t), 0, slice, layout, capacity);
        for (int v = first; v < last; ++v)
          rotate(v, tile, slice, {scratch_, scratch_ + capacity * width, width});
      }
    }
  }

  void per_head(Tokens tokens, int first, int last, AngleLayout layout) {
    for (Slice slice{0, 0}; slice.first < problem_.pairs; slice.first += slice.pairs) {
      slice.pairs = std::min(kScratchPairs, problem_.pairs - slice.first);
      const int64_t width = layout == AngleLayout::doubled ? 2 * slice.pairs : slice.pairs;
      const int64_t capacity = kScratchBytes / (2 * width * int64_t(sizeof(C)));
      const int64_t heads = problem_.view[first].heads;
      for (int64_t token = tokens.first; token < tokens.first + tokens.count; ++token) {
        for (int64_t head = 0; head < heads; head += capacity) {
          const int64_t count = std::min(capacity, heads - head);
          for (int64_t h = 0; h < count; ++h)
            fill(h, width, row_of(token), head + h, slice, layout, capacity);
          for (int v = first; v < last; ++v) {
            const View& view = problem_.view[v];
            rotate_rows(v, token, head, {view.to.head, view.from.head, count}, slice,
                        {scratch_, scratch_ + capacity * width, width});
          }
        }
      }
    }
  }

  void fill(int64_t slot, int64_t width, int64_t row, int64_t head, Slice slice, AngleLayout layout,
            int64_t capacity) {
    const auto start = [&](const Table& table, int64_t batch) {
      const Strides& strides = table.strides;
      return advance(table.data, angles_.element,
                     batch + row * strides.token + head * strides.head + slice.first * strides.element);
    };
    kernels_.fill(
        {start(angles_.cos, batch_.cos), start(angles_.sin, batch_.sin), angles_.cos.strides.element,
         angles_.sin.strides.element, angles_.element, angles_.inverse, slice.pairs},
        layout, scratch_ + slot * width, scratch_ + (capacity + slot) * width);
  }

  // Tokens outside and heads inside, or the other way round: whichever is how the tensor lies in memory.
  void rotate(int v, Tokens tokens, Slice slice, AngleRows<C> angles) {
    const View& view = problem_.view[v];
    if (heads_outer(view)) {
      for (int64_t head = 0; head < view.heads; ++head)
        rotate_rows(v, tokens.first, head, {view.to.token, view.from.token, tokens.count}, slice, angles);
    } else {
      for (int64_t t = 0; t < tokens.count; ++t) {
        const AngleRows<C> row{angles.cos + t * angles.stride, angles.sin + t * angles.stride, 0};
        rotate_rows(v, tokens.first + t, 0, {view.to.head, view.from.head, view.heads}, slice, row);
      }
    }
  }

  struct Run {
    int64_t target_stride, source_stride, count;
  };

  void rotate_rows(int v, int64_t token, int64_t head, Run run, Slice slice, AngleRows<C> angles) {
    const View& view = problem_.view[v];
    const int64_t pair_step = problem_.interleaved ? 2 : 1;
    const auto start = [&](const Strides& strides, int64_t batch) {
      return batch + token * strides.token + head * strides.head + slice.first * pair_step * strides.element;
    };
    const Rows<T> rows{.target = static_cast<T*>(view.target) + start(view.to, batch_.to[v]),
                       .source = static_cast<const T*>(view.source) + start(view.from, batch_.from[v]),
                       .count = run.count,
                       .target_stride = run.target_stride,
                       .source_stride = run.source_stride,
                       .pairs = slice.pairs,
                       .distance = problem_.interleaved ? 1 : problem_.pairs,
                       .target_element = view.to.element,
                       .source_element = view.from.element};
    if (!contiguous(view)) return kernels_.strided(rows, angles, pair_step);
    problem_.interleaved ? kernels_.interleaved(rows, angles) : kernels_.half_split(rows, angles);
  }

  // Out of place: what is beside the rotated slice of a head, and the heads that are not rotated.
  void keep_rest(int v, Tokens tokens) {
    const View& view = problem_.view[v];
    const int64_t behind = problem_.start + 2 * problem_.pairs;
    for (int64_t token = tokens.first; token < tokens.first + tokens.count; ++token) {
      if (2 * problem_.pairs < problem_.head_dim) {
        for (int64_t head = 0; head < view.heads; ++head) {
          copy(v, token, head, 0, problem_.start);
          copy(v, token, head, behind, problem_.head_dim - behind);
        }
      }
      const bool flat =
          contiguous(view) && view.from.head == problem_.head_dim && view.to.head == problem_.head_dim;
      const int64_t runs = flat ? std::min<int64_t>(view.kept_heads, 1) : view.kept_heads;
      const int64_t elements = flat ? view.kept_heads * problem_.head_dim : problem_.head_dim;
      for (int64_t run = 0; run < runs; ++run) copy(v, token, view.heads + run, 0, elements);
    }
  }

  void copy(int v, int64_t token, int64_t head, int64_t element, int64_t count) {
    const View& view = problem_.view[v];
    const auto start = [&](const Strides& strides, int64_t batch) {
      return batch + token * strides.token + head * strides.head +
             (element - problem_.start) * strides.element;
    };
    T* target = static_cast<T*>(view.target) + start(view.to, batch_.to[v]);
    const T* source = static_cast<const T*>(view.source) + start(view.from, batch_.from[v]);
    if (contiguous(view)) {
      std::memcpy(target, source, count * sizeof(T));
    } else {
      for (int64_t i = 0; i < count; ++i) target[i * view.to.element] = source[i * view.from.element];
    }
  }

  const Problem& problem_;
  const Angles& angles_;
  const KernelsOf<T>& kernels_;
  const Batch& batch_;
  alignas(64) C scratch_[kScratchBytes / sizeof(C)];
};

}  // namespace

std::optional<int64_t> position_out_of_range(const Problem& problem) {
  const Angles& angles = problem.angles;
  if (!angles.positions.data) return std::nullopt;
  for (int64_t b = 0; b < problem.batches; ++b) {
    const int64_t start = batch_at(problem, b).positions;
    for (int64_t t = 0; t < problem.tokens; ++t) {
      const int64_t value = position(angles.positions, start + t * angles.positions.token);
      if (value < 0 || value >= angles.rows) return value;
    }
  }
  return std::nullopt;
}

void rotate_tokens(const Problem& problem, int64_t begin, int64_t end) {
  visit(problem.element, [&](auto element) {
    for (int64_t at = begin; at < end;) {
      const int64_t first = at % problem.tokens;
      const int64_t count = std::min(end - at, problem.tokens - first);
      const Batch batch = batch_at(problem, at / problem.tokens);
      Walk<decltype(element)>(problem, batch).run({first, count});
      at += count;
    }
  });
}

}  // namespace rope_ext::cpu
