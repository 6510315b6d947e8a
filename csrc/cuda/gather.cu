// Rows of a data set of bytes on the GPU: copied, scaled to float, or binarised.
//
// Bytes per element: 1 read, and 1 written, 4 where they become floats.
#include "cuda/drivers.h"
#include "cuda/noise.cuh"
#include "cuda/split.cuh"
#include "ops/gather.h"

namespace vae_fast::cuda {
namespace {

// 16-byte stores: 16 bytes, or 4 of them as floats.
template <GatherMode MODE>
using GatherBatch = Batch<MODE == GatherMode::scale ? 4 : 16, 1>;

template <int V>
VF_DEVICE void load_bytes(const unsigned char* row, const Batch<V, 1>& batch,
                          uint32_t (&words)[V / 4]) {
  if (batch.full(0)) return load_words<Reuse::never>(row + batch.start(0), words);
#pragma unroll
  for (int w = 0; w < V / 4; ++w) words[w] = 0;
#pragma unroll
  for (int k = 0; k < V; ++k) {
    if (batch.has(batch.start(0) + k)) {
      words[k / 4] |= uint32_t{__ldg(row + batch.start(0) + k)} << (8 * (k % 4));
    }
  }
}

template <int V>
VF_DEVICE void store_bytes(unsigned char* out, const Batch<V, 1>& batch,
                           const uint32_t (&words)[V / 4]) {
  unsigned char* at = out + batch.start(0);
  if (batch.full(0)) {
    __stwb(reinterpret_cast<uint4*>(at), uint4{words[0], words[1], words[2], words[3]});
    return;
  }
#pragma unroll
  for (int k = 0; k < V; ++k) {
    if (batch.has(batch.start(0) + k)) {
      __stwb(at + k, static_cast<unsigned char>(words[k / 4] >> (8 * (k % 4))));
    }
  }
}

// 1 where a byte of `pixels` is above the limit of its element, 4 elements from a counter's word
// `shift` on: their words lie in one counter, or in two.
VF_DEVICE uint32_t above_limits(uint32_t pixels, const uint32_t (&words)[4],
                                const uint32_t (&next)[4], int shift) {
  uint32_t set = 0;
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    uint32_t word = words[k];
#pragma unroll
    for (int s = 1; s < 4; ++s) {
      if (shift == s) word = k + s < 4 ? words[(k + s) & 3] : next[(k + s) & 3];
    }
    set |= uint32_t{(pixels >> (8 * k) & 0xffu) > gather::limit(word)} << (8 * k);
  }
  return set;
}

// V pixels, of which the first is `element` of the noise.
template <int WORDS>
VF_DEVICE void binarize(const Key& key, int64_t element, uint32_t (&pixels)[WORDS]) {
  const uint64_t counter = static_cast<uint64_t>(element) >> 2;
  const int shift = static_cast<int>(element & 3);
  uint32_t words[4], next[4] = {};
  words_of(key, counter, words);
#pragma unroll
  for (int w = 0; w < WORDS; ++w) {
    if (shift != 0 || w + 1 < WORDS) words_of(key, counter + w + 1, next);
    pixels[w] = above_limits(pixels[w], words, next, shift);
#pragma unroll
    for (int k = 0; k < 4; ++k) words[k] = next[k];
  }
}

template <GatherMode MODE>
__global__ void __launch_bounds__(kThreads, kResident)
    gather_kernel(const Gather args, const Split split, const bool aligned) {
  using B = GatherBatch<MODE>;
  for_each_task<B::V, false>(
      split, blockIdx.x, gridDim.x,
      [&](const Range& range, int lane, int lanes) {
        const int64_t sample =
            __ldg(reinterpret_cast<const long long*>(args.index) + range.segment);
        if (sample < 0 || sample >= args.samples) {
          __trap();
          return 0.0;
        }
        // So that an element's place in the batch finds it in the data.
        const unsigned char* row =
            static_cast<const unsigned char*>(args.data) + (sample - range.segment) * args.cols;
        int64_t noise = 0;
        if constexpr (MODE == GatherMode::binarize) {
          noise = args.first_row;
          if (args.first_row_tensor != nullptr) {
            noise += __ldg(reinterpret_cast<const long long*>(args.first_row_tensor));
          }
          noise *= args.cols;
        }
        for (int64_t group = range.begin / B::V + lane; group * B::V < range.end; group += lanes) {
          const B batch(group, lanes, range.begin, range.end, aligned);
          uint32_t words[B::V / 4];
          load_bytes(row, batch, words);
          if constexpr (MODE == GatherMode::scale) {
            float x[B::V];
#pragma unroll
            for (int k = 0; k < B::V; ++k) {
              const float byte = Byte::decode(words, k);
              x[k] = args.dtype == DType::boolean ? byte : gather::scaled(byte);
            }
            store<F32>(args.out, batch, x, false);
          } else {
            if constexpr (MODE == GatherMode::binarize) {
              binarize(Key(args.key), noise + batch.start(0), words);
            }
            store_bytes(static_cast<unsigned char*>(args.out), batch, words);
          }
        }
        return 0.0;
      },
      [](int64_t, double) {});
}

template <GatherMode MODE>
cudaError_t run(const Gather& args, cudaStream_t stream) {
  using B = GatherBatch<MODE>;
  const Split split = make_split<B>(args.rows, args.cols);
  if (split.blocks() == 0 || args.cols == 0) return cudaSuccess;
  const bool aligned = args.cols % B::V == 0 && lies_well(args.data, B::V) &&
                       lies_well(args.out, 16);
  return launch(gather_kernel<MODE>, split.blocks(), kThreads, stream, args, split, aligned);
}

}  // namespace

cudaError_t gather(const Gather& args, cudaStream_t stream) {
  if (args.dtype != DType::u8 && args.dtype != DType::boolean) return cudaErrorInvalidValue;
  switch (args.mode) {
    case GatherMode::bytes: return run<GatherMode::bytes>(args, stream);
    case GatherMode::scale: return run<GatherMode::scale>(args, stream);
    case GatherMode::binarize: return run<GatherMode::binarize>(args, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace vae_fast::cuda
