// Walks through the threads of the CUDA kernel, and launches that are walked.
#pragma once

#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <numeric>
#include <utility>
#include <vector>

#include "cuda/launch.h"
#include "values.h"

namespace rope_ext::test {

using cuda_on_host::Walk;

inline int64_t size_of(dim3 dims) { return int64_t{dims.x} * dims.y * dims.z; }

inline uint3 place_in(dim3 dims, int64_t flat) {
  return {static_cast<unsigned>(flat % dims.x), static_cast<unsigned>(flat / dims.x % dims.y),
          static_cast<unsigned>(flat / dims.x / dims.y)};
}

inline void run_block(const cuda_on_host::Launch& launch, int64_t block) {
  for (int64_t thread = 0; thread < size_of(launch.block); ++thread)
    launch.run(place_in(launch.grid, block), place_in(launch.block, thread));
}

inline void in_order(const cuda_on_host::Launch& launch) {
  for (int64_t block = 0; block < size_of(launch.grid); ++block) run_block(launch, block);
}

inline void by_none(const cuda_on_host::Launch&) {}

// The threads of all blocks mixed.
inline Walk shuffled(uint64_t seed) {
  return [seed](const cuda_on_host::Launch& launch) {
    Random random(seed);
    const int64_t threads = size_of(launch.block);
    std::vector<int64_t> order(static_cast<size_t>(size_of(launch.grid) * threads));
    std::iota(order.begin(), order.end(), 0);
    for (size_t left = order.size(); left > 1; --left)
      std::swap(order[left - 1],
                order[static_cast<size_t>(random.between(0, static_cast<int64_t>(left) - 1))]);
    for (const int64_t flat : order)
      launch.run(place_in(launch.grid, flat / threads), place_in(launch.block, flat % threads));
  };
}

// With threads and blocks beyond those that were asked for.
inline Walk enlarged(uint3 threads, uint3 blocks) {
  return [=](cuda_on_host::Launch launch) {
    launch.block = {launch.block.x + threads.x, launch.block.y + threads.y, launch.block.z + threads.z};
    launch.grid = {launch.grid.x + blocks.x, launch.grid.y + blocks.y, launch.grid.z + blocks.z};
    in_order(launch);
  };
}

// As many as a large GPU has, and few enough that small problems fill them.
inline constexpr int kMultiprocessors[] = {132, 1, 4};

struct Shape {
  dim3 grid, block;
  cudaStream_t stream;
};

// Launches and walks a problem; returns the shape of every launch.
inline std::vector<Shape> launch(const Problem& problem, const Walk& walk = in_order,
                                 cuda::Queue queue = {nullptr, kMultiprocessors[0]}) {
  std::vector<Shape> shapes;
  cuda_on_host::walk = [&](const cuda_on_host::Launch& launch) {
    shapes.push_back({launch.grid, launch.block, launch.stream});
    walk(launch);
  };
  EXPECT_EQ(cudaSuccess, cuda::launch(problem, queue));
  return shapes;
}

}  // namespace rope_ext::test
