// A logistic distribution over the 256 levels of 8-bit data: see logistic_bin.h.
#pragma once

#include "likelihoods/logistic_bin.h"
#include "likelihoods/target.h"

namespace vae_fast::likelihoods {

struct DiscretizedLogistic {
  static constexpr int params = 2;  // loc, on [-1, 1], and log scale
  static constexpr Target target = Target::level;

  template <class M, bool VALUE, bool GRAD, class T = typename M::T>
  static VF_FN void term(const T (&p)[params], T x, T& nll, T (&grad)[params]) {
    logistic_bin<M, VALUE, GRAD>(p[0], p[1], x, nll, grad[0], grad[1]);
  }
};

}  // namespace vae_fast::likelihoods
