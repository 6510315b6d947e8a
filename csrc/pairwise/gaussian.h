// The log-density of a diagonal Gaussian, one dimension of one pair, in bits.
//
// log2 N(z | mu, exp(logvar)) = level - r^2, r = (z - mu) * scale. The difference is taken first:
// z^2 - 2 z mu + mu^2 would cancel.
#pragma once

#include "math/macros.h"

namespace vae_fast::pairwise {

constexpr double kLog2 = 0.693147180559945309417;  // nats in a bit
constexpr double kLog2Pi = 1.837877066409345483561;

template <class M>
struct Gaussian {
  using T = typename M::T;
  using E = typename M::Element;

  // sqrt(log2(e) / 2) / sigma. Clamped within the exponent's range: 0 times it stays 0.
  static VF_FN T scale(T logvar) {
    constexpr E range = sizeof(E) == 8 ? E(700) : E(87);
    return M::exp(M::at_most(M::at_least(logvar * E(-0.5), -range), range)) *
           E(0.849321800288019042);
  }
  static VF_FN T level(T logvar) { return (logvar + E(kLog2Pi)) * E(-0.5 / kLog2); }
  static VF_FN T term(T z, T mu, T scale, T level, T& r) {
    r = (z - mu) * scale;
    return level - r * r;
  }
  // Gradients in nats, from sums over pairs of a coefficient times r, times r^2, and alone.
  static VF_FN double grad_mu(double scale, double with_r) { return 2.0 * kLog2 * scale * with_r; }
  static VF_FN double grad_logvar(double with_r2, double alone) {
    return kLog2 * with_r2 - 0.5 * alone;
  }
};

}  // namespace vae_fast::pairwise
