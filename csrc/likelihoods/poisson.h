// Poisson: -log p = rate - x log(rate) + log Gamma(x + 1).
//
// Where x > 0, with Stirling's formula for Gamma(x + 1) and c = log(2 pi) / 2,
//   -log p = rate + [x log((x + 1) / rate) - (x + 1) + log(x + 1) / 2 + c + S(x + 1)].
// Neither the rate's logarithm nor that of x + 1 enters by itself: near x = rate, the logarithm of
// their ratio keeps the digits that the difference of two would lose.
#pragma once

#include "likelihoods/target.h"
#include "math/gamma.h"

namespace vae_fast::likelihoods {

// With the logarithm of the rate, or the rate itself.
template <bool LOG_RATE>
struct PoissonBy {
  static constexpr int params = 1;
  static constexpr Target target = Target::count;
  static constexpr bool has_nonzero_part = true;

  template <class M, bool VALUE, bool GRAD, class T = typename M::T>
  static VF_FN void term(const T (&p)[params], T x, T& nll, T (&grad)[params]) {
    const T rate = LOG_RATE ? M::exp(p[0]) : p[0];
    const T nan_of_x = x - x, one = M::splat(1.0f);
    if constexpr (VALUE) nll = rate + nan_of_x;
    if constexpr (GRAD) grad[0] = (LOG_RATE ? rate : M::select(rate == rate, one, rate)) + nan_of_x;
  }

  template <class M, bool VALUE, bool GRAD, class T = typename M::T>
  static VF_FN void add_nonzero(const T (&p)[params], T x, T& nll, T (&grad)[params]) {
    if constexpr (VALUE) {
      const T more = x + 1.0f;
      T rate, beyond;
      if constexpr (LOG_RATE) {
        // The rate, held where it is an ordinary number; 0 and infinity are treated as they are.
        const T held = M::at_most(M::at_least(p[0], -60.0f), 60.0f);
        rate = M::exp(held);
        beyond = held - p[0];
      } else {
        rate = p[0];
      }
      T log_ratio = M::log_near(M::divide(more, rate), M::divide((x - rate) + 1.0f, rate));
      if constexpr (LOG_RATE) log_ratio = log_ratio + beyond;
      const T rest = 0.5f * M::log(more) + stirling<M>(more, M::divide(M::splat(1.0f), more));
      nll = nll + ((x * log_ratio - more) + (rest + M::constant(kHalfLog2Pi)));
    }
    if constexpr (GRAD) grad[0] = grad[0] - (LOG_RATE ? x : M::divide(x, p[0]));
  }
};
using Poisson = PoissonBy<false>;
using PoissonLog = PoissonBy<true>;

}  // namespace vae_fast::likelihoods
