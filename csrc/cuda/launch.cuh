// Launching, and what all kernels here share.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#define VF_DEVICE __device__ __forceinline__

namespace vae_fast::cuda {

constexpr int kThreads = 256;  // a block
constexpr int kWarp = 32;
// Blocks that must fit a multiprocessor: few enough to leave a thread 128 registers, in which its
// loads in flight and its arithmetic fit without spills (scripts/check_sass.sh).
constexpr int kResident = 2;

template <class... Params, class... Args>
cudaError_t launch(void (*kernel)(Params...), int64_t blocks, int threads, cudaStream_t stream,
                   const Args&... args) {
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, Params(args)...);
}

}  // namespace vae_fast::cuda
