#include "launch.cuh"

template cudaError_t rope_ext::cuda::launch_elements<rope_ext::float16>(const Problem&, Queue);
