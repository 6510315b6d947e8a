// The products of the step: one tile in registers, for three products that differ in strides.
//
//   C[i][j] = sum over k of A[i * a_row + k * a_step] * B[k * b_step + j]
//
// Forward: A are samples, B a panel of weights. Backward: A are gradients of samples, B the rows of
// the weight. Gradient of the weight: A are gradients by feature, k the samples, B their inputs.
#pragma once

#include "cpu/driver.h"

namespace vae_fast::step {

using cpu::load_tail;
using cpu::store_tail;

// Rows and vectors of a tile, by the registers that a level has: 32 or 16.
template <class M>
constexpr int kTile = M::width == 16 ? 8 : 4;
template <class M>
constexpr int kVectors = M::width == 4 ? 2 : 3;
template <class M>
constexpr int kPanel = kVectors<M> * M::width;

constexpr int64_t kInner = 160;  // values of k at once: so much of B fits the first-level cache

template <class M, int N>
struct Accumulators {
  typename M::T v[kTile<M>][N];
};

// c += the sum over `count` values of k. It is added up separately first: sums of sums lose fewer
// digits.
template <class M, int N>
VF_FN void multiply(const float* a, int64_t a_row, int64_t a_step, const float* b, int64_t b_step,
                    int64_t count, Accumulators<M, N>& c) {
  using T = typename M::T;
  constexpr int R = kTile<M>;
  T acc[R][N];
#pragma GCC unroll 8
  for (int i = 0; i < R; ++i) {
#pragma GCC unroll 3
    for (int j = 0; j < N; ++j) acc[i][j] = T{};
  }
  for (int64_t k = 0; k < count; ++k) {
    T column[N];
#pragma GCC unroll 3
    for (int j = 0; j < N; ++j) column[j] = M::load(b + j * M::width);
#pragma GCC unroll 8
    for (int i = 0; i < R; ++i) {
      const T x = M::splat(a[i * a_row]);
#pragma GCC unroll 3
      for (int j = 0; j < N; ++j) acc[i][j] += x * column[j];
    }
    a += a_step;
    b += b_step;
  }
#pragma GCC unroll 8
  for (int i = 0; i < R; ++i) {
#pragma GCC unroll 3
    for (int j = 0; j < N; ++j) c.v[i][j] += acc[i][j];
  }
}

// `tiles` tiles below one another; each is passed to `finish(tile, accumulators)`.
template <class M, int N, class Finish>
VF_FN void multiply_tiles(int64_t tiles, const float* a, int64_t a_row, int64_t a_step,
                          const float* b, int64_t b_step, int64_t count, const Finish& finish) {
  constexpr int64_t R = kTile<M>;
  Accumulators<M, N> kept[kTileRows / 4];  // tiles are at most kTileRows rows
  for (int64_t begin = 0; begin < count || begin == 0; begin += kInner) {
    const int64_t inner = count - begin < kInner ? count - begin : kInner;
    for (int64_t t = 0; t < tiles; ++t) {
      Accumulators<M, N>& c = kept[t];
      if (begin == 0) c = {};
      multiply<M, N>(a + t * R * a_row + begin * a_step, a_row, a_step, b + begin * b_step, b_step,
                     inner, c);
      if (begin + inner >= count) finish(t, c);
    }
    if (count == 0) break;
  }
}

// Calls body(Columns<N>{}) for the number of vectors that `columns` of a panel need.
template <int N>
struct Columns {
  static constexpr int count = N;
};
template <class M, class Body>
VF_FN void with_columns(int64_t columns, const Body& body) {
  constexpr int most = kVectors<M>;
  if (columns > 2 * M::width && most > 2) return body(Columns<most>{});
  if (columns > M::width) return body(Columns<2>{});
  return body(Columns<1>{});
}

template <class M>
VF_FN void store_some(typename M::T x, float* p, int64_t count) {
  if (count >= M::width) return M::store(x, p);
  if (count > 0) store_tail<M>(x, p, count);
}
template <class M>
VF_FN typename M::T load_some(const float* p, int64_t count) {
  return count >= M::width ? M::load(p) : load_tail<M>(p, count);
}

}  // namespace vae_fast::step
