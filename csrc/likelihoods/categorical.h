// Categorical: -log p = log(sum_j exp(l_j)) - l_x, over classes 0 to count - 1.
//
// With m the largest logit and s = sum_j exp(l_j - m), the nll is m - l_x + log s. The terms of s other
// than the largest's 1 are summed apart, so that a confident, correct prediction keeps its digits.
#pragma once

#include <limits>

#include "likelihoods/target.h"

namespace vae_fast::likelihoods {

struct Categorical {
  static constexpr int targets = 1;
  static constexpr Target target = Target::category;
  template <class E>
  static constexpr E kLowest = std::numeric_limits<E>::lowest();  // logits may be -infinity
  template <class E>
  static constexpr E kUnknown = std::numeric_limits<E>::quiet_NaN();

  // A target that is no class gives NaN.
  template <class M, bool VALUE, bool GRAD, class In, class Out, class T = typename M::T>
  static VF_FN void position(const In& in, const T (&x)[targets], T& nll, Out& out) {
    using Element = typename M::Element;
    const T none = M::splat(0.0f), one = M::splat(1.0f);
    T largest = M::splat(kLowest<Element>), right = M::splat(kUnknown<Element>);
    for (int j = 0; j < in.count; ++j) {
      const T logit = in.param(j);
      largest = M::select(logit > largest, logit, largest);
      right = M::select(x[0] == Element(j), logit, right);
    }
    T rest = none, ties = M::splat(-1.0f);
    for (int j = 0; j < in.count; ++j) {
      const T logit = in.param(j);
      const T e = M::exp_nonpositive(logit - largest);
      const auto top = logit == largest;
      rest = rest + M::select(top, none, e);
      ties = ties + M::select(top, one, none);
      if constexpr (GRAD && Out::readable) out.grad(j, e);
    }
    rest = rest + ties;
    const T sum = 1.0f + rest;
    if constexpr (VALUE) nll = (largest - right) + M::log_near(sum, rest);
    if constexpr (GRAD) {
      const T inverse = M::divide(one, sum);
      // p_x - 1 = -(s - exp(l_x - m)) / s.
      const T e_right = M::exp_nonpositive(right - largest);
      const T at_right = -(rest + (1.0f - e_right)) * inverse;
      const T nan = at_right - at_right;
      for (int j = 0; j < in.count; ++j) {
        T e;
        if constexpr (Out::readable) {
          e = out.read(j);
        } else {
          e = M::exp_nonpositive(in.param(j) - largest);
        }
        out.grad(j, M::select(x[0] == Element(j), at_right, e * inverse + nan));
      }
    }
  }
};

}  // namespace vae_fast::likelihoods
