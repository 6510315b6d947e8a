// Stirling's formula for arguments from 1 on, in parts:
//
//   log Gamma(a) = (a - 1/2) log a - a + log(2 pi) / 2 + S(a),     S(a) = 1 / (12 a) - ...
//   digamma(a)   = log a - 1 / (2 a) + S'(a).
//
// A difference of two such, log Gamma(a + x) - log Gamma(a), has large parts that cancel. They are
// subtracted as formulas where the difference is needed, and only S as numbers. Smaller arguments
// are shifted by Gamma(a) = Gamma(a + 1) / a. (TensorFlow Probability's log_gamma_difference and
// Stan's lgamma_stirling_diff work alike.)
#pragma once

#include "math/macros.h"
#include "math/polynomial.h"

namespace vae_fast {

constexpr double kHalfLog2Pi = 0.91893853320467274178;

// S(a) or, with SLOPE, S'(a), in float64: S(a) = S(a + 1) + f(s), f(s) = s^2 / 3 + s^4 / 5 + ...
// with s = 1 / (2 a + 1), until the asymptotic series is right to the last digit.
template <class M, bool SLOPE>
VF_CALL double stirling_in_double(double a) {
  double sum = 0.0;
  for (; a < 12.0; a += 1.0) {  // NOLINT(*-float-loop-counter): exact
    const double s = 1.0 / (2.0 * a + 1.0), s2 = s * s;
    double f = 0.0;
    for (int k = 18; k >= 1; --k) f = (f + (SLOPE ? k : 1.0) / (2 * k + 1)) * s2;
    sum += SLOPE ? -4.0 * s * f : f;
  }
  const double t = 1.0 / a, y = t * t;
  constexpr double c[8] = {1.0 / 12,   -1.0 / 360,      1.0 / 1260, -1.0 / 1680,
                           1.0 / 1188, -691.0 / 360360, 1.0 / 156,  -3617.0 / 122400};
  double series = 0.0;
  for (int k = 7; k >= 0; --k) series = series * y + (SLOPE ? -(2 * k + 1) : 1) * c[k];
  return sum + (SLOPE ? series * y : series * t);
}

// S(a) of a >= 1, with t = 1 / a. The polynomial's error is 2e-8.
template <class M, class T = typename M::T>
VF_FN T stirling(T a, T t) {
  if constexpr (sizeof(typename M::Element) == 8) {
    return stirling_in_double<M, false>(a);
  } else {
    return t * polynomial(t, 0x1.555432p-4f, 0x1.62fe36p-16f, -0x1.7db686p-9f, 0x1.803faap-12f,
                          0x1.b095c0p-12f, -0x1.4cd8f4p-13f);
  }
}

// S'(a) of a >= 1, with t = 1 / a. The polynomial's error is 4e-8 t^2.
template <class M, class T = typename M::T>
VF_FN T stirling_slope(T a, T t) {
  if constexpr (sizeof(typename M::Element) == 8) {
    return stirling_in_double<M, true>(a);
  } else {
    const T p = polynomial(t, 0x1.55554cp-4f, 0x1.384246p-19f, -0x1.11a114p-7f, -0x1.0b73eep-14f,
                           0x1.439dfcp-8f, -0x1.cb9794p-9f, 0x1.c45464p-11f);
    return -(t * t) * p;
  }
}

// log Gamma(a + 1/2) - log Gamma(a) - log(a) / 2 of a >= 1, with t = 1 / a: -1 / (8 a) + ... The
// polynomial's error is 4e-8.
template <class M, class T = typename M::T>
VF_FN T half_step(T a, T t) {
  if constexpr (sizeof(typename M::Element) == 8) {
    const double more = a + 0.5;
    return (a * ::log1p(0.5 * t) - 0.5) + (stirling<M>(more, 1.0 / more) - stirling<M>(a, t));
  } else {
    return -t * polynomial(t, 0x1.fffdbcp-4f, 0x1.628a50p-15f, -0x1.66f2f0p-8f, 0x1.808f26p-11f,
                           0x1.a1cc42p-11f, -0x1.4642e2p-12f);
  }
}

// half_step's derivative. The polynomial's error is 8e-8 t^2.
template <class M, class T = typename M::T>
VF_FN T half_step_slope(T a, T t) {
  if constexpr (sizeof(typename M::Element) == 8) {
    const double more = a + 0.5;
    double log1p, excess;
    M::log1p_excess(0.5 * t, a / more, log1p, excess);
    return excess + (stirling_slope<M>(more, 1.0 / more) - stirling_slope<M>(a, t));
  } else {
    const T p = polynomial(t, 0x1.ffffecp-4f, 0x1.3e4c00p-18f, -0x1.0096a8p-6f, -0x1.eba1c6p-14f,
                           0x1.3e803cp-7f, -0x1.c83c42p-8f, 0x1.c31fd4p-10f);
    return (t * t) * p;
  }
}

}  // namespace vae_fast
