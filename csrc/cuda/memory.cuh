// Memory: a thread's batch of elements, in 16-byte accesses with several in flight.
//
// A tensor is cut into groups of V consecutive elements (16 bytes or more of every floating tensor
// of the op), and a batch is U groups, `stride` groups apart, so that neighbouring threads touch
// neighbouring groups. Groups that the range cuts, or that lie badly in memory, are read and
// written element by element, into the same registers: the arithmetic and its order are the same
// whatever the pointers.
#pragma once

#include "cuda/format.cuh"

namespace vae_fast::cuda {

template <int V_, int U_>
struct Batch {
  static constexpr int V = V_, U = U_, size = V_ * U_;
  int64_t group;       // the first
  int64_t begin, end;  // the range's elements
  int stride;
  bool aligned;  // every tensor's groups lie on their access's boundary
  bool whole;    // all groups can be accessed as wholes

  VF_DEVICE Batch(int64_t group, int stride, int64_t begin, int64_t end, bool aligned)
      : group(group), begin(begin), end(end), stride(stride), aligned(aligned) {
    whole = aligned && start(0) >= begin && start(U - 1) + V <= end;
  }
  VF_DEVICE int64_t start(int u) const { return (group + int64_t{u} * stride) * V; }
  VF_DEVICE bool full(int u) const {
    return aligned && start(u) >= begin && start(u) + V <= end;
  }
  VF_DEVICE bool has(int64_t i) const { return i >= begin && i < end; }
};

enum class Reuse { soon, never };

template <Reuse REUSE, class T>
VF_DEVICE T load_as(const void* p) {
  if constexpr (REUSE == Reuse::never) {
    return __ldcs(static_cast<const T*>(p));
  } else {
    return __ldg(static_cast<const T*>(p));
  }
}

template <Reuse REUSE, int WORDS>
VF_DEVICE void load_words(const void* p, uint32_t (&words)[WORDS]) {
  static_assert(WORDS == 1 || WORDS == 2 || WORDS % 4 == 0);
  if constexpr (WORDS == 1) {
    words[0] = load_as<REUSE, unsigned>(p);
  } else if constexpr (WORDS == 2) {
    const uint2 two = load_as<REUSE, uint2>(p);
    words[0] = two.x, words[1] = two.y;
  } else {
#pragma unroll
    for (int w = 0; w < WORDS; w += 4) {
      const uint4 four = load_as<REUSE, uint4>(static_cast<const char*>(p) + 4 * w);
      words[w] = four.x, words[w + 1] = four.y, words[w + 2] = four.z, words[w + 3] = four.w;
    }
  }
}

template <class F, Reuse REUSE, class B, class C>
VF_DEVICE void load(const void* base, const B& batch, C fill, C (&x)[B::size]) {
  uint32_t words[B::U][B::V * F::bytes / 4];
  const char* bytes = static_cast<const char*>(base);
  if (batch.whole) {
#pragma unroll
    for (int u = 0; u < B::U; ++u) load_words<REUSE>(bytes + batch.start(u) * F::bytes, words[u]);
#pragma unroll
    for (int k = 0; k < B::size; ++k) {
      x[k] = static_cast<C>(F::decode(words[k / B::V], k % B::V));
    }
    return;
  }
#pragma unroll
  for (int u = 0; u < B::U; ++u) {
    const int64_t start = batch.start(u);
    if (batch.full(u)) {
      load_words<REUSE>(bytes + start * F::bytes, words[u]);
#pragma unroll
      for (int k = 0; k < B::V; ++k) x[u * B::V + k] = static_cast<C>(F::decode(words[u], k));
    } else {
#pragma unroll
      for (int k = 0; k < B::V; ++k) {
        x[u * B::V + k] =
            batch.has(start + k) ? static_cast<C>(F::load_one(base, start + k)) : fill;
      }
    }
  }
}

// Results above this many bytes leave the L2 cache before their reader comes, whatever we do:
// streaming stores then spare what else is in there.
constexpr int64_t kStreamedBytes = int64_t{1} << 25;

VF_DEVICE void store_16(void* p, const uint4& four, bool streamed) {
  if (streamed) {
    __stcs(static_cast<uint4*>(p), four);
  } else {
    __stwb(static_cast<uint4*>(p), four);
  }
}

template <class F, class B, class C>
VF_DEVICE void store(void* base, const B& batch, const C (&x)[B::size], bool streamed) {
  constexpr int kWords = B::V * F::bytes / 4;
  static_assert(kWords % 4 == 0);
#pragma unroll
  for (int u = 0; u < B::U; ++u) {
    const int64_t start = batch.start(u);
    if (batch.whole || batch.full(u)) {
      uint32_t words[kWords];
#pragma unroll
      for (int k = 0; k < B::V; k += 2) {
        F::encode(words, k, x[u * B::V + k], x[u * B::V + k + 1]);
      }
      char* bytes = static_cast<char*>(base) + start * F::bytes;
#pragma unroll
      for (int w = 0; w < kWords; w += 4) {
        store_16(bytes + 4 * w, {words[w], words[w + 1], words[w + 2], words[w + 3]}, streamed);
      }
    } else {
#pragma unroll
      for (int k = 0; k < B::V; ++k) {
        if (batch.has(start + k)) F::store_one(base, start + k, x[u * B::V + k]);
      }
    }
  }
}

// Whether groups of `bytes` bytes from p on lie on the boundary that their access needs.
inline bool lies_well(const void* p, int64_t bytes) {
  return p == nullptr || reinterpret_cast<uintptr_t>(p) % (bytes < 16 ? bytes : 16) == 0;
}

}  // namespace vae_fast::cuda
