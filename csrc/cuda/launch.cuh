// From a Problem to a form, a grid and one launch, for one type of elements.
#pragma once

#include <algorithm>

#include "kernel.cuh"
#include "launch.h"

namespace rope_ext::cuda {

// Threads that a multiprocessor is given before one thread takes several heads: with 64 bytes each under way
// they cover the latency of memory several times over.
inline constexpr int64_t kWantedThreads = 1024;
inline constexpr int64_t kWarp = 32;
inline constexpr int64_t kFewestThreads = 64;
inline constexpr int64_t kMaxBlockZ = 64, kMaxGridY = 65535, kMaxGridX = 0x7fffffff;

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Whether all of some addresses and strides are multiples of an access.
class Alignment {
 public:
  void add(const void* data) { bits_ |= reinterpret_cast<uintptr_t>(data); }
  void add(int64_t elements, int64_t bytes) { bits_ |= static_cast<uint64_t>(elements * bytes); }

  void add(const Problem& problem, const Strides& strides, int64_t heads, int64_t bytes) {
    for (int d = 0; d < problem.batch_dims; ++d) add(strides.batch[d], bytes);
    if (problem.tokens > 1 || problem.angles.positions.data) add(strides.token, bytes);
    if (heads > 1) add(strides.head, bytes);
  }

  bool admits(int64_t access) const { return bits_ % static_cast<uint64_t>(access) == 0; }

 private:
  uint64_t bits_ = 0;
};

// Whether accesses of `width` bytes reach every pair: of queries and keys, and of tables in the steps that
// belong to them.
inline bool admits(const Problem& problem, int64_t width, int64_t element_bytes) {
  Alignment alignment;
  const int64_t turning = problem.pairs * (problem.interleaved ? 2 : 1);
  alignment.add(turning, element_bytes);
  for (int v = 0; v < problem.views; ++v) {
    const View& view = problem.view[v];
    if (view.from.element != 1 || view.to.element != 1) return false;
    const int64_t heads = view.heads + view.kept_heads;
    alignment.add(view.source);
    alignment.add(view.target);
    alignment.add(problem, view.from, heads, element_bytes);
    alignment.add(problem, view.to, heads, element_bytes);
    if (view.source != view.target) {
      alignment.add(problem.start, element_bytes);
      alignment.add(problem.head_dim, element_bytes);
    }
  }
  if (!alignment.admits(width)) return false;

  const Angles& angles = problem.angles;
  const int64_t table_bytes = bytes_of(angles.element);
  const int64_t pairs = width / element_bytes / (problem.interleaved ? 2 : 1);
  if (pairs * table_bytes > kTableBytes) return false;
  Alignment tables;
  for (const Table* table : {&angles.cos, &angles.sin}) {
    if (table->strides.element != 1 && pairs > 1) return false;
    tables.add(table->data);
    tables.add(problem, table->strides, table->strides.head == 0 ? 1 : 2, table_bytes);
  }
  return tables.admits(std::min<int64_t>(pairs * table_bytes, kAccessBytes));
}

template <class Form>
Work work_of(const Problem& problem) {
  const View& query = problem.view[0];
  const bool copies = query.source != query.target;
  Work work{.tokens_are_neighbours = query.heads + query.kept_heads == 1 || query.to.token < query.to.head,
            .problem = problem,
            .tokens_of_batch = Divisor(problem.tokens),
            .tokens = problem.batches * problem.tokens,
            .turning_columns = problem.pairs / Form::pairs,
            .pair_step = problem.interleaved ? 2 : 1,
            .y_distance = problem.interleaved ? 1 : problem.pairs};
  for (int d = 0; d < problem.batch_dims; ++d) work.batch_sizes[d] = Divisor(problem.batch_sizes[d]);
  const bool whole_heads = query.kept_heads > 0 || problem.view[1].kept_heads > 0;
  const int64_t rest = problem.head_dim - (whole_heads ? 0 : 2 * problem.pairs);
  work.columns = work.turning_columns + (copies ? divide_up(rest, Form::elements * Form::accesses) : 0);
  return work;
}

// Deals the heads out. A thread reads its angles once for all its heads, so they are spread over just so many
// lanes that neighbours fill a warp and the GPU is busy.
inline void share_heads(Work& work, int64_t together, int multiprocessors) {
  const Problem& problem = work.problem;
  const Angles& angles = problem.angles;
  int64_t moving[2] = {0, 0};
  for (int v = 0; v < problem.views; ++v) {
    const View& view = problem.view[v];
    moving[v] = view.heads + (view.source == view.target ? 0 : view.kept_heads);
  }
  const int64_t heads = moving[0] + moving[1];

  int64_t heads_of_lane = 1;
  const bool row_serves_all_heads = angles.cos.strides.head == 0 && angles.sin.strides.head == 0;
  if (row_serves_all_heads && heads > 0) {
    const int64_t columns = std::min<int64_t>(work.columns, kThreads);
    const int64_t warp = work.tokens_are_neighbours ? 1 : divide_up(kWarp, columns);
    const int64_t busy = divide_up(divide_up(multiprocessors * kWantedThreads, columns), work.tokens);
    const int64_t lanes = std::min({std::max(warp, busy), divide_up(heads, together), kMaxGridY});
    // Query and key share no lane: a little more for each until both fit.
    heads_of_lane = divide_up(heads, lanes);
    while (divide_up(moving[0], heads_of_lane) + divide_up(moving[1], heads_of_lane) >
           std::max<int64_t>(lanes, problem.views))
      heads_of_lane += divide_up(heads_of_lane, 16);
  }
  for (int v = 0; v < problem.views; ++v) {
    const View& view = problem.view[v];
    const int64_t lanes = divide_up(moving[v], heads_of_lane);
    const auto share = [&](int64_t count) {
      return lanes == 0 ? Share{0, 0} : Share{static_cast<int32_t>(count / lanes), count % lanes};
    };
    work.lanes[v] = lanes;
    work.turning[v] = share(view.heads);
    work.moving[v] = share(moving[v]);
    work.from_step[v] = lanes * view.from.head;
    work.to_step[v] = lanes * view.to.head;
  }
}

struct Shape {
  dim3 block, grid;
};

// Threads run through columns first, then through what lies closer in memory: heads or tokens.
inline Shape shape_of(const Work& work, int multiprocessors) {
  const int64_t lanes = work.lanes[0] + work.lanes[1];
  const int64_t fewest_heads = divide_up(lanes, kMaxGridY);
  const int64_t columns = std::min(work.columns, std::max<int64_t>(1, kThreads / fewest_heads));
  // Where there is little to do, smaller blocks bring it to more multiprocessors.
  const int64_t evenly = divide_up(columns * lanes, multiprocessors) * std::min(work.tokens, kMaxGridX);
  const int64_t room =
      std::max(fewest_heads, std::clamp<int64_t>(evenly, kFewestThreads, kThreads) / columns);
  int64_t heads, tokens;
  if (work.tokens_are_neighbours) {
    tokens = std::min(room / fewest_heads, work.tokens);
    heads = std::min({room / tokens, lanes, kMaxBlockZ});
  } else {
    heads = std::min(room, lanes);
    tokens = std::min({room / heads, work.tokens, kMaxBlockZ});
  }
  const auto dim = [](int64_t x, int64_t y, int64_t z) {
    return dim3(static_cast<unsigned>(x), static_cast<unsigned>(y), static_cast<unsigned>(z));
  };
  return {work.tokens_are_neighbours ? dim(columns, tokens, heads) : dim(columns, heads, tokens),
          dim(std::min(divide_up(work.tokens, tokens), kMaxGridX), divide_up(lanes, heads),
              divide_up(work.columns, columns))};
}

template <class Form>
cudaError_t launch(const Problem& problem, Queue queue) {
  Work work = work_of<Form>(problem);
  if (work.columns == 0) return cudaSuccess;
  share_heads(work, Form::together, queue.multiprocessors);
  if (work.lanes[0] + work.lanes[1] == 0) return cudaSuccess;
  const Shape shape = shape_of(work, queue.multiprocessors);
  const int64_t tokens_of_block = work.tokens_are_neighbours ? shape.block.y : shape.block.z;
  cudaLaunchConfig_t config{};
  config.gridDim = shape.grid;
  config.blockDim = shape.block;
  config.stream = queue.stream;
  cudaError_t error = cudaSuccess;
  // More than once only beyond 2^31 blocks.
  for (; error == cudaSuccess && work.first_token < work.tokens;
       work.first_token += shape.grid.x * tokens_of_block)
    error = cudaLaunchKernelEx(&config, rotate_heads<Form>, work);
  return error;
}

// The widest access that fits.
template <class T, int width>
cudaError_t launch_widest(const Problem& problem, Queue queue) {
  constexpr int elements = width / int(sizeof(T));
  if constexpr (elements < 2) {
    return launch<Apart<T, 1>>(problem, queue);
  } else {
    if (!admits(problem, width, sizeof(T))) return launch_widest<T, width / 2>(problem, queue);
    return problem.interleaved ? launch<Together<T, elements / 2>>(problem, queue)
                               : launch<Apart<T, elements>>(problem, queue);
  }
}

template <class T>
cudaError_t launch_elements(const Problem& problem, Queue queue) {
  return launch_widest<T, kAccessBytes>(problem, queue);
}

}  // namespace rope_ext::cuda
