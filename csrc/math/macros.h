// VF_FN marks a function that is inlined wherever it is used, on the host and on the GPU; VF_CALL one
// that is called, for long code in float64. A function marked VF_CALL is a template over the math
// policy; otherwise the linker would keep one SIMD level's copy for all levels.
#pragma once

#if defined(__CUDACC__)
#define VF_FN __host__ __device__ __forceinline__
#define VF_CALL __host__ __device__
#else
#define VF_FN inline __attribute__((always_inline))
#define VF_CALL __attribute__((noinline))
#endif
