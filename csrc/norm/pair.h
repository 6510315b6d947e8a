// Pairs of vectors: what the drivers of GroupNorm load, compute and store at once.
//
// A pair of bfloat16 is read as one vector of 32-bit words, and its vectors are their low halves, which
// are the even elements, and their high ones. So to widen takes a shift and a mask in place of
// permutations, and to narrow a rounding and a combination of words.
#pragma once

#include <type_traits>

#include "cpu/driver.h"

namespace vae_fast::norm {

template <class M>
struct Pair {
  typename M::T a, b;
  VF_FN Pair operator-(const typename M::T& x) const { return {a - x, b - x}; }
  VF_FN Pair operator-(const Pair& x) const { return {a - x.a, b - x.b}; }
  VF_FN Pair operator+(const Pair& x) const { return {a + x.a, b + x.b}; }
};

template <class M, class S>
constexpr bool kInterleaved = std::is_same_v<S, bf16>;

// The place in a pair, laid out one vector after the other, of element i of 2 * width.
template <class M, class S>
VF_FN int64_t place_in_pair(int64_t i) {
  return kInterleaved<M, S> ? (i & 1) * M::width + i / 2 : i;
}

template <class M, class S>
VF_FN Pair<M> load_pair(const S* p) {
  if constexpr (kInterleaved<M, S>) {
    const auto words = M::template load_as<typename M::U>(p);
    return {M::from_bits(words << 16), M::from_bits(words & 0xffff0000u)};
  } else {
    return {M::load(p), M::load(p + M::width)};
  }
}

template <class M, class S>
VF_FN void store_pair(const Pair<M>& x, S* p) {
  if constexpr (kInterleaved<M, S>) {
    // Round to nearest even. NaN keeps its top bits; a NaN from arithmetic has one of them set.
    const auto rounded = [&](typename M::T v) __attribute__((always_inline)) {
      const typename M::U u = M::bits(v);
      return v == v ? u + (0x7fffu + ((u >> 16) & 1u)) : u;
    };
    const typename M::U words = (rounded(x.a) >> 16) | (rounded(x.b) & 0xffff0000u);
    std::memcpy(p, &words, sizeof words);
  } else {
    M::store(x.a, p);
    M::store(x.b, p + M::width);
  }
}

// The first `count` elements from p on, and zeros.
template <class M, class S>
VF_FN Pair<M> load_some(const S* p, int64_t count) {
  S buffer[2 * M::width] = {};
  std::memcpy(buffer, p, size_t(count) * sizeof(S));
  return load_pair<M>(buffer);
}

template <class M, class S>
VF_FN void store_some(const Pair<M>& x, S* p, int64_t count) {
  S buffer[2 * M::width];
  store_pair<M>(x, buffer);
  std::memcpy(p, buffer, size_t(count) * sizeof(S));
}

// x in a pair of S's first `count` elements, 0 in the others.
template <class M, class S>
VF_FN Pair<M> first_of(int64_t count, const Pair<M>& x) {
  constexpr int64_t w = M::width;
  if constexpr (w == 1) {
    return {x.a, count < 2 ? typename M::T(0) : x.b};
  } else if constexpr (kInterleaved<M, S>) {
    return {M::first((count + 1) / 2, x.a), M::first(count / 2, x.b)};
  } else {
    return {M::first(count, x.a), M::first(count - w, x.b)};
  }
}

// A pair's vectors one after the other.
template <class M>
VF_FN Pair<M> laid_out(const typename M::Element* p) {
  return {M::load(p), M::load(p + M::width)};
}
template <class M>
VF_FN void lay_out(const Pair<M>& x, typename M::Element* p) {
  M::store(x.a, p);
  M::store(x.b, p + M::width);
}

// Walks [begin, end): step(i, turn) for each whole pair, tail(i, count) for the rest. Two pairs, turns
// 0 and 1, go side by side.
template <class M, class Step, class Tail>
VF_FN void walk_pairs(int64_t begin, int64_t end, Step&& step, Tail&& tail) {
  constexpr int64_t span = 2 * M::width;
  int64_t i = begin;
  for (; i + 2 * span <= end; i += 2 * span) {
    step(i, 0);
    step(i + span, 1);
  }
  if (i + span <= end) {
    step(i, 0);
    i += span;
  }
  if (i < end) tail(i, end - i);
}

}  // namespace vae_fast::norm
