// The math policy of the GPU: math/scalar.h's, less what is slow there for no need of ours.
#pragma once

#include "cuda/launch.cuh"
#include "math/scalar.h"

namespace vae_fast::cuda {

template <class Float>
struct Math : Scalar<Float> {
  using typename Scalar<Float>::T;

  static VF_DEVICE T fma(T a, T b, T c) {
    if constexpr (sizeof(T) == 4) {
      return __fmaf_rn(a, b, c);
    } else {
      return __fma_rn(a, b, c);
    }
  }
  // Of b in [1, 2]: a reciprocal, refined once, is right to the last bit but one and has no branch
  // for odd exponents.
  static VF_DEVICE T divide_unit(T a, T b) {
    if constexpr (sizeof(T) == 4) {
      const T r = __fdividef(1.0f, b);
      const T q = a * r;
      return fma(fma(-q, b, a), r, q);
    } else {
      return a / b;
    }
  }
  // Of |x| <= pi / 4 by the Taylor series, cut where the rest is below a tenth of an ulp. The
  // library's serve any x, for which they hold a table walk in local memory.
  static VF_DEVICE void sincos_quarter(T x, T& sine, T& cosine) {
    const T s = x * x;
    if constexpr (sizeof(T) == 4) {
      T p = T(1.0 / 362880);
      p = p * s - T(1.0 / 5040);
      p = p * s + T(1.0 / 120);
      p = p * s - T(1.0 / 6);
      sine = x + x * (s * p);
      T q = -T(1.0 / 3628800);
      q = q * s + T(1.0 / 40320);
      q = q * s - T(1.0 / 720);
      q = q * s + T(1.0 / 24);
      cosine = (T(1) - T(0.5) * s) + s * s * q;
    } else {
      T p = T(1.0 / 355687428096000.0);
      p = p * s - T(1.0 / 1307674368000.0);
      p = p * s + T(1.0 / 6227020800.0);
      p = p * s - T(1.0 / 39916800.0);
      p = p * s + T(1.0 / 362880);
      p = p * s - T(1.0 / 5040);
      p = p * s + T(1.0 / 120);
      p = p * s - T(1.0 / 6);
      sine = x + x * (s * p);
      T q = -T(1.0 / 6402373705728000.0);
      q = q * s + T(1.0 / 20922789888000.0);
      q = q * s - T(1.0 / 87178291200.0);
      q = q * s + T(1.0 / 479001600.0);
      q = q * s - T(1.0 / 3628800);
      q = q * s + T(1.0 / 40320);
      q = q * s - T(1.0 / 720);
      q = q * s + T(1.0 / 24);
      cosine = (T(1) - T(0.5) * s) + s * s * q;
    }
  }
};

}  // namespace vae_fast::cuda
