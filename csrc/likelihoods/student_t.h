// Student's t: with z = (x - loc) / scale, n degrees of freedom ("df") and w = z^2 / n,
//   -log p = log scale + log(n pi) / 2 + log Gamma(n / 2) - log Gamma((n + 1) / 2)
//            + (n + 1) / 2 log(1 + w).
// The Gammas' logarithms grow as n log n and all but cancel. With h = n / 2 + 1 and r = 1 / (n + 1),
//   -log p = log scale + log(2 pi) / 2 - D(h) - log(n (n + 2) r^2) / 2 + (n + 1) / 2 log(1 + w),
// where D(h) = log Gamma(h + 1/2) - log Gamma(h) - log(h) / 2 is small, and n (n + 2) r^2 = 1 - r^2
// comes from the shift of the arguments by 1. With g the excess of log(1 + w) over w / (1 + w),
//   d/dn = g / 2 - w / (2 n (1 + w)) - D'(h) / 2 - 1 / (n (n + 1) (n + 2)),
// whose terms are as small as their sum at large n.
#pragma once

#include "likelihoods/target.h"
#include "math/gamma.h"

namespace vae_fast::likelihoods {

// With the logarithm of the scale, or the scale itself.
template <bool LOG_SCALE>
struct StudentTBy {
  static constexpr int params = 3;  // loc, log scale or scale, degrees of freedom
  static constexpr Target target = Target::real;

  template <class M, bool VALUE, bool GRAD, class T = typename M::T>
  static VF_FN void term(const T (&p)[params], T x, T& nll, T (&grad)[params]) {
    const T one = M::splat(1.0f);
    const T inverse = LOG_SCALE ? M::exp(-p[1]) : M::divide(one, p[1]);
    const T n = p[2], more = n + 1.0f;
    const T z = (x - p[0]) * inverse;
    const T inverse_n = M::divide(one, n);
    const T slope = z * inverse_n, w = z * slope;
    const T share = M::divide(one, 1.0f + w);
    T log1p, excess;
    M::log1p_excess(w, share, log1p, excess);
    const T r = M::divide(one, more);
    const T h = 0.5f * n + 1.0f, inverse_h = M::divide(one, h);
    if constexpr (VALUE) {
      T log_scale;
      if constexpr (LOG_SCALE) {
        log_scale = p[1];
      } else {
        log_scale = M::log(p[1]);
      }
      const T shift = M::log_near((n * r) * ((n + 2.0f) * r), -(r * r));
      const T gammas = half_step<M>(h, inverse_h) + 0.5f * shift;
      nll = (0.5f * more) * log1p + ((log_scale + M::constant(kHalfLog2Pi)) - gammas);
    }
    if constexpr (GRAD) {
      grad[0] = -(more * share) * (slope * inverse);
      const T by_log = 1.0f - (more * share) * w;
      grad[1] = LOG_SCALE ? by_log : by_log * inverse;
      const T shift = (inverse_n * r) * (0.5f * inverse_h);
      grad[2] =
          0.5f * ((excess - (w * share) * inverse_n) - half_step_slope<M>(h, inverse_h)) - shift;
    }
  }
};
using StudentT = StudentTBy<true>;
using StudentTScale = StudentTBy<false>;

}  // namespace vae_fast::likelihoods
