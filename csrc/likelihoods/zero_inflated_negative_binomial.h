// The zero-inflated negative binomial, as scvi-tools parametrises it: with the probability
// sigmoid(l) the count is 0, else it is negative binomial. With A = -log p(0) of the latter,
//   x = 0:  -log p = -log(sigmoid(l) + sigmoid(-l) exp(-A));   x > 0:  softplus(l) - log p_nb(x).
#pragma once

#include "likelihoods/negative_binomial.h"

namespace vae_fast::likelihoods {

template <bool LOG_RATE>
struct ZeroInflatedNegativeBinomialBy {
  static constexpr int params = 3;  // rate or its logarithm, dispersion, zero logits
  static constexpr Target target = Target::count;
  static constexpr bool has_nonzero_part = true;

  // x = 0. With e = exp(-|l|), P = sigmoid(l), Q = sigmoid(-l) and E = exp(-A), the sum u of the two
  // probabilities is P + Q E, and 1 - u = Q (1 - E). Neither cancels, and log u is taken from whichever
  // of them has its digits. Where both P and E would be tiny, exp(-held) is taken out of both; 1 + e
  // and 1 - E then are 1 all the same. Where x > 0 this gives 0: add_nonzero has all of it.
  template <class M, bool VALUE, bool GRAD, class T = typename M::T>
  static VF_FN void term(const T (&p)[params], T x, T& nll, T (&grad)[params]) {
    const T rate = LOG_RATE ? M::exp(p[0]) : p[0], logit = p[2];
    const Common<M, GRAD> common(rate, p[1]);
    const T a = common.value;
    // 1 + exp(-margin) is 1.
    constexpr float margin = sizeof(typename M::Element) == 8 ? 40.0f : 17.0f;
    const T held = M::at_least(M::select(a < -logit, a, -logit) - margin, 0.0f);
    T negative;  // E - 1
    const T zero_nb = M::exp_nonpositive(held - a, negative);
    const T e = M::exp_nonpositive(held - M::abs(logit));
    const auto positive = logit >= 0.0f;
    const T one = M::splat(1.0f), share = M::divide_unit(one, 1.0f + e);
    const T of_zero = M::select(positive, one, e);
    const T p_zero = of_zero * share, p_nb = M::select(positive, e, one) * share;
    // Added before they are divided by 1 + e: one rounding less than P + Q E.
    const T sum = (of_zero + M::select(positive, e * zero_nb, zero_nb)) * share;
    const auto zero = x == 0.0f;
    const T nan_of_x = x - x;
    if constexpr (VALUE) {
      nll = M::select(zero, held - M::log_near(sum, p_nb * negative), nan_of_x);
    }
    if constexpr (GRAD) {
      const T nb_share = M::divide(p_nb, sum);
      const T of_nb = M::select(zero, nb_share * zero_nb, nan_of_x);
      grad[0] = of_nb * (LOG_RATE ? rate * common.by_rate : common.by_rate);
      grad[1] = of_nb * common.by_dispersion;
      grad[2] = M::select(zero, (p_zero * nb_share) * negative, nan_of_x);
    }
  }

  template <class M, bool VALUE, bool GRAD, class T = typename M::T>
  static VF_FN void add_nonzero(const T (&p)[params], T x, T& nll, T (&grad)[params]) {
    T beyond;
    const T rate = counted_rate<M, LOG_RATE>(p[0], beyond), logit = p[2];
    const Common<M, GRAD> common(LOG_RATE ? M::exp(p[0]) : rate, p[1]);
    const Counted<M, LOG_RATE, VALUE, GRAD> counted(rate, beyond, p[1], x);
    const T e = M::exp_nonpositive(-M::abs(logit));
    if constexpr (VALUE) {
      const T softplus = M::at_least(logit, 0.0f) + M::log1p_unit(e);
      nll = nll + ((common.value + counted.value) + softplus);
    }
    if constexpr (GRAD) {
      const T by_rate = LOG_RATE ? rate * common.by_rate : common.by_rate;
      grad[0] = grad[0] + (by_rate + counted.by_rate);
      grad[1] = grad[1] + (common.by_dispersion + counted.by_dispersion);
      const T one = M::splat(1.0f);
      grad[2] = grad[2] + M::divide_unit(M::select(logit >= 0.0f, one, e), 1.0f + e);
    }
  }
};
using ZeroInflatedNegativeBinomial = ZeroInflatedNegativeBinomialBy<false>;
using ZeroInflatedNegativeBinomialLog = ZeroInflatedNegativeBinomialBy<true>;

}  // namespace vae_fast::likelihoods
