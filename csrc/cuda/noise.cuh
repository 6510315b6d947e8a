// The noise on the GPU: element i takes word i mod 4 of Philox counter i div 4 (vae_fast/noise.py).
#pragma once

#include "cuda/math.cuh"
#include "cuda/memory.cuh"
#include "math/normal.h"
#include "math/philox.h"

namespace vae_fast::cuda {

struct Key {
  uint32_t k0, k1;  // Philox's key
  uint32_t s0, s1;  // the counter's upper half

  // Read on the device, so that each replay of a CUDA graph sees the current key.
  VF_DEVICE explicit Key(const int64_t* key) {
    const uint64_t first = static_cast<uint64_t>(__ldg(reinterpret_cast<const long long*>(key)));
    const uint64_t second =
        static_cast<uint64_t>(__ldg(reinterpret_cast<const long long*>(key) + 1));
    k0 = static_cast<uint32_t>(first), k1 = static_cast<uint32_t>(first >> 32);
    s0 = static_cast<uint32_t>(second), s1 = static_cast<uint32_t>(second >> 32);
  }
};

// The words of N counters, in 32-bit arithmetic (the CPU's source, math/philox.h, has 64 bits for
// its vectors). A round's keys are made once for all counters.
template <int N>
VF_DEVICE void words_of(const Key& key, const uint64_t (&counters)[N], uint32_t (&c)[N][4]) {
#pragma unroll
  for (int n = 0; n < N; ++n) {
    c[n][0] = static_cast<uint32_t>(counters[n]);
    c[n][1] = static_cast<uint32_t>(counters[n] >> 32);
    c[n][2] = key.s0, c[n][3] = key.s1;
  }
#pragma unroll
  for (int round = 0; round < kPhiloxRounds; ++round) {
    const uint32_t k0 = key.k0 + static_cast<uint32_t>(round) * kPhiloxW0;
    const uint32_t k1 = key.k1 + static_cast<uint32_t>(round) * kPhiloxW1;
#pragma unroll
    for (int n = 0; n < N; ++n) {
      const uint64_t p0 = uint64_t{c[n][0]} * kPhiloxM0, p1 = uint64_t{c[n][2]} * kPhiloxM1;
      c[n][0] = static_cast<uint32_t>(p1 >> 32) ^ c[n][1] ^ k0;
      c[n][1] = static_cast<uint32_t>(p1);
      c[n][2] = static_cast<uint32_t>(p0 >> 32) ^ c[n][3] ^ k1;
      c[n][3] = static_cast<uint32_t>(p0);
    }
  }
}

// The words of N counters in a row.
template <int N>
VF_DEVICE void words_of(const Key& key, uint64_t counter, uint32_t (&words)[N][4]) {
  uint64_t counters[N];
#pragma unroll
  for (int n = 0; n < N; ++n) counters[n] = counter + n;
  words_of(key, counters, words);
}

VF_DEVICE void words_of(const Key& key, uint64_t counter, uint32_t (&words)[4]) {
  uint32_t one[1][4];
  words_of(key, counter, one);
#pragma unroll
  for (int k = 0; k < 4; ++k) words[k] = one[0][k];
}

template <class T>
VF_DEVICE void four_normals(const uint32_t (&words)[4], T* eps) {
  box_muller<Math<T>>(words[0], words[1], eps[0], eps[1]);
  box_muller<Math<T>>(words[2], words[3], eps[2], eps[3]);
}

// The normals of V elements. The first is `shift` elements after a counter's first, so one more
// counter is needed.
template <int V, class T>
VF_DEVICE void shifted_normals(const Key& key, uint64_t counter, int shift, T* eps) {
  uint32_t words[V / 4 + 1][4];
  words_of(key, counter, words);
  T all[V + 4];
#pragma unroll
  for (int k = 0; k < V + 4; k += 4) four_normals(words[k / 4], all + k);
#pragma unroll
  for (int k = 0; k < V; ++k) {
    eps[k] = shift == 1 ? all[k + 1] : shift == 2 ? all[k + 2] : all[k + 3];
  }
}

// The normals of a batch. `first` is the index in the noise of the task's origin. It is a multiple
// of 4, except in later sample sets if 4 does not divide the size of a set.
template <class B, class T>
VF_DEVICE void noise_of(const Key& key, int64_t first, const B& batch, T (&eps)[B::size]) {
  static_assert(B::V % 4 == 0);
  constexpr int kOf = B::V / 4;  // counters of a group
  const uint64_t counter = static_cast<uint64_t>(first) >> 2;
  const int shift = static_cast<int>(first & 3);
  if (shift == 0) {
    uint64_t counters[B::U * kOf];
#pragma unroll
    for (int n = 0; n < B::U * kOf; ++n) counters[n] = counter + batch.start(n / kOf) / 4 + n % kOf;
    uint32_t words[B::U * kOf][4];
    words_of(key, counters, words);
#pragma unroll
    for (int n = 0; n < B::U * kOf; ++n) four_normals(words[n], eps + 4 * n);
    return;
  }
#pragma unroll
  for (int u = 0; u < B::U; ++u) {
    shifted_normals<B::V>(key, counter + batch.start(u) / 4, shift, eps + u * B::V);
  }
}

}  // namespace vae_fast::cuda
