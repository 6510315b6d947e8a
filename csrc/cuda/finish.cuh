// The second stage of a sum: the tasks' partial sums to the losses, in a fixed order.
//
// Bytes: 8 read per task of stage one (two thousand at most for a whole sum), one value written per
// sum. The last block of stage one does it, in the same launch. If there are many sums of several
// tasks each, or no counter is left, a second launch does it.
#pragma once

#include "cuda/counters.cuh"
#include "cuda/split.cuh"

namespace vae_fast::cuda {

struct PartialSums {
  const double* partials = nullptr;
  int64_t parts = 0;    // of each sum
  void* out = nullptr;  // accumulators, one per sum
};

struct Finish {
  PartialSums nll, kl;   // either may be absent (no parts, null out)
  void* loss = nullptr;  // nll + beta * kl
  int64_t sums = 1;      // 1, or the number of rows
  bool wide = false;     // accumulators are double
  double scale = 1.0;    // 1 / rows for batchmean
  double beta = 1.0;
  const float* beta_tensor = nullptr;
};

inline double mean_scale(Reduction reduction, int64_t rows) {
  return reduction == Reduction::batchmean ? 1.0 / static_cast<double>(rows) : 1.0;
}

VF_DEVICE void write_sum(void* out, int64_t i, double x, bool wide) {
  if (out == nullptr) return;
  if (wide) {
    put(static_cast<double*>(out) + i, x);
  } else {
    put(static_cast<float*>(out) + i, static_cast<float>(x));
  }
}

// A thread's share of sum i. This kernel may have written the partials, so __ldg must not read
// them.
VF_DEVICE double share_of(const PartialSums& s, int64_t i, int lane, int lanes) {
  double x = 0.0;
  for (int64_t p = lane; p < s.parts; p += lanes) x += __ldcg(s.partials + i * s.parts + p);
  return x;
}

VF_DEVICE void finish(const Finish& f, int64_t block, int64_t blocks) {
  double beta = f.beta;
  if (f.beta_tensor != nullptr) beta *= __ldg(f.beta_tensor);
  const auto write = [&](int64_t i, double nll, double kl) {
    nll *= f.scale;
    kl *= f.scale;
    write_sum(f.nll.out, i, nll, f.wide);
    write_sum(f.kl.out, i, kl, f.wide);
    write_sum(f.loss, i, nll + beta * kl, f.wide);
  };
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  if (f.sums == 1) {
    if (block != 0) return;
    const double nll = block_sum(share_of(f.nll, 0, thread, threads));
    const double kl = block_sum(share_of(f.kl, 0, thread, threads));
    if (thread == 0) write(0, nll, kl);
    return;
  }
  const int warps = threads / kWarp, lane = thread % kWarp;
  for (int64_t i = block * warps + thread / kWarp; i < f.sums; i += blocks * warps) {
    const double nll = team_sum(share_of(f.nll, i, lane, kWarp), kWarp);
    const double kl = team_sum(share_of(f.kl, i, lane, kWarp), kWarp);
    if (lane == 0) write(i, nll, kl);
  }
}

// Whether this block is the last of the grid to arrive: then it sees what all blocks have written.
// The counter is 0 before and after.
static __device__ bool is_last_block(unsigned* counter) {
  __shared__ bool last;
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    last = atomicInc(counter, gridDim.x - 1) == gridDim.x - 1;
    __threadfence();
  }
  __syncthreads();
  return last;
}

constexpr int64_t kMaxSumsOfABlock = 256;

// The counter with which stage one finishes the sums; null if a second launch does.
inline unsigned* counter_of(const Finish& f, const double* partials, cudaStream_t stream) {
  return partials == nullptr || f.sums > kMaxSumsOfABlock ? nullptr : take_counter(stream);
}

constexpr int kFinishThreads = 1024;  // of a whole sum; rows take blocks like stage one's

static __global__ void __launch_bounds__(kFinishThreads) finish_kernel(const Finish f) {
  finish(f, blockIdx.x, gridDim.x);
}

inline cudaError_t launch_finish(const Finish& f, cudaStream_t stream) {
  if (f.sums == 1) return launch(finish_kernel, 1, kFinishThreads, stream, f);
  const int64_t rows = kThreads / kWarp, blocks = (f.sums + rows - 1) / rows;
  if (blocks == 0) return cudaSuccess;
  return launch(finish_kernel, blocks < kMaxBlocks ? blocks : kMaxBlocks, kThreads, stream, f);
}

}  // namespace vae_fast::cuda
