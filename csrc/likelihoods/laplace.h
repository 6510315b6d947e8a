// Laplace: -log p = |x - loc| / scale + log(2 scale).
#pragma once

#include "likelihoods/target.h"

namespace vae_fast::likelihoods {

// With the logarithm of the scale, or the scale itself.
template <bool LOG_SCALE>
struct LaplaceBy {
  static constexpr int params = 2;  // loc, log scale or scale
  static constexpr Target target = Target::real;

  template <class M, bool VALUE, bool GRAD, class T = typename M::T>
  static VF_FN void term(const T (&p)[params], T x, T& nll, T (&grad)[params]) {
    const T distance = x - p[0];
    T inverse, log_scale;
    if constexpr (LOG_SCALE) {
      inverse = M::exp(-p[1]);
      log_scale = p[1];
    } else {
      inverse = M::divide(M::splat(1.0f), p[1]);
      if constexpr (VALUE) log_scale = M::log(p[1]);
    }
    const T scaled = M::abs(distance) * inverse;
    if constexpr (VALUE) nll = scaled + (log_scale + M::constant(0.69314718055994530942));
    if constexpr (GRAD) {
      // Neither above nor below, the scaled distance is the sign it should have: 0, or NaN.
      const T below = M::select(distance < 0.0f, inverse, scaled);
      grad[0] = M::select(distance > 0.0f, -inverse, below);
      grad[1] = LOG_SCALE ? 1.0f - scaled : (1.0f - scaled) * inverse;
    }
  }
};
using Laplace = LaplaceBy<true>;
using LaplaceScale = LaplaceBy<false>;

}  // namespace vae_fast::likelihoods
