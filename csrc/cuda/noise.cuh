// The noise on the GPU: element i takes word i mod 4 of Philox counter i div 4 (vae_fast/noise.py).
#pragma once

#include "cuda/math.cuh"
#include "math/normal.h"
#include "math/philox.h"

namespace vae_fast::cuda {

struct Key {
  uint32_t k0, k1;  // Philox's key
  uint32_t s0, s1;  // the counter's upper half

  // Read on the device, so that each replay of a CUDA graph sees what then lies there.
  VF_DEVICE explicit Key(const int64_t* key) {
    const uint64_t first = static_cast<uint64_t>(__ldg(reinterpret_cast<const long long*>(key)));
    const uint64_t second =
        static_cast<uint64_t>(__ldg(reinterpret_cast<const long long*>(key) + 1));
    k0 = static_cast<uint32_t>(first), k1 = static_cast<uint32_t>(first >> 32);
    s0 = static_cast<uint32_t>(second), s1 = static_cast<uint32_t>(second >> 32);
  }
};

// The four words of one counter.
VF_DEVICE void words_of(const Key& key, uint64_t counter, uint32_t (&words)[4]) {
  uint64_t c[4] = {static_cast<uint32_t>(counter), counter >> 32, key.s0, key.s1};
  philox4x32<Scalar<float>>(c, key.k0, key.k1);
#pragma unroll
  for (int k = 0; k < 4; ++k) words[k] = static_cast<uint32_t>(c[k]);
}

template <class T>
VF_DEVICE void four_normals(const Key& key, uint64_t counter, T* eps) {
  uint32_t words[4];
  words_of(key, counter, words);
  box_muller<Math<T>>(words[0], words[1], eps[0], eps[1]);
  box_muller<Math<T>>(words[2], words[3], eps[2], eps[3]);
}

// The normals of elements first ... first + V - 1. Where they don't start with a counter (only
// sample sets after the first, of a size that 4 does not divide), one more counter is needed.
template <int V, class T>
VF_DEVICE void normals(const Key& key, int64_t first, T (&eps)[V]) {
  static_assert(V % 4 == 0);
  const uint64_t counter = static_cast<uint64_t>(first) >> 2;
  const int shift = static_cast<int>(first & 3);
#pragma unroll
  for (int k = 0; k < V; k += 4) four_normals(key, counter + k / 4, eps + k);
  if (shift == 0) return;
  T next[4];
  four_normals(key, counter + V / 4, next);
  T all[V + 4];
#pragma unroll
  for (int k = 0; k < V + 4; ++k) all[k] = k < V ? eps[k < V ? k : 0] : next[k < V ? 0 : k - V];
#pragma unroll
  for (int k = 0; k < V; ++k) {
    eps[k] = shift == 1 ? all[k + 1] : shift == 2 ? all[k + 2] : all[k + 3];
  }
}

}  // namespace vae_fast::cuda
