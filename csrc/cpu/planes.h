// A likelihood over planes on the CPU: a vector of positions at a time, all planes of each.
//
// Positions that follow one another in a sample are read in place, two vectors of them at once:
// their formulas are long (several.h). Where a vector crosses into the next sample, and in the tail, the
// positions' planes are copied side by side first.
#pragma once

#include "cpu/driver.h"
#include "cpu/likelihood.h"
#include "cpu/several.h"

namespace vae_fast::cpu {

// Positions of one item: fewer where there are more planes.
VF_FN int64_t positions_of(int64_t planes) {
  const int64_t positions = kChunk / (planes < 1 ? 1 : planes) / 64 * 64;
  return positions < 64 ? 64 : positions;
}

template <class M, class X>
struct Planes {
  using T = typename M::T;
  using E = typename M::Element;
  static constexpr bool readable = true;
  const int count;
  const X* at;
  int64_t stride;
  E* grads;  // count vectors

  VF_FN T param(int j) const { return M::load(at + j * stride); }
  VF_FN void grad(int j, T g) { M::store(g, grads + j * M::width); }
  VF_FN T read(int j) const { return M::load(grads + j * M::width); }
};

template <class L, class M, bool VALUE, bool GRAD, class X>
double plane_span_of(const Likelihood& args, int64_t begin, int64_t end, double factor) {
  using T = typename M::T;
  using E = typename M::Element;
  // Vectors of positions that are taken side by side, if they are dense.
  using S = std::conditional_t<(M::width > 1), Several<M, 2>, M>;
  constexpr int kWidth = M::width;
  const int count = int(args.planes);
  const int64_t inner = args.inner;
  const T scale = M::splat(E(factor));
  const Operand &from = args.params[0], &to = args.grads[0];
  typename M::Sum sum;
  E* gradients = GRAD ? new E[count * S::width] : nullptr;
  X* copies = new X[count * kWidth];

  // `n` values of the target, one channel after the other.
  const auto read_target = [&](int64_t position, int64_t n, E* out, int64_t stride) {
    const int64_t first =
        position / inner % args.target_rows * L::targets * inner + position % inner;
    for (int t = 0; t < L::targets; ++t) {
      read<M>(args.target_dtype, args.target, first + t * inner, n, false, out + t * stride);
    }
  };
  // Positions that follow one another in a sample, P::width of them.
  const auto together = [&](auto policy, int64_t at) __attribute__((always_inline)) {
    using P = typename decltype(policy)::type;
    const int64_t row = at / inner, i = at % inner;
    Planes<P, X> planes{count, static_cast<const X*>(from.data) + row * from.row + i, from.plane,
                        gradients};
    E targets[L::targets][P::width];
    read_target(at, P::width, targets[0], P::width);
    typename P::T x[L::targets], nll;
    for (int t = 0; t < L::targets; ++t) x[t] = P::load(targets[t]);
    L::template position<P, VALUE, GRAD>(planes, x, nll, planes);
    if constexpr (VALUE && std::is_same_v<P, M>) {
      sum.add(nll);
    } else if constexpr (VALUE) {
      P::each(nll, [&](T v) { sum.add(v); });
    }
    if constexpr (GRAD) {
      X* out = static_cast<X*>(to.data) + row * to.row + i;
      for (int j = 0; j < count; ++j) P::store(planes.read(j) * scale, out + j * to.plane);
    }
  };
  // Up to a vector of positions of any samples: their planes are copied side by side first.
  const auto scattered = [&](int64_t at, int lanes) {
    const auto place = [&](int lane, const Operand& o) {
      const int64_t position = at + (lane < lanes ? lane : lanes - 1);
      return position / inner * o.row + position % inner;
    };
    E targets[L::targets][kWidth];
    for (int lane = 0; lane < kWidth; ++lane) {
      const X* source = static_cast<const X*>(from.data) + place(lane, from);
      for (int j = 0; j < count; ++j) copies[j * kWidth + lane] = source[j * from.plane];
      read_target(at + (lane < lanes ? lane : lanes - 1), 1, targets[0] + lane, kWidth);
    }
    Planes<M, X> planes{count, copies, kWidth, gradients};
    T x[L::targets], nll{};
    for (int t = 0; t < L::targets; ++t) x[t] = M::load(targets[t]);
    L::template position<M, VALUE, GRAD>(planes, x, nll, planes);
    if constexpr (VALUE) sum.add(lanes == kWidth ? nll : M::first(lanes, nll));
    if constexpr (GRAD) {
      for (int j = 0; j < count; ++j) M::store(planes.read(j) * scale, copies + j * kWidth);
      for (int lane = 0; lane < lanes; ++lane) {
        X* target = static_cast<X*>(to.data) + place(lane, to);
        for (int j = 0; j < count; ++j) target[j * to.plane] = copies[j * kWidth + lane];
      }
    }
  };

  for (int64_t at = begin; at < end;) {
    const int64_t left = end - at < inner - at % inner ? end - at : inner - at % inner;
    if (left >= S::width) {
      together(Storage<S>{}, at);
      at += S::width;
    } else if (left >= kWidth) {
      together(Storage<M>{}, at);
      at += kWidth;
    } else {
      const int lanes = int(end - at < kWidth ? end - at : kWidth);
      scattered(at, lanes);
      at += lanes;
    }
  }
  delete[] gradients;
  delete[] copies;
  return VALUE ? sum.total() : 0.0;
}

template <class L, class M, bool VALUE, bool GRAD>
double plane_span(const Likelihood& args, int64_t begin, int64_t end, double factor,
                  const SharedSums&) {
  if (begin >= end) return 0.0;
  if constexpr (M::width == 1) {
    return plane_span_of<L, M, VALUE, GRAD, double>(args, begin, end, factor);
  } else {
    double total = 0.0;
    with_storage(args.dtype, [&](auto x) {
      total =
          plane_span_of<L, M, VALUE, GRAD, typename decltype(x)::type>(args, begin, end, factor);
    });
    return total;
  }
}

template <class L, class M>
constexpr Spans kPlaneSpans = {plane_span<L, M, true, false>, plane_span<L, M, false, true>,
                               plane_span<L, M, true, true>};

}  // namespace vae_fast::cpu
