// Rows of a data set of bytes on the GPU: copied, scaled to float, or binarised.
//
// Bytes per element: 1 read, and 1 written, 4 where they become floats.
#include "cuda/drivers.h"
#include "cuda/noise.cuh"
#include "cuda/split.cuh"
#include "ops/gather.h"

namespace vae_fast::cuda {
namespace {

// 16-byte stores: 16 bytes, or 4 of them as floats; two or four at a time.
template <GatherMode MODE>
using GatherBatch = Batch<MODE == GatherMode::scale ? 4 : 16, MODE == GatherMode::scale ? 4 : 2>;

// 1 for each byte of `pixels` that is above its element's limit, for 4 elements that begin at word
// `shift` of a counter: their words are in one counter, or in two.
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

// 4 WORDS pixels, with all their counters at once. The first pixel is element `element` of the
// noise.
template <int WORDS>
VF_DEVICE void binarize(const Key& key, int64_t element, uint32_t* pixels) {
  const uint64_t counter = static_cast<uint64_t>(element) >> 2;
  const int shift = static_cast<int>(element & 3);
  uint32_t words[WORDS][4], next[4] = {};
  words_of(key, counter, words);
  if (shift != 0) words_of(key, counter + WORDS, next);
#pragma unroll
  for (int w = 0; w < WORDS; ++w) {
    pixels[w] = above_limits(pixels[w], words[w],
                             w + 1 < WORDS ? words[w + 1 < WORDS ? w + 1 : w] : next, shift);
  }
}

template <GatherMode MODE>
VF_DEVICE void gather_range(const Gather& args, const Range& range, int lane, int lanes,
                            bool aligned) {
  using B = GatherBatch<MODE>;
  const int64_t sample = __ldg(reinterpret_cast<const long long*>(args.index) + range.segment);
  if (sample < 0 || sample >= args.samples) {
    __trap();
    return;
  }
  // Moved back, so that an element's place in the batch is its index from here.
  const void* row = at<1>(args.data, (sample - range.segment) * args.cols + range.origin);
  int64_t noise = 0;
  if constexpr (MODE == GatherMode::binarize) {
    noise = args.first_row;
    if (args.first_row_tensor != nullptr) {
      noise += __ldg(reinterpret_cast<const long long*>(args.first_row_tensor));
    }
    noise = noise * args.cols + range.origin;
  }
  for (int group = lane; group * B::V < range.end; group += lanes * B::U) {
    const B batch(group, lanes, range.begin, range.end, aligned);
    uint32_t words[kWords<B, 1>];
    request<1, Reuse::never>(row, batch, 0, words);
    if constexpr (MODE == GatherMode::scale) {
      float x[B::size];
      decode<Byte, B>(words, x);
      if (args.dtype != DType::boolean) {
#pragma unroll
        for (int k = 0; k < B::size; ++k) x[k] = gather::scaled(x[k]);
      }
      store<F32>(at<4>(args.out, range.origin), batch, x, false);
    } else {
      if constexpr (MODE == GatherMode::binarize) {
        const Key key(args.key);
#pragma unroll
        for (int u = 0; u < B::U; ++u) {
          if (batch.start(u) >= batch.end) continue;
          binarize<B::V / 4>(key, noise + batch.start(u), words + u * (B::V / 4));
        }
      }
      store_words<1>(at<1>(args.out, range.origin), batch, words, false);
    }
  }
}

template <GatherMode MODE>
__global__ void __launch_bounds__(kThreads, kResident)
    gather_kernel(const Gather args, const Split split, const bool aligned) {
  for_each_task<GatherBatch<MODE>::V, false>(
      split, blockIdx.x, gridDim.x,
      [&](const Range& range, int lane, int lanes) {
        gather_range<MODE>(args, range, lane, lanes, aligned);
        return 0.0;
      },
      [](int64_t, double) {});
}

template <GatherMode MODE>
cudaError_t run(const Gather& args, cudaStream_t stream) {
  using B = GatherBatch<MODE>;
  const Split split = make_split<B>(args.rows, args.cols, threads_for(args.rows * args.cols));
  if (split.blocks() == 0 || args.cols == 0) return cudaSuccess;
  const bool aligned =
      args.cols % B::V == 0 && is_aligned(args.data, B::V) && is_aligned(args.out, 16);
  return launch(gather_kernel<MODE>, split.blocks(), split.threads, stream, args, split, aligned);
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
