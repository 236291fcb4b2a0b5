#include "launch.h"

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "capability.h"
#include "kernels.h"

namespace rope_ext::cpu {
namespace {

// Tokens that are rotated at a stretch, query before key: their angles stay in a second-level cache, and
// longer stretches are longer runs of memory (BHSD prefill, float32: 32 tokens 0.70, 128 0.88, 512 1.00 of
// the ceiling).
constexpr int64_t kStretch = 512;
// Where angles are converted first, they stand on a thread's stack, and the stretch is what fits.
constexpr int64_t kScratchBytes = 64 * 1024;
// Heads that share the angles of a token where tokens lie closer than heads: so many streams of memory
// (1: 0.48, 2: 0.76, 4: 0.89, 8: 0.95 of the ceiling).
constexpr int64_t kHeadsTogether = 8;

// Of tokens, heads or pairs.
struct Range {
  int64_t first, count;
};

// Calls body with parts of a range, each of `size` or less.
template <class Body>
void for_parts(Range range, int64_t size, Body body) {
  for (int64_t done = 0; done < range.count; done += size)
    body(Range{range.first + done, std::min(size, range.count - done)});
}

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
  return static_cast<const char*>(data) + offset * bytes_of(element);
}

// Rotates the tokens of one batch. T is the storage type of query and key.
template <class T>
class Walk {
 public:
  using C = Compute<T>;

  Walk(const Problem& problem, const Batch& batch)
      : problem_(problem), angles_(problem.angles), kernels_(kernels().of<T>()), batch_(batch) {}

  void run(Range tokens) {
    const Range all{0, problem_.pairs};
    const int64_t row_bytes = 2 * std::clamp<int64_t>(all.count, 1, kMaxPairs) * int64_t(sizeof(C));
    const bool as_it_is = readable() && !angles_.positions.data;
    for_parts(tokens, as_it_is ? kStretch : kScratchBytes / row_bytes, [&](Range some) {
      for_parts(all, kMaxPairs, [&](Range pairs) { rotate(some, pairs); });
      for (int v = 0; v < problem_.views; ++v) {
        if (problem_.view[v].source != problem_.view[v].target) keep_rest(v, some);
      }
    });
  }

 private:
  void rotate(Range tokens, Range pairs) {
    if (angles_.cos.strides.head != 0 || angles_.sin.strides.head != 0) {
      for (int64_t head = 0; head < problem_.view[0].heads; ++head) {
        const AngleRows<C> rows = rows_of(tokens, head, pairs);
        for (int v = 0; v < problem_.views; ++v) rotate(v, tokens, {head, 1}, pairs, rows);
      }
      return;
    }
    const AngleRows<C> rows = rows_of(tokens, 0, pairs);
    for (int v = 0; v < problem_.views; ++v) {
      const View& view = problem_.view[v];
      const int64_t together = view.to.token < view.to.head ? kHeadsTogether : view.heads;
      for_parts({0, view.heads}, together, [&](Range heads) { rotate(v, tokens, heads, pairs, rows); });
    }
  }

  // Whether the table holds what the kernel reads.
  bool readable() const {
    const Strides &cos = angles_.cos.strides, &sin = angles_.sin.strides;
    const Element wanted = std::is_same_v<C, double> ? Element::float64 : Element::float32;
    return angles_.element == wanted && cos.element == 1 && sin.element == 1 && cos.token == sin.token;
  }

  // The table itself, or a copy of these rows that the kernel can read.
  AngleRows<C> rows_of(Range tokens, int64_t head, Range pairs) {
    const Strides &cos = angles_.cos.strides, &sin = angles_.sin.strides;
    const C sign = angles_.inverse ? C(-1) : C(1);
    const int64_t first = row_of(tokens.first);
    if (readable() && consecutive(tokens, first)) {
      return {static_cast<const C*>(start(angles_.cos, batch_.cos, first, head, pairs)),
              static_cast<const C*>(start(angles_.sin, batch_.sin, first, head, pairs)), cos.token, sign};
    }
    C* const sines = scratch_ + tokens.count * pairs.count;
    for (int64_t t = 0; t < tokens.count; ++t) {
      const int64_t row = row_of(tokens.first + t);
      kernels_.fill(
          {start(angles_.cos, batch_.cos, row, head, pairs), start(angles_.sin, batch_.sin, row, head, pairs),
           cos.element, sin.element, angles_.element, pairs.count},
          scratch_ + t * pairs.count, sines + t * pairs.count);
    }
    return {scratch_, sines, pairs.count, sign};
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
    return advance(table.data, angles_.element,
                   batch + row * strides.token + head * strides.head + pairs.first * strides.element);
  }

  void rotate(int v, Range tokens, Range heads, Range pairs, AngleRows<C> angles) {
    const View& view = problem_.view[v];
    const int64_t pair_step = problem_.interleaved ? 2 : 1;
    const auto offset = [&](const Strides& strides, int64_t batch) {
      return batch + tokens.first * strides.token + heads.first * strides.head +
             pairs.first * pair_step * strides.element;
    };
    const Rows<T> rows{.target = static_cast<T*>(view.target) + offset(view.to, batch_.to[v]),
                       .source = static_cast<const T*>(view.source) + offset(view.from, batch_.from[v]),
                       .tokens = {tokens.count, view.to.token, view.from.token},
                       .heads = {heads.count, view.to.head, view.from.head},
                       .pairs = pairs.count,
                       .distance = problem_.interleaved ? 1 : problem_.pairs,
                       .target_element = view.to.element,
                       .source_element = view.from.element};
    if (!contiguous(view)) return kernels_.strided(rows, angles, pair_step);
    problem_.interleaved ? kernels_.interleaved(rows, angles) : kernels_.half_split(rows, angles);
  }

  static bool contiguous(const View& view) { return view.from.element == 1 && view.to.element == 1; }

  // Out of place: what is beside the rotated slice of a head, and the heads that are not rotated.
  void keep_rest(int v, Range tokens) {
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
