#include "launch.cuh"

template cudaError_t rope_ext::cuda::launch_elements<double>(const Problem&, Queue);
