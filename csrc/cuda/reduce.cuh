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

// Sum of log(1 + e) over e in [0, 1], as the logarithm of a product. 1 + q is the product so far;
// the next e changes q to (1 + e) (1 + q) - 1 = e (1 + q) + q, in which nothing cancels. Four
// chains.
template <class M, int N, class T>
VF_DEVICE T log1p_sum(const T (&e)[N]) {
  static_assert(N % 4 == 0 && N <= 16);  // at most 2^16
  const auto join = [](T a, T b) { return M::fma(a, b + T(1), b); };
  T q[4] = {e[0], e[1], e[2], e[3]};
#pragma unroll
  for (int k = 4; k < N; ++k) q[k % 4] = join(e[k], q[k % 4]);
  return M::log1p(join(join(q[0], q[1]), join(q[2], q[3])));
}

}  // namespace vae_fast::cuda
