// Philox4x32-10 (Salmon, Moraes, Dror & Shaw, "Parallel random numbers: as easy as 1, 2, 3", 2011).
//
// One source for every device: W is a 64-bit word, or a vector of them, whose low 32 bits are the
// state; the high halves hold leftovers that no step reads. This form needs no blends between the
// halves of products, which makes it fast in SIMD.
#pragma once

#include <cstdint>

#include "math/macros.h"

namespace vae_fast {

constexpr uint32_t kPhiloxM0 = 0xD2511F53u, kPhiloxM1 = 0xCD9E8D57u;
constexpr uint32_t kPhiloxW0 = 0x9E3779B9u, kPhiloxW1 = 0xBB67AE85u;
constexpr int kPhiloxRounds = 10;

// The keys of a round, from the first round's by adding Weyl constants.
struct RoundKeys {
  uint32_t k0, k1;

  VF_FN uint64_t first(int round) const { return uint32_t(k0 + uint32_t(round) * kPhiloxW0); }
  VF_FN uint64_t second(int round) const { return uint32_t(k1 + uint32_t(round) * kPhiloxW1); }
};

// One round of one counter. M::mul32(a, m) is the 64-bit product of a's low half and m.
template <class M, class W, class Key>
VF_FN void philox_round(W (&c)[4], const Key& k0, const Key& k1) {
  const W p0 = M::mul32(c[0], kPhiloxM0), p1 = M::mul32(c[2], kPhiloxM1);
  c[0] = (p1 >> 32) ^ c[1] ^ k0;
  c[1] = p1;
  c[2] = (p0 >> 32) ^ c[3] ^ k1;
  c[3] = p0;
}

// All rounds of one counter. The result's low halves are the words.
template <class M, class W>
VF_FN void philox4x32(W (&c)[4], const RoundKeys& keys) {
#if defined(__CUDACC__)
#pragma unroll
#endif
  for (int round = 0; round < kPhiloxRounds; ++round) {
    philox_round<M>(c, keys.first(round), keys.second(round));
  }
}

template <class M, class W>
VF_FN void philox4x32(W (&c)[4], uint32_t k0, uint32_t k1) {
  philox4x32<M>(c, RoundKeys{k0, k1});
}

}  // namespace vae_fast
