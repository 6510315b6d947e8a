// Memory: a thread's batch of elements, in 16-byte accesses with all of its loads in flight.
//
// A task's elements are cut into groups of V consecutive ones (16 bytes or more of every floating
// tensor of the op), and a batch is U groups, `stride` groups apart, so that neighbouring threads
// touch neighbouring groups. Groups that the task cuts, or that are not aligned, are read and
// written element by element, into the same words: the arithmetic and its order do not depend on
// the pointers. Reading is in two steps, request and decode, so that a thread requests all its data
// before it waits.
#pragma once

#include "cuda/format.cuh"

namespace vae_fast::cuda {

// Positions count from the task's origin, a whole group's first element, so they fit 32 bits.
template <int V_, int U_>
struct Batch {
  static constexpr int V = V_, U = U_, size = V_ * U_;
  int group;       // the first
  int begin, end;  // the task's elements
  int stride;
  bool aligned;  // every tensor's groups are aligned for their access
  bool whole;    // all groups can be accessed as a whole

  VF_DEVICE Batch(int group, int stride, int begin, int end, bool aligned)
      : group(group), begin(begin), end(end), stride(stride), aligned(aligned) {
    whole = aligned && start(0) >= begin && start(U - 1) + V <= end;
#if defined(VF_ONLY_WHOLE)  // benchmarks/gpu counts what whole batches take
    whole = true;
#endif
  }
  VF_DEVICE int start(int u) const { return (group + u * stride) * V; }
  VF_DEVICE bool full(int u) const { return aligned && start(u) >= begin && start(u) + V <= end; }
  VF_DEVICE bool has(int i) const { return i >= begin && i < end; }
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
VF_DEVICE void load_words(const void* p, uint32_t* words) {
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

// One element's bits.
template <int BYTES>
VF_DEVICE uint64_t load_bits(const void* p) {
  if constexpr (BYTES == 8) {
    const uint2 two = __ldg(static_cast<const uint2*>(p));
    return uint64_t{two.y} << 32 | two.x;
  } else if constexpr (BYTES == 4) {
    return __ldg(static_cast<const unsigned*>(p));
  } else if constexpr (BYTES == 2) {
    return __ldg(static_cast<const unsigned short*>(p));
  } else {
    return __ldg(static_cast<const unsigned char*>(p));
  }
}

// How many words a batch of elements of BYTES bytes takes.
template <class B, int BYTES>
constexpr int kWords = B::size * BYTES / 4;

// The bits of a batch, `fill` where the task has no element. `base` is the task's origin.
template <int BYTES, Reuse REUSE, class B>
VF_DEVICE void request(const void* base, const B& batch, uint64_t fill, uint32_t* words) {
  constexpr int W = B::V * BYTES / 4;  // of a group
  const char* bytes = static_cast<const char*>(base);
#pragma unroll
  for (int u = 0; u < B::U; ++u) {
    if (batch.whole) load_words<REUSE, W>(bytes + int64_t{batch.start(u)} * BYTES, words + u * W);
  }
  if (batch.whole) return;
#pragma unroll
  for (int u = 0; u < B::U; ++u) {
    const int start = batch.start(u);
    uint32_t* group = words + u * W;
    if (batch.full(u)) {
      load_words<REUSE, W>(bytes + int64_t{start} * BYTES, group);
      continue;
    }
#pragma unroll
    for (int w = 0; w < W; ++w) group[w] = 0;
#pragma unroll
    for (int k = 0; k < B::V; ++k) {
      const uint64_t bits =
          batch.has(start + k) ? load_bits<BYTES>(bytes + int64_t{start + k} * BYTES) : fill;
      group[k * BYTES / 4] |= static_cast<uint32_t>(bits) << (8 * (k * BYTES % 4));
      if constexpr (BYTES == 8) group[2 * k + 1] |= static_cast<uint32_t>(bits >> 32);
    }
  }
}

template <class F, class B, class C>
VF_DEVICE void decode(const uint32_t* words, C (&x)[B::size]) {
  constexpr int W = B::V * F::bytes / 4;
#pragma unroll
  for (int k = 0; k < B::size; ++k) {
    x[k] = static_cast<C>(F::decode(words + k / B::V * W, k % B::V));
  }
}

// Results of more bytes than this leave the L2 cache before they are read. Streaming stores then
// keep the cache's other contents.
constexpr int64_t kStreamedBytes = int64_t{1} << 25;

// A store that the compiler may move. It has a name, so that the emulation can check it.
template <class T>
VF_DEVICE void put(T* p, T x) {
#if defined(__CUDACC__)
  *p = x;
#else
  __stwb(p, x);
#endif
}

VF_DEVICE void store_16(void* p, const uint4& four, bool streamed) {
  if (streamed) {
    __stcs(static_cast<uint4*>(p), four);
  } else {
    put(static_cast<uint4*>(p), four);
  }
}

template <int BYTES>
VF_DEVICE void store_bits(void* p, const uint32_t* group, int k) {
  if constexpr (BYTES == 8) {
    put(static_cast<uint2*>(p), uint2{group[2 * k], group[2 * k + 1]});
  } else if constexpr (BYTES == 4) {
    put(static_cast<unsigned*>(p), group[k]);
  } else {
    const uint32_t bits = group[k * BYTES / 4] >> (8 * (k * BYTES % 4));
    if constexpr (BYTES == 2) {
      put(static_cast<unsigned short*>(p), static_cast<unsigned short>(bits));
    } else {
      put(static_cast<unsigned char*>(p), static_cast<unsigned char>(bits));
    }
  }
}

template <int BYTES, class B>
VF_DEVICE void store_words(void* base, const B& batch, const uint32_t* words, bool streamed) {
  constexpr int W = B::V * BYTES / 4;
  static_assert(W % 4 == 0);
  char* bytes = static_cast<char*>(base);
#pragma unroll
  for (int u = 0; u < B::U; ++u) {
    const int start = batch.start(u);
    const uint32_t* group = words + u * W;
    if (batch.whole || batch.full(u)) {
#pragma unroll
      for (int w = 0; w < W; w += 4) {
        store_16(bytes + int64_t{start} * BYTES + 4 * w,
                 {group[w], group[w + 1], group[w + 2], group[w + 3]}, streamed);
      }
    } else {
#pragma unroll
      for (int k = 0; k < B::V; ++k) {
        if (batch.has(start + k)) {
          store_bits<BYTES>(bytes + int64_t{start + k} * BYTES, group, k);
        }
      }
    }
  }
}

template <class F, class B, class C>
VF_DEVICE void store(void* base, const B& batch, const C (&x)[B::size], bool streamed) {
  constexpr int W = B::V * F::bytes / 4;
  uint32_t words[kWords<B, F::bytes>];
#pragma unroll
  for (int k = 0; k < B::size; k += 2) F::encode(words + k / B::V * W, k % B::V, x[k], x[k + 1]);
  store_words<F::bytes>(base, batch, words, streamed);
}

// A pointer to the element at `origin` of a tensor; null stays null.
template <int BYTES, class T>
VF_DEVICE T* at(T* base, int64_t origin) {
  using Bytes = std::conditional_t<std::is_const_v<T>, const char, char>;
  return base == nullptr ? nullptr : static_cast<Bytes*>(base) + origin * BYTES;
}

// Whether groups of `bytes` bytes from p on are aligned for their access.
inline bool is_aligned(const void* p, int64_t bytes) {
  return p == nullptr || reinterpret_cast<uintptr_t>(p) % (bytes < 16 ? bytes : 16) == 0;
}

}  // namespace vae_fast::cuda
