// Standard normals of a noise key, made in bulk: Philox words, then Box-Muller.
#pragma once

#include "cpu/driver.h"
#include "math/normal.h"
#include "math/philox.h"

namespace vae_fast::cpu {

// A noise key, spread over a vector's lanes once for all the counters that follow.
template <class M, bool SCALAR = M::width == 1>
class Philox {
 public:
  VF_FN explicit Philox(const int64_t* key) : stream_(uint64_t(key[1])) {
    const RoundKeys scalar{uint32_t(key[0]), uint32_t(uint64_t(key[0]) >> 32)};
    for (int round = 0; round < kPhiloxRounds; ++round) {
      keys_.k0[round] = W{} + scalar.first(round);
      keys_.k1[round] = W{} + scalar.second(round);
    }
  }

  // The words of `N * width` consecutive counters from `block` on: words[n][r] holds word r of each
  // of the n-th `width`. A round waits for the one before; N = 2 gives the processor four counters'
  // rounds to choose from, which keeps its multipliers busy.
  template <int N>
  VF_FN void operator()(uint64_t block, typename M::U (&words)[N][4]) const {
    // Even counters in one state, odd ones in another, so that the two merge into 32-bit lanes.
    W even;
    for (int i = 0; i < M::width / 2; ++i) even[i] = 2 * i;
    even += block;
    W c[2 * N][4];
    for (int n = 0; n < 2 * N; ++n) {
      const W counter = even + uint64_t(n / 2 * M::width + n % 2);
      c[n][0] = counter;
      c[n][1] = counter >> 32;
      c[n][2] = W{} + stream_;
      c[n][3] = W{} + (stream_ >> 32);
    }
    for (int round = 0; round < kPhiloxRounds; ++round) {
      for (int n = 0; n < 2 * N; ++n) philox_round<M>(c[n], keys_.k0[round], keys_.k1[round]);
    }
    for (int n = 0; n < N; ++n) {
      for (int r = 0; r < 4; ++r) {
        words[n][r] = (typename M::U)((c[2 * n][r] & 0xffffffffu) | (c[2 * n + 1][r] << 32));
      }
    }
  }

 private:
  using W = typename M::W;
  struct Keys {
    W k0[kPhiloxRounds], k1[kPhiloxRounds];
  };
  uint64_t stream_;
  Keys keys_;
};

// One counter at a time, for the scalar policies.
template <class M>
class Philox<M, true> {
 public:
  VF_FN explicit Philox(const int64_t* key)
      : keys_{uint32_t(key[0]), uint32_t(uint64_t(key[0]) >> 32)}, stream_(uint64_t(key[1])) {}

  VF_FN void operator()(uint64_t block, uint32_t (&words)[1][4]) const {
    uint64_t c[4] = {block, block >> 32, stream_, stream_ >> 32};
    philox4x32<M>(c, keys_);
    for (int r = 0; r < 4; ++r) words[0][r] = uint32_t(c[r]);
  }

 private:
  RoundKeys keys_;
  uint64_t stream_;
};

// Room that `normals` needs for `count` elements: whole counters at both ends.
template <class M>
constexpr int64_t noise_capacity(int64_t count) {
  return count + 3 + 8 * M::width;
}

// Writes the key's normals, and returns a pointer to element `first`.
//
// Two loops, not one: the words of all counters first, then Box-Muller on them in place. A counter's
// ten rounds depend on each other, and so do Box-Muller's steps. In short loops the processor
// overlaps one turn with the next. In a long one, a single turn would fill its window.
template <class M, class Float = typename M::Element>
VF_FN const Float* normals(const Philox<M>& philox, int64_t first, int64_t count, Float* out) {
  using T = typename M::T;
  using U = typename M::U;
  constexpr int64_t kTurn = 4 * M::width;
  const int64_t skipped = first & 3, total = skipped + count;
  const uint64_t block = uint64_t(first) >> 2;
  if constexpr (M::width == 1) {
    for (int64_t done = 0; done < total; done += kTurn) {
      U words[1][4];
      philox(block + uint64_t(done / 4), words);
      T n[4];
      box_muller<M>(words[0][0], words[0][1], n[0], n[1]);
      box_muller<M>(words[0][2], words[0][3], n[2], n[3]);
      for (int r = 0; r < 4; ++r) M::store(n[r], out + done + r);
    }
  } else {
    // Two groups of counters need AVX-512's 32 registers.
    constexpr int kGroups = M::width == 16 ? 2 : 1;
    for (int64_t done = 0; done < total; done += kGroups * kTurn) {
      U words[kGroups][4];
      philox(block + uint64_t(done / 4), words);
      for (int r = 0; r < 4 * kGroups; ++r) {
        M::store(M::from_bits(words[r / 4][r % 4]), out + done + r * M::width);
      }
    }
    for (int64_t done = 0; done < total; done += kTurn) {
      Float* const turn = out + done;
      U words[4];
      for (int r = 0; r < 4; ++r) words[r] = M::template load_as<U>(turn + r * M::width);
      T n[4];
      box_muller<M>(words[0], words[1], n[0], n[1]);
      box_muller<M>(words[2], words[3], n[2], n[3]);
      // From one word per vector to the order of elements: lane i of all four, then lane i + 1.
      const T ac_low = M::template zip<false>(n[0], n[2]),
              bd_low = M::template zip<false>(n[1], n[3]);
      const T ac_high = M::template zip<true>(n[0], n[2]),
              bd_high = M::template zip<true>(n[1], n[3]);
      M::store(M::template zip<false>(ac_low, bd_low), turn);
      M::store(M::template zip<true>(ac_low, bd_low), turn + M::width);
      M::store(M::template zip<false>(ac_high, bd_high), turn + 2 * M::width);
      M::store(M::template zip<true>(ac_high, bd_high), turn + 3 * M::width);
    }
  }
  return out + skipped;
}

template <class M>
void random_words(const int64_t* key, uint64_t block, int64_t blocks, uint32_t* out) {
  const Philox<M> philox(key);
  for (int64_t done = 0; done < blocks; done += M::width) {
    typename M::U words[1][4];
    philox(block + uint64_t(done), words);
    for (int64_t i = 0; i < M::width && done + i < blocks; ++i) {
      for (int r = 0; r < 4; ++r) {
        uint32_t lanes[M::width];
        std::memcpy(lanes, &words[0][r], sizeof lanes);
        out[4 * (done + i) + r] = lanes[i];
      }
    }
  }
}

}  // namespace vae_fast::cpu
