// The Bernoulli family's formulas: -log p(t | x) and its gradient in x, per element, in nats.
//
// M is a math policy (a SIMD level, or a scalar type): see cpu/simd.h and math/scalar.h.
#pragma once

#include "math/macros.h"

namespace vae_fast::bernoulli {

// From logits. With e = exp(-|x|) and w = x >= 0 ? 1 - t : t,
//   nll = softplus(x) - x t = |x| w + log(1 + e)
//   d/dx = sigmoid(x) - t   = sign(x) (w - e / (1 + e)).
// Both forms add no large terms that cancel: a confident, right prediction keeps all its digits,
// in the value and in the gradient, and |x| = infinity stays one.
//
// The value is left in its two parts, linear = |x| w and e: a sum of log(1 + e) can be had for less
// than the sum of its terms (cpu/simd.h, LogSum).
template <class M, bool VALUE, bool GRAD, class T = typename M::T>
VF_FN void from_logits_parts(T x, T t, T& linear, T& e, T& grad) {
  const T magnitude = M::abs(x);
  e = M::exp_nonpositive(-magnitude);
  const auto positive = x >= T{};
  const T w = M::select(positive, 1.0f - t, t);
  if constexpr (VALUE) linear = magnitude * w;
  if constexpr (GRAD) {
    const T g = w - M::divide_unit(e, 1.0f + e);
    grad = M::select(positive, g, -g);
  }
}

template <class M, bool VALUE, bool GRAD, class T = typename M::T>
VF_FN void from_logits(T x, T t, T& nll, T& grad) {
  T e;
  from_logits_parts<M, VALUE, GRAD>(x, t, nll, e, grad);
  if constexpr (VALUE) nll = nll + M::log1p_unit(e);
}

// From probabilities, as torch's F.binary_cross_entropy: logarithms clamped at -100, and the
// gradient's denominator at 1e-12.
template <class M, bool VALUE, bool GRAD, class T = typename M::T>
VF_FN void from_probabilities(T p, T t, T& nll, T& grad) {
  if constexpr (VALUE) {
    const T log_p = M::at_least(M::log(p), -100.0f);
    const T log_q = M::at_least(M::log1p(-p), -100.0f);
    nll = -(t * log_p + (1.0f - t) * log_q);
  }
  if constexpr (GRAD) {
    grad = M::divide(p - t, M::at_least(p * (1.0f - p), 1e-12));
  }
}

template <class M, bool FROM_LOGITS, bool VALUE, bool GRAD, class T = typename M::T>
VF_FN void terms(T x, T t, T& nll, T& grad) {
  if constexpr (FROM_LOGITS) {
    from_logits<M, VALUE, GRAD>(x, t, nll, grad);
  } else {
    from_probabilities<M, VALUE, GRAD>(x, t, nll, grad);
  }
}

}  // namespace vae_fast::bernoulli
