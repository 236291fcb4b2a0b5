#include "launch.cuh"

template cudaError_t rope_ext::cuda::launch_elements<float>(const Problem&, Queue);
