// The negative binomial and the zero-inflated one, as scvi-tools parametrises them: by the mean m
// (here "rate") and the inverse dispersion t (here "dispersion"), with e = 1e-8:
//
//   -log p = t log((t + m + e) / (t + e)) + x log((t + m + e) / (m + e))
//            + log Gamma(t) - log Gamma(x + t) + log Gamma(x + 1).
//
// Right for dispersions to 1e8 and counts to 1e6, where these terms cancel to nothing: see `Counted`.
#pragma once

#include "likelihoods/target.h"
#include "math/gamma.h"

namespace vae_fast::likelihoods {

constexpr double kCountEps = 1e-8;

// What every x has: value = t log(1 + w) with w = m / (t + e), and its derivatives.
template <class M, bool GRAD, class T = typename M::T>
struct Common {
  T value, by_rate, by_dispersion;

  VF_FN Common(T rate, T dispersion) {
    const T inverse = M::divide(M::splat(1.0f), dispersion + M::constant(kCountEps));
    const T w = rate * inverse;
    if constexpr (GRAD) {
      const T share = M::divide(M::splat(1.0f), 1.0f + w);
      T log, excess;
      M::log1p_excess(w, share, log, excess);
      value = dispersion * log;
      by_rate = (dispersion * inverse) * share;
      by_dispersion = excess + (M::constant(kCountEps) * inverse) * (w * share);
    } else {
      value = dispersion * M::log_near(1.0f + w, w);
    }
  }
};

// The terms that only x > 0 has: 200 instructions for 8 elements under AVX2, where the terms that every
// x has take 54. With a = t + 1, Gamma(x + t) / Gamma(t) = Gamma(x + a) / Gamma(a) / (1 + x / t), and
// with Stirling's formula for the three Gammas, all that is left of their large terms is
//   x log(u) - (a - 1/2) log(1 + x / a) + log(x + 1) / 2 + log(1 + x / t) - 1 + log(2 pi) / 2
//   + S(x + 1) - S(x + a) + S(a),     u = (t + m + e) (x + 1) / ((a + x) (m + e)),
// where u - 1 = t (x + 1 - m - e) / ((a + x) (m + e)) exactly. The derivative by t, with g the excess
// of log(1 + y) over y / (1 + y) at y = x / a, is
//   -g + x (x + 1 - m - e) / ((a + x) (t + m + e)) - x / (2 a (a + x)) - S'(x + a) + S'(a)
//   - x / (t (t + x)),
// in which every term is as small as the sum at large t.
//
// With LOG_RATE, m stands in place of m + e in u's denominator, and e / m is added to u - 1. So no
// rate is too small for its gradient.
template <class M, bool LOG_RATE, bool VALUE, bool GRAD, class T = typename M::T>
struct Counted {
  T value, by_rate, by_dispersion;  // by the logarithm of the rate if LOG_RATE

  // `rate` is the mean. If LOG_RATE, `beyond` is how far its logarithm has been raised.
  VF_FN Counted(T rate, T beyond, T dispersion, T x) {
    const T one = M::splat(1.0f);
    const T floored = LOG_RATE ? rate : rate + M::constant(kCountEps);
    const T total = (dispersion + M::constant(kCountEps)) + rate;
    const T a = dispersion + 1.0f, sum = a + x, more = x + 1.0f;
    const T ahead = (x - rate) + M::constant(1.0 - kCountEps);
    const T inverse_a = M::divide(one, a), inverse_sum = M::divide(one, sum);
    T log_y, excess;
    M::log1p_excess(x * inverse_a, a * inverse_sum, log_y, excess);
    if constexpr (VALUE) {
      const T inverse = M::divide(inverse_sum, floored);
      T less_one = (dispersion * ahead) * inverse;
      if constexpr (LOG_RATE) less_one = less_one + M::divide(M::splat(1e-8f), floored);
      T log_u = M::log_near((total * more) * inverse, less_one);
      if constexpr (LOG_RATE) log_u = log_u + beyond;
      const T log_rest = M::log(M::sqrt_positive(more) * (1.0f + M::divide(x, dispersion)));
      const T corrections =
          (stirling<M>(more, M::divide(one, more)) - stirling<M>(sum, inverse_sum)) +
          stirling<M>(a, inverse_a);
      value = (x * log_u - (a - 0.5f) * log_y) +
              (log_rest + (corrections + M::constant(kHalfLog2Pi - 1.0)));
    }
    if constexpr (GRAD) {
      const T inverse_total = M::divide(one, total);
      if constexpr (LOG_RATE) {
        by_rate = -x * ((dispersion + M::constant(kCountEps)) * inverse_total);
      } else {
        by_rate = -M::divide(x, floored) * (dispersion * inverse_total);
      }
      const T slopes = stirling_slope<M>(sum, inverse_sum) - stirling_slope<M>(a, inverse_a);
      const T step = x * inverse_sum;
      const T shifted = M::divide(x, dispersion * (dispersion + x));
      by_dispersion =
          (step * (ahead * inverse_total - 0.5f * inverse_a) - excess) - (slopes + shifted);
    }
  }
};

// The rate for Counted: as it is or, from its logarithm, raised to an ordinary number.
template <class M, bool LOG_RATE, class T = typename M::T>
VF_FN T counted_rate(T p, T& beyond) {
  if constexpr (!LOG_RATE) return p;
  const T held = M::at_least(p, -60.0f);
  beyond = held - p;
  return M::exp(held);
}

template <bool LOG_RATE>
struct NegativeBinomialBy {
  static constexpr int params = 2;  // rate or its logarithm, dispersion
  static constexpr Target target = Target::count;
  static constexpr bool has_nonzero_part = true;

  template <class M, bool VALUE, bool GRAD, class T = typename M::T>
  static VF_FN void term(const T (&p)[params], T x, T& nll, T (&grad)[params]) {
    const T rate = LOG_RATE ? M::exp(p[0]) : p[0];
    const Common<M, GRAD> common(rate, p[1]);
    const T nan_of_x = x - x;
    if constexpr (VALUE) nll = common.value + nan_of_x;
    if constexpr (GRAD) {
      grad[0] = (LOG_RATE ? rate * common.by_rate : common.by_rate) + nan_of_x;
      grad[1] = common.by_dispersion + nan_of_x;
    }
  }

  template <class M, bool VALUE, bool GRAD, class T = typename M::T>
  static VF_FN void add_nonzero(const T (&p)[params], T x, T& nll, T (&grad)[params]) {
    T beyond;
    const T rate = counted_rate<M, LOG_RATE>(p[0], beyond);
    const Counted<M, LOG_RATE, VALUE, GRAD> counted(rate, beyond, p[1], x);
    if constexpr (VALUE) nll = nll + counted.value;
    if constexpr (GRAD) {
      grad[0] = grad[0] + counted.by_rate;
      grad[1] = grad[1] + counted.by_dispersion;
    }
  }
};
using NegativeBinomial = NegativeBinomialBy<false>;
using NegativeBinomialLog = NegativeBinomialBy<true>;

}  // namespace vae_fast::likelihoods
