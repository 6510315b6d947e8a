// Rows of a data set of bytes on the CPU: copied, scaled to float, or binarised.
//
// Bytes per element: 1 read, and 1 written, 4 where they become floats. Rows are independent, and
// noise is counted by element, so threads and levels change no bit.
#pragma once

#include "cpu/driver.h"
#include "cpu/normal.h"
#include "ops/gather.h"

namespace vae_fast::cpu {

// Writes the limits (ops/gather.h) of the key's words, and returns a pointer to element `first`'s.
// `out` has room for whole counters at both ends, 4 * width more.
//
// Word r of a counter is element r of it, so four vectors of limits, shifted into one another's
// upper bytes, lie in memory as the elements do.
template <class M>
VF_FN const uint8_t* limits(const Philox<M>& philox, int64_t first, int64_t count, uint8_t* out) {
  using U = typename M::U;
  const int64_t skipped = first & 3, total = skipped + count;
  const uint64_t block = uint64_t(first) >> 2;
  for (int64_t done = 0; done < total; done += 4 * M::width) {
    U words[1][4];
    philox(block + uint64_t(done / 4), words);
    const U packed = gather::limit(words[0][0]) | gather::limit(words[0][1]) << 8 |
                     gather::limit(words[0][2]) << 16 | gather::limit(words[0][3]) << 24;
    std::memcpy(out + done, &packed, sizeof packed);
  }
  return out + skipped;
}

// out[i] = x[i] > the limit of element first + i. The compiler turns the comparison into vectors of
// bytes.
template <class M>
VF_FN void binarize(const Philox<M>& philox, int64_t first, const uint8_t* __restrict x,
                    uint8_t* __restrict out, int64_t count) {
  constexpr int64_t kRun = 1024;
  uint8_t buffer[kRun + 8 * M::width];
  for (int64_t done = 0; done < count; done += kRun) {
    const int64_t run = done + kRun < count ? kRun : count - done;
    const uint8_t* __restrict limit = limits<M>(philox, first + done, run, buffer);
    for (int64_t i = 0; i < run; ++i) out[done + i] = x[done + i] > limit[i];
  }
}

template <class M>
VF_FN void scale_bytes(const uint8_t* x, float* out, int64_t count, bool is_bool) {
  const auto value = [&](typename M::T t)
                         __attribute__((always_inline)) { return is_bool ? t : gather::scaled(t); };
  walk<M>(
      0, count,
      [&](int64_t i, int)
          __attribute__((always_inline)) { M::store(value(M::load(x + i)), out + i); },
      [&](int64_t i, int64_t left) {
        store_tail<M>(value(load_tail<M>(x + i, left)), out + i, left);
      });
}

// Prefetches the beginning of a row; the processor's own prefetcher follows the rest.
VF_FN void prefetch_row(const uint8_t* row, int64_t bytes) {
  for (int64_t i = 0; i < bytes && i < 2048; i += 64) __builtin_prefetch(row + i);
}

template <class M>
void gather_driver(const Gather& args, const Threads& threads) {
  const uint8_t* data = static_cast<const uint8_t*>(args.data);
  const int64_t cols = args.cols;
  if (cols == 0) return;  // the pointers may be null, which memcpy does not accept
  if (args.mode == GatherMode::bytes) {
    uint8_t* out = static_cast<uint8_t*>(args.out);
    parallel(threads, args.rows, cols / 16, [&](int64_t row) {
      // Rows are anywhere in memory: the one after the next is fetched while this one is copied.
      if (row + 2 < args.rows) prefetch_row(data + args.index[row + 2] * cols, cols);
      std::memcpy(out + row * cols, data + args.index[row] * cols, size_t(cols));
    });
  } else if (args.mode == GatherMode::scale) {
    float* out = static_cast<float*>(args.out);
    parallel(threads, args.rows, cols / 4, [&](int64_t row) {
      scale_bytes<M>(data + args.index[row] * cols, out + row * cols, cols,
                     args.dtype == DType::boolean);
    });
  } else {
    uint8_t* out = static_cast<uint8_t*>(args.out);
    const Philox<M> philox(args.key);
    const int64_t first =
        args.first_row + (args.first_row_tensor != nullptr ? *args.first_row_tensor : 0);
    parallel(threads, args.rows, cols, [&](int64_t row) {
      binarize<M>(philox, (first + row) * cols, data + args.index[row] * cols, out + row * cols,
                  cols);
    });
  }
}

}  // namespace vae_fast::cpu
