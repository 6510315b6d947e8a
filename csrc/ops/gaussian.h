// The Gaussian family's formulas: sampling and KL divergence, values and gradients, per element.
//
// M is a math policy (a SIMD level, or a scalar type): see cpu/simd.h and math/scalar.h.
// logvar is log sigma^2; all is in nats. Kingma & Welling 2014, section 2.4 and appendix B.
#pragma once

#include "math/macros.h"

namespace vae_fast::gaussian {

template <class M, class T = typename M::T>
VF_FN T standard_deviation(T logvar) {
  return M::exp(0.5f * logvar);
}

// z = mu + sigma * eps;  dz/dlogvar = sigma * eps / 2, the slope.
template <class M, class T = typename M::T>
VF_FN T sample(T mu, T sigma, T eps) {
  return mu + sigma * eps;
}

template <class M, class T = typename M::T>
VF_FN T sample_grad_logvar(T sigma, T eps) {
  return 0.5f * sigma * eps;
}

// KL(N(mu, variance) || N(0, 1)) = (variance - 1 - logvar + mu^2) / 2.
template <class M, class T = typename M::T>
VF_FN T kl_standard(T mu, T logvar, T variance) {
  return 0.5f * ((M::less_one(variance, logvar) - logvar) + mu * mu);
}

// dKL/dmu = mu;  dKL/dlogvar = (variance - 1) / 2.
template <class M, class T = typename M::T>
VF_FN T kl_standard_grad_logvar(T variance) {
  return 0.5f * (variance - 1.0f);
}

// Two Gaussians: with d = mu - prior_mu, l = logvar - prior_logvar and p = exp(-prior_logvar),
// KL = (exp(l) - 1 - l + d^2 p) / 2. d is scaled by the root of p, twice: p itself may be infinite
// where d is 0.
template <class M, class T = typename M::T>
struct Two {
  T ratio;      // exp(l)
  T log_ratio;  // l
  T scaled;     // d p
  T distance;   // d^2 p

  VF_FN Two(T mu, T logvar, T prior_mu, T prior_logvar) {
    const T d = mu - prior_mu;
    log_ratio = logvar - prior_logvar;
    ratio = M::exp(log_ratio);
    const T root = M::exp(-0.5f * prior_logvar);
    const T deviations = d * root;
    scaled = deviations * root;
    distance = deviations * deviations;
  }
  VF_FN T kl() const { return 0.5f * ((ratio - 1.0f - log_ratio) + distance); }
  VF_FN T grad_mu() const { return scaled; }  // and -scaled for prior_mu
  VF_FN T grad_logvar() const { return 0.5f * (ratio - 1.0f); }
  VF_FN T grad_prior_logvar() const { return 0.5f * ((1.0f - ratio) - distance); }
};

}  // namespace vae_fast::gaussian
