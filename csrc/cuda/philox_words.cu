// The noise's words themselves, for tests: 4 bytes written per word.
#include "cuda/drivers.h"
#include "cuda/noise.cuh"
#include "cuda/split.cuh"

namespace vae_fast::cuda {
namespace {

__global__ void __launch_bounds__(kThreads)
    philox_words_kernel(const int64_t* key_words, uint32_t* out, int64_t n) {
  const Key key(key_words);
  const int64_t step = int64_t{gridDim.x} * kThreads;
  for (int64_t c = int64_t{blockIdx.x} * kThreads + threadIdx.x; 4 * c < n; c += step) {
    uint32_t words[4];
    words_of(key, static_cast<uint64_t>(c), words);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      if (4 * c + k < n) __stwb(out + 4 * c + k, words[k]);
    }
  }
}

}  // namespace

cudaError_t philox_words(const int64_t* key, uint32_t* words, int64_t n, cudaStream_t stream) {
  if (n <= 0) return cudaSuccess;
  const int64_t blocks = (n + 4 * kThreads - 1) / (4 * kThreads);
  return launch(philox_words_kernel, blocks < kMaxBlocks ? blocks : kMaxBlocks, kThreads, stream,
                key, words, n);
}

}  // namespace vae_fast::cuda
