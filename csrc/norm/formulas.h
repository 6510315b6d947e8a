// GroupNorm and SiLU: the formulas of one element, and the moments of a group.
//
// With xhat = (x - mean) rstd and v = weight xhat + bias, y = v sigmoid(v). Wu & He 2018; Elfwing
// et al. 2018. M is a math policy: see cpu/simd.h and math/scalar.h.
#pragma once

#include <cmath>

#include "math/macros.h"

namespace vae_fast::norm {

// sigmoid(v) and sigmoid(-v), each with all of its digits.
template <class M, class T = typename M::T>
VF_FN void sigmoids(T v, T& up, T& down) {
  const T e = M::exp_nonpositive(-M::abs(v));
  const T large = M::divide_unit(M::splat(1.0f), 1.0f + e), small = e * large;
  const auto positive = v >= 0.0f;
  up = M::select(positive, large, small);
  down = M::select(positive, small, large);
}

template <class M, class T = typename M::T>
VF_FN T silu(T v) {
  const T e = M::exp_nonpositive(-M::abs(v));
  return M::divide_unit(v * M::select(v >= 0.0f, M::splat(1.0f), e), 1.0f + e);
}

// d silu / dv = sigmoid(v) (1 + v sigmoid(-v)).
template <class M, class T = typename M::T>
VF_FN T silu_grad(T v) {
  T up, down;
  sigmoids<M>(v, up, down);
  return up * (1.0f + v * down);
}

// Count, mean and sum of squared distances from the mean, in double.
struct Moments {
  double count = 0.0, mean = 0.0, m2 = 0.0;

  // The moments of numbers whose distances from `shift` have this sum and this sum of squares.
  static VF_FN Moments shifted(double count, double shift, double sum, double squares) {
    Moments m;
    if (count == 0.0) return m;
    m.count = count;
    m.mean = shift + sum / count;
    m.m2 = squares - sum * (sum / count);
    if (m.m2 < 0.0) m.m2 = 0.0;
    return m;
  }
  // The moments of both runs together (Chan, Golub & LeVeque 1979).
  VF_FN void add(const Moments& other) {
    if (other.count == 0.0) return;
    const double total = count + other.count, distance = other.mean - mean;
    mean += distance * (other.count / total);
    m2 += other.m2 + distance * distance * (count * (other.count / total));
    count = total;
  }
  VF_FN double rstd(double eps) const {
    return 1.0 / ::sqrt((count == 0.0 ? 0.0 : m2 / count) + eps);
  }
};

// A group's share of the gradient of each of its elements: with dv = grad silu'(v),
// dx = rstd weight dv - (plain + (x - mean) slope).
struct GroupGradient {
  double plain = 0.0, slope = 0.0;

  // From the sums over the group's `count` elements of weight dv and weight dv xhat.
  VF_FN GroupGradient(double sum, double by_xhat, double rstd, double count) {
    if (count == 0.0) return;
    plain = rstd * sum / count;
    slope = rstd * rstd * by_xhat / count;
  }
};

}  // namespace vae_fast::norm
