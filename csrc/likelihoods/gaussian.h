// Gaussian: -log p = (x - loc)^2 / (2 scale^2) + log scale + log(2 pi) / 2.
#pragma once

#include "likelihoods/target.h"

namespace vae_fast::likelihoods {

// With the logarithm of the scale (the standard deviation), or the scale itself.
template <bool LOG_SCALE>
struct GaussianBy {
  static constexpr int params = 2;  // loc, log scale or scale
  static constexpr Target target = Target::real;

  template <class M, bool VALUE, bool GRAD, class T = typename M::T>
  static VF_FN void term(const T (&p)[params], T x, T& nll, T (&grad)[params]) {
    T inverse, log_scale;
    if constexpr (LOG_SCALE) {
      inverse = M::exp(-p[1]);
      log_scale = p[1];
    } else {
      inverse = M::divide(M::splat(1.0f), p[1]);
      if constexpr (VALUE) log_scale = M::log(p[1]);
    }
    // Scaled before it is squared: 1 / scale^2 overflows long before (x - loc) / scale does.
    const T scaled = (x - p[0]) * inverse;
    const T square = scaled * scaled;
    if constexpr (VALUE) nll = 0.5f * square + (log_scale + M::constant(0.91893853320467274178));
    if constexpr (GRAD) {
      grad[0] = -scaled * inverse;
      grad[1] = LOG_SCALE ? 1.0f - square : (1.0f - square) * inverse;
    }
  }
};
using Gaussian = GaussianBy<true>;
using GaussianScale = GaussianBy<false>;

}  // namespace vae_fast::likelihoods
