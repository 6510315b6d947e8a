// Bernoulli, from logits and from probabilities. The target is in [0, 1].
#pragma once

#include "likelihoods/target.h"
#include "math/macros.h"

namespace vae_fast::likelihoods {

// From logits. With e = exp(-|x|) and w = x >= 0 ? 1 - t : t,
//   nll = softplus(x) - x t = |x| w + log(1 + e)
//   d/dx = sigmoid(x) - t   = sign(x) (w - e / (1 + e)).
// Neither form adds large terms that cancel: a confident and correct prediction keeps all its digits,
// in the value and in the gradient. |x| = infinity gives infinity.
struct Bernoulli {
  static constexpr int params = 1;
  static constexpr Target target = Target::unit;
  static constexpr bool reads_halves = true;

  // The value in two parts, nll = linear + log(1 + e): a sum of log(1 + e) is cheaper as the logarithm
  // of a product (cpu/simd.h, LogSum).
  template <class M, bool VALUE, bool GRAD, class T = typename M::T>
  static VF_FN void parts(const T (&p)[params], T t, T& linear, T& e, T (&grad)[params]) {
    const T x = p[0];
    const T magnitude = M::abs(x);
    e = M::exp_nonpositive(-magnitude);
    const auto positive = x >= T{};
    const T w = M::select(positive, 1.0f - t, t);
    if constexpr (VALUE) linear = magnitude * w;
    if constexpr (GRAD) {
      const T g = w - M::divide_unit(e, 1.0f + e);
      grad[0] = M::select(positive, g, -g);
    }
  }

  template <class M, bool VALUE, bool GRAD, class T = typename M::T>
  static VF_FN void term(const T (&p)[params], T t, T& nll, T (&grad)[params]) {
    T e;
    parts<M, VALUE, GRAD>(p, t, nll, e, grad);
    if constexpr (VALUE) nll = nll + M::log1p_unit(e);
  }
};

// From probabilities, as torch's F.binary_cross_entropy: logarithms clamped at -100, and the
// gradient's denominator at 1e-12. Outside [0, 1], where F.binary_cross_entropy raises, the value is
// NaN: the logarithms give NaN for p, and the target is tested.
struct BernoulliProbs {
  static constexpr int params = 1;
  static constexpr Target target = Target::unit;

  template <class M, bool VALUE, bool GRAD, class T = typename M::T>
  static VF_FN void term(const T (&p)[params], T t, T& nll, T (&grad)[params]) {
    const T x = p[0];
    if constexpr (VALUE) {
      const T log_p = M::at_least(M::log(x), -100.0f);
      const T log_q = M::at_least(M::log1p(-x), -100.0f);
      nll = -(t * log_p + (1.0f - t) * log_q);
      nll = M::select(t * (1.0f - t) >= T{}, nll, __builtin_nanf(""));
    }
    if constexpr (GRAD) {
      grad[0] = M::divide(x - t, M::at_least(x * (1.0f - x), 1e-12));
    }
  }
};

}  // namespace vae_fast::likelihoods
