#include "launch.h"

#include <algorithm>
#include <cstring>

#include "angles.h"
#include "capability.h"
#include "kernels.h"

namespace rope_ext::cpu {
namespace {

// Heads that share the angles of a token where tokens lie closer than heads: so many streams of memory
// (1: 0.48, 2: 0.76, 4: 0.89, 8: 0.95 of the ceiling).
constexpr int64_t kHeadsTogether = 8;

// Calls body with parts of a range, each of `size` or less.
template <class Body>
void for_parts(Range range, int64_t size, Body body) {
  for (int64_t done = 0; done < range.count; done += size)
    body(Range{range.first + done, std::min(size, range.count - done)});
}

// One leading index of a problem: what its strides add to every tensor.
struct Batch {
  int64_t from[2], to[2];
  AngleOffsets angles;
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
  batch.angles = {offset(problem.angles.cos.strides.batch), offset(problem.angles.sin.strides.batch),
                  offset(problem.angles.positions.batch)};
  return batch;
}

// Rotates the tokens of one batch. T is the storage type of query and key.
template <class T>
class Walk {
 public:
  using C = Compute<T>;

  Walk(const Problem& problem, const Batch& batch)
      : problem_(problem),
        batch_(batch),
        kernels_(kernels().of<T>()),
        angles_(problem.angles, batch.angles, kernels_) {}

  void run(Range tokens) {
    const Range all{0, problem_.pairs};
    for_parts(tokens, angles_.tokens_together(all.count), [&](Range some) {
      for_parts(all, angles_.pairs_together(), [&](Range pairs) { rotate(some, pairs); });
      for (int v = 0; v < problem_.views; ++v) {
        if (problem_.view[v].source != problem_.view[v].target) keep_rest(v, some);
      }
    });
  }

 private:
  void rotate(Range tokens, Range pairs) {
    if (angles_.differ_by_head()) {
      for (int64_t head = 0; head < problem_.view[0].heads; ++head) {
        const AngleRows<C> rows = angles_.rows(tokens, head, pairs);
        for (int v = 0; v < problem_.views; ++v) rotate(v, tokens, {head, 1}, pairs, rows);
      }
      return;
    }
    const AngleRows<C> rows = angles_.rows(tokens, 0, pairs);
    for (int v = 0; v < problem_.views; ++v) {
      const View& view = problem_.view[v];
      const int64_t together = view.to.token < view.to.head ? kHeadsTogether : view.heads;
      for_parts({0, view.heads}, together, [&](Range heads) { rotate(v, tokens, heads, pairs, rows); });
    }
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
  const Batch& batch_;
  const KernelsOf<T>& kernels_;
  RowsOfAngles<T> angles_;
};

}  // namespace

std::optional<int64_t> position_out_of_range(const Problem& problem) {
  const Angles& angles = problem.angles;
  if (!angles.positions.data || angles.frequencies.data) return std::nullopt;
  for (int64_t b = 0; b < problem.batches; ++b) {
    const int64_t start = batch_at(problem, b).angles.positions;
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
