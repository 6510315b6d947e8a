// The continuous Bernoulli (Loaiza-Ganem & Cunningham 2019), a density on [0, 1] with logits l:
//   -log p = softplus(l) - x l - log C,   C = 2 artanh(1 - 2 s) / (1 - 2 s),   s = sigmoid(l).
// artanh(1 - 2 s) is -l / 2, and with y = |l|, e = exp(-y) and w = l >= 0 ? 1 - x : x,
//   -log p = y w + log((1 - e) / y),      d/dl = sign(l) (w + e / (1 - e) - 1 / y).
// Near 0, log((1 - e) / y) = -y / 2 + K(y) with K = log(sinh(y / 2) / (y / 2)) = y^2 / 24 - ...
#pragma once

#include "likelihoods/target.h"
#include "math/polynomial.h"

namespace vae_fast::likelihoods {

struct ContinuousBernoulli {
  static constexpr int params = 1;  // logits
  static constexpr Target target = Target::unit;

  template <class M, bool VALUE, bool GRAD, class T = typename M::T>
  static VF_FN void term(const T (&p)[params], T x, T& nll, T (&grad)[params]) {
    const T y = M::abs(p[0]);
    const auto positive = p[0] >= 0.0f;
    const T w = M::select(positive, 1.0f - x, x), centred = w - 0.5f;
    T negative;
    const T e = M::exp_nonpositive(-y, negative);
    const auto small = y < (kDouble<M> ? 1.0f : 2.0f);
    const T square = y * y;
    const T inverse = M::divide(M::splat(1.0f), y);
    if constexpr (VALUE) {
      const T mass = -negative * inverse;
      const T large = y * w + M::log_near(mass, mass - 1.0f);
      nll = M::select(small, y * centred + square * log_sinhc<M>(square), large);
    }
    if constexpr (GRAD) {
      const T large = w - (M::divide(e, negative) + inverse);
      const T g = M::select(small, centred + y * log_sinhc_slope<M>(square), large);
      grad[0] = M::select(positive, g, -g);
    }
  }

 private:
  template <class M>
  static constexpr bool kDouble = sizeof(typename M::Element) == 8;

  // K(y) / y^2 as a function of y^2 < 4 (relative error 2e-9); in float64 its series, of y^2 < 1.
  template <class M, class T = typename M::T>
  static VF_FN T log_sinhc(T square) {
    if constexpr (kDouble<M>) {
      double sum = 0.0;
      for (int k = 9; k >= 0; --k) sum = sum * square + coefficient(k);
      return sum;
    } else {
      return polynomial(square, 0x1.555556p-5f, -0x1.6c1686p-12f, 0x1.71bfb8p-18f, -0x1.b65b22p-24f,
                        0x1.d47234p-30f);
    }
  }
  // K'(y) / y, likewise (relative error 1e-8).
  template <class M, class T = typename M::T>
  static VF_FN T log_sinhc_slope(T square) {
    if constexpr (kDouble<M>) {
      double sum = 0.0;
      for (int k = 9; k >= 0; --k) sum = sum * square + 2 * (k + 1) * coefficient(k);
      return sum;
    } else {
      return polynomial(square, 0x1.555556p-4f, -0x1.6c1614p-10f, 0x1.153a7ap-15f, -0x1.b3dc38p-21f,
                        0x1.1955fep-26f);
    }
  }
  // The coefficient of y^(2 k + 2) in K: B_2n / (2n (2n)!), n = k + 1.
  static VF_FN double coefficient(int k) {
    constexpr double c[10] = {0.041666666666666664,   -0.00034722222222222224,
                              5.5114638447971785e-06, -1.0333994708994709e-07,
                              2.08767569878681e-09,   -4.4034917822395777e-11,
                              9.5589546647747697e-13, -2.1185501852016142e-14,
                              4.770034475709914e-16,  -1.0874343492790309e-17};
    return c[k];
  }
};

}  // namespace vae_fast::likelihoods
