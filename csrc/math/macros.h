// VF_FN marks a function that is inlined wherever it is used, on the host and on the GPU.
#pragma once

#if defined(__CUDACC__)
#define VF_FN __host__ __device__ __forceinline__
#else
#define VF_FN inline __attribute__((always_inline))
#endif
