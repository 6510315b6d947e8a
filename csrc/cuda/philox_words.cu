// The noise's words themselves, for tests: 4 bytes written per word.
#include "cuda/drivers.h"
#include "cuda/noise.cuh"
#include "cuda/split.cuh"

namespace vae_fast::cuda {
namespace {

__global__ void __launch_bounds__(kThreads)
    philox_words_kernel(const int64_t* key_words, uint64_t first, int64_t counters, uint32_t* out) {
  const Key key(key_words);
  const int64_t step = int64_t{gridDim.x} * kThreads;
  for (int64_t c = int64_t{blockIdx.x} * kThreads + threadIdx.x; c < counters; c += step) {
    uint32_t words[4];
    words_of(key, first + static_cast<uint64_t>(c), words);
#pragma unroll
    for (int k = 0; k < 4; ++k) put(out + 4 * c + k, words[k]);
  }
}

}  // namespace

cudaError_t philox_words(const int64_t* key, uint64_t first, int64_t counters, uint32_t* words,
                         cudaStream_t stream) {
  if (counters <= 0) return cudaSuccess;
  const int64_t blocks = (counters + kThreads - 1) / kThreads;
  return launch(philox_words_kernel, blocks < kMaxBlocks ? blocks : kMaxBlocks, kThreads, stream,
                key, first, counters, words);
}

}  // namespace vae_fast::cuda
