// Standard normals of a noise key, made in bulk: Philox words, then Box-Muller.
#pragma once

#include "cpu/driver.h"
#include "math/normal.h"
#include "math/philox.h"

namespace vae_fast::cpu {

// The words of `width` consecutive counters from `block` on: words[r] holds word r of each.
template <class M>
VF_FN void philox_block(const int64_t* key, uint64_t block, typename M::U (&words)[4]) {
  const uint32_t k0 = uint32_t(key[0]), k1 = uint32_t(uint64_t(key[0]) >> 32);
  const uint64_t stream = uint64_t(key[1]);
  if constexpr (M::width == 1) {
    uint64_t c[4] = {block, block >> 32, stream, stream >> 32};
    philox4x32<M>(c, k0, k1);
    for (int r = 0; r < 4; ++r) words[r] = uint32_t(c[r]);
  } else {
    // Even counters in one state, odd ones in another, so that the two merge into 32-bit lanes.
    using W = typename M::W;
    W even;
    for (int i = 0; i < M::width / 2; ++i) even[i] = 2 * i;
    even += block;
    const W odd = even + 1;
    W a[4] = {even, even >> 32, W{} + stream, W{} + (stream >> 32)};
    W b[4] = {odd, odd >> 32, W{} + stream, W{} + (stream >> 32)};
    philox4x32<M>(a, k0, k1);
    philox4x32<M>(b, k0, k1);
    for (int r = 0; r < 4; ++r) {
      words[r] = (typename M::U)((a[r] & 0xffffffffu) | (b[r] << 32));
    }
  }
}

// Room that `normals` needs for `count` elements: whole counters at both ends.
template <class M>
constexpr int64_t noise_capacity(int64_t count) {
  return count + 3 + 4 * M::width;
}

// Writes the key's normals so that element `first` stands where the returned pointer points.
template <class M, class Float = typename M::Element>
VF_FN const Float* normals(const int64_t* key, int64_t first, int64_t count, Float* out) {
  using T = typename M::T;
  const int64_t skipped = first & 3;
  uint64_t block = uint64_t(first) >> 2;
  for (int64_t done = 0; done < skipped + count; done += 4 * M::width, block += M::width) {
    typename M::U words[4];
    philox_block<M>(key, block, words);
    T n[4];
    box_muller<M>(words[0], words[1], n[0], n[1]);
    box_muller<M>(words[2], words[3], n[2], n[3]);
    if constexpr (M::width == 1) {
      for (int r = 0; r < 4; ++r) M::store(n[r], out + done + r);
    } else {
      // From one word per vector to the order of elements: lane i of all four, then lane i + 1.
      const T ac_low = M::template zip<false>(n[0], n[2]), bd_low = M::template zip<false>(n[1], n[3]);
      const T ac_high = M::template zip<true>(n[0], n[2]), bd_high = M::template zip<true>(n[1], n[3]);
      M::store(M::template zip<false>(ac_low, bd_low), out + done);
      M::store(M::template zip<true>(ac_low, bd_low), out + done + M::width);
      M::store(M::template zip<false>(ac_high, bd_high), out + done + 2 * M::width);
      M::store(M::template zip<true>(ac_high, bd_high), out + done + 3 * M::width);
    }
  }
  return out + skipped;
}

template <class M>
void random_words(const int64_t* key, uint64_t block, int64_t blocks, uint32_t* out) {
  for (int64_t done = 0; done < blocks; done += M::width) {
    typename M::U words[4];
    philox_block<M>(key, block + uint64_t(done), words);
    for (int64_t i = 0; i < M::width && done + i < blocks; ++i) {
      for (int r = 0; r < 4; ++r) {
        uint32_t lanes[M::width];
        std::memcpy(lanes, &words[r], sizeof lanes);
        out[4 * (done + i) + r] = lanes[i];
      }
    }
  }
}

}  // namespace vae_fast::cpu
