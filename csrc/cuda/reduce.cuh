// Sums over lanes and blocks: in double, in one fixed order.
#pragma once

#include "cuda/launch.cuh"

namespace vae_fast::cuda {

// Over `lanes` neighbouring lanes, a power of two up to a warp; every lane gets the sum.
VF_DEVICE double team_sum(double x, int lanes) {
  for (int distance = lanes / 2; distance > 0; distance /= 2) {
    x += __shfl_xor_sync(0xffffffffu, x, distance);
  }
  return x;
}

// Over the block's threads (whole warps); the first warp gets the sum.
static __device__ double block_sum(double x) {
  __shared__ double sums[kWarp];
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int warps = static_cast<int>(blockDim.x) / kWarp;
  x = team_sum(x, kWarp);
  if (lane == 0) sums[warp] = x;
  __syncthreads();
  if (warp == 0) x = team_sum(lane < warps ? sums[lane] : 0.0, kWarp);
  __syncthreads();  // the next call writes sums again
  return x;
}

// Sum of x[0..N) as a tree: short chains, small errors.
template <int N, class T>
VF_DEVICE T tree_sum(const T (&x)[N]) {
  static_assert((N & (N - 1)) == 0);
  T level[N];
#pragma unroll
  for (int k = 0; k < N; ++k) level[k] = x[k];
#pragma unroll
  for (int half = N / 2; half > 0; half /= 2) {
#pragma unroll
    for (int k = 0; k < N / 2; ++k) {
      if (k < half) level[k] += level[k + half];
    }
  }
  return level[0];
}

}  // namespace vae_fast::cuda
