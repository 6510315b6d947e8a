// The math policy of the GPU: math/scalar.h's, with faster forms where we don't need the library's
// range.
#pragma once

#include "cuda/launch.cuh"
#include "math/scalar.h"

namespace vae_fast::cuda {

// The hardware's own instructions, where one more unit in the last place does not matter.
VF_DEVICE float rough_reciprocal(float x) {
#if defined(__CUDACC__)
  float r;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
#else
  return 1.0f / x;
#endif
}
VF_DEVICE float rough_root(float x) {
#if defined(__CUDACC__)
  float r;
  asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
#else
  return sqrtf(x);
#endif
}

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
  // For b in [1, 2]: by a reciprocal that is right to one unit. The quotient's remainder corrects
  // it, so that all but the last bit are right. Odd exponents need no branch.
  static VF_DEVICE T divide_unit(T a, T b) {
    if constexpr (sizeof(T) == 4) {
      const T r = rough_reciprocal(b);
      const T q = a * r;
      return fma(fma(-q, b, a), r, q);
    } else {
      return a / b;
    }
  }
  static VF_DEVICE T sqrt_positive(T x) {
    if constexpr (sizeof(T) == 4)
      return rough_root(x);
    else
      return Scalar<Float>::sqrt(x);
  }
  // For a positive, normal number: as in cpu/simd.h, with its error of 3e-8. The library's takes
  // any x.
  static VF_DEVICE T log_normal(T x) {
    if constexpr (sizeof(T) == 4) {
      const uint32_t u = __float_as_uint(x) - 0x3f3504f3u;  // sqrt(1/2)
      const T n = static_cast<T>(static_cast<int32_t>(u) >> 23);
      const T f = __uint_as_float((u & 0x007fffffu) + 0x3f3504f3u) - T(1);
      const T f2 = f * f;
      T p = f * 0x1.645de2p-4f + -0x1.2432aap-3f;
      p = p * f + 0x1.317470p-3f;
      p = p * f + -0x1.53824cp-3f;
      p = p * f + 0x1.98d7f0p-3f;
      p = p * f + -0x1.000382p-2f;
      p = p * f + 0x1.5556d8p-2f;
      T y = (p * f) * f2 + n * -0x1.bd0106p-13f;  // log 2 in two parts
      y = y - 0.5f * f2;
      return (y + f) + n * 0x1.63p-1f;
    } else {
      return Scalar<Float>::log(x);
    }
  }
  // For |x| <= pi / 4: for floats as in cpu/simd.h, for doubles the Taylor series, cut where the
  // rest is below a tenth of an ulp. The library's take any x, and need a table in local memory for
  // that.
  static VF_DEVICE void sincos_quarter(T x, T& sine, T& cosine) {
    const T s = x * x;
    if constexpr (sizeof(T) == 4) {
      T p = s * -0x1.994b3ep-13f + 0x1.110756p-7f;
      p = p * s + -0x1.555546p-3f;
      sine = (p * s) * x + x;
      T q = s * 0x1.99e868p-16f + -0x1.6c0c28p-10f;
      q = q * s + 0x1.55554ap-5f;
      cosine = (q * s) * s + (T(1) - T(0.5) * s);
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
