// A likelihood over planes on the CPU: a vector of positions at a time, all planes of each.
//
// Positions that follow one another in a sample are read where they lie. Where a vector crosses into
// the next sample, and in the tail, the positions' planes are copied side by side first.
#pragma once

#include "cpu/driver.h"
#include "cpu/likelihood.h"

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
  constexpr int kWidth = M::width;
  const int count = int(args.planes);
  const int64_t inner = args.inner;
  const T scale = M::splat(E(factor));
  const Operand &from = args.params[0], &to = args.grads[0];
  typename M::Sum sum;
  E* gradients = GRAD ? new E[count * kWidth] : nullptr;
  X* copies = new X[count * kWidth];

  for (int64_t at = begin; at < end; at += kWidth) {
    const int lanes = int(end - at < kWidth ? end - at : kWidth);
    const int64_t row = at / inner, i = at % inner;
    const bool together = i + kWidth <= inner && lanes == kWidth;
    const auto place = [&](int lane, const Operand& o) {
      const int64_t position = at + (lane < lanes ? lane : lanes - 1);
      return position / inner * o.row + position % inner;
    };
    Planes<M, X> planes{count, static_cast<const X*>(from.data) + row * from.row + i, from.plane,
                        gradients};
    E targets[L::targets][kWidth];
    const auto read_target = [&](int64_t position, int64_t n, int lane) {
      const int64_t first =
          position / inner % args.target_rows * L::targets * inner + position % inner;
      for (int t = 0; t < L::targets; ++t) {
        read<M>(args.target_dtype, args.target, first + t * inner, n, false, targets[t] + lane);
      }
    };
    if (together) {
      read_target(at, kWidth, 0);
    } else {
      for (int lane = 0; lane < kWidth; ++lane) {
        const X* source = static_cast<const X*>(from.data) + place(lane, from);
        for (int j = 0; j < count; ++j) copies[j * kWidth + lane] = source[j * from.plane];
        read_target(at + (lane < lanes ? lane : lanes - 1), 1, lane);
      }
      planes.at = copies;
      planes.stride = kWidth;
    }
    T x[L::targets], nll{};
    for (int t = 0; t < L::targets; ++t) x[t] = M::load(targets[t]);
    L::template position<M, VALUE, GRAD>(planes, x, nll, planes);
    if constexpr (VALUE) sum.add(lanes == kWidth ? nll : M::first(lanes, nll));
    if constexpr (GRAD) {
      X* out = static_cast<X*>(to.data) + row * to.row + i;
      for (int j = 0; j < count; ++j) {
        const T g = planes.read(j) * scale;
        if (together) {
          M::store(g, out + j * to.plane);
        } else {
          M::store(g, copies + j * kWidth);
        }
      }
      if (!together) {
        for (int lane = 0; lane < lanes; ++lane) {
          X* target = static_cast<X*>(to.data) + place(lane, to);
          for (int j = 0; j < count; ++j) target[j * to.plane] = copies[j * kWidth + lane];
        }
      }
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
