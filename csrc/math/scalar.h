// The math policy of one float or one double: what the GPU runs, and the CPU for float64.
//
// A policy M has a value type T, its 32-bit unsigned integer U, and the functions below; cpu/simd.h
// has the same for vectors. Every function lets NaN through.
#pragma once

#include <cmath>
#include <cstdint>

#include "math/macros.h"

namespace vae_fast {

template <class Float>
struct Scalar {
  using T = Float;
  using U = uint32_t;
  using Element = Float;
  static constexpr int width = 1;
  static constexpr T kRadiansPerWord = T(6.283185307179586476925 / 4294967296.0);

  static VF_FN uint64_t mul32(uint64_t a, uint32_t m) { return uint64_t(uint32_t(a)) * m; }
  static VF_FN T from_unsigned(U w) { return static_cast<T>(w); }
  static VF_FN T from_signed(U w) { return static_cast<T>(static_cast<int32_t>(w)); }
  static VF_FN uint32_t nonzero(T x) { return x != T(0); }
  static VF_FN void pack(T x, uint32_t, T* p) { *p = x; }
  static VF_FN T unpack(const T* p, uint32_t lanes) { return lanes != 0 ? *p : T(0); }
  static VF_FN bool bit(U w) { return w != 0; }
  static VF_FN T select(bool c, T a, T b) { return c ? a : b; }
  static VF_FN T negate_if(U w, T x) { return w != 0 ? -x : x; }
  static VF_FN T abs(T x) { return ::fabs(x); }
  static VF_FN T splat(T x) { return x; }
  static VF_FN T constant(double x) { return T(x); }  // with all of its digits
  static VF_FN T at_least(T x, T low) { return x < low ? low : x; }
  static VF_FN T at_most(T x, T high) { return x > high ? high : x; }
  static VF_FN T divide(T a, T b) { return a / b; }
  static VF_FN T divide_unit(T a, T b) { return a / b; }  // of b in [1, 2]
  static VF_FN T sqrt(T x);
  static VF_FN T sqrt_positive(T x) { return sqrt(x); }
  static VF_FN T exp(T x);
  static VF_FN T exp2(T x);
  static VF_FN T exp_nonpositive(T x) { return exp(x); }
  static VF_FN T exp_nonpositive(T x, T& less_one);  // e^x, and e^x - 1 with all of its digits
  // e^x - 1, given e^x: float64, which others are held against, keeps the digits that cancel.
  static VF_FN T less_one(T exp_x, T x) {
    if constexpr (sizeof(T) == 8) return ::expm1(x);
    return exp_x - T(1);
  }
  static VF_FN T log(T x);
  static VF_FN T log_normal(T x) { return log(x); }  // of a positive normal number
  static VF_FN T log1p(T x);
  static VF_FN T log1p_unit(T x) { return log1p(x); }  // of a number in [0, 1]
  // log u, given u - 1 as well, which has more digits where u is near 1.
  static VF_FN T log_near(T u, T less_one) {
    return abs(less_one) < T(0.5) ? log1p(less_one) : log(u);
  }
  // log(1 + w) and its excess over w / (1 + w), of w >= 0, with reciprocal = 1 / (1 + w). Near 0 the
  // excess is a sum of positive terms: w^2 / ((1 + w) (2 + w)) and, with s = w / (2 + w), the rest
  // of log(1 + w) = 2 (s + s^3 / 3 + s^5 / 5 + ...).
  static VF_FN void log1p_excess(T w, T reciprocal, T& log1p_w, T& excess) {
    log1p_w = log_near(T(1) + w, w);
    if (w < T(0.5)) {
      constexpr int terms = sizeof(T) == 8 ? 12 : 4;  // s^2 <= 0.04
      const T s = w / (T(2) + w), s2 = s * s;
      T rest = T(0);
      for (int k = terms; k >= 1; --k) rest = (rest + T(1) / T(2 * k + 1)) * s2;
      excess = s * (w * reciprocal + T(2) * rest);
    } else {
      excess = log1p_w - (T(1) - reciprocal);
    }
  }
  static VF_FN void sincos_quarter(T x, T& sine, T& cosine);  // of |x| <= pi / 4
};

#define VF_SCALAR_MATH(Float, suffix)                                                        \
  template <>                                                                                \
  VF_FN Float Scalar<Float>::sqrt(Float x) { return ::sqrt##suffix(x); }                     \
  template <>                                                                                \
  VF_FN Float Scalar<Float>::exp(Float x) { return ::exp##suffix(x); }                       \
  template <>                                                                                \
  VF_FN Float Scalar<Float>::exp2(Float x) { return ::exp2##suffix(x); }                     \
  template <>                                                                                \
  VF_FN Float Scalar<Float>::log(Float x) { return ::log##suffix(x); }                       \
  template <>                                                                                \
  VF_FN Float Scalar<Float>::log1p(Float x) { return ::log1p##suffix(x); }                   \
  template <>                                                                                \
  VF_FN Float Scalar<Float>::exp_nonpositive(Float x, Float& less_one) {                     \
    less_one = ::expm1##suffix(x);                                                           \
    return ::exp##suffix(x);                                                                 \
  }                                                                                          \
  template <>                                                                                \
  VF_FN void Scalar<Float>::sincos_quarter(Float x, Float& sine, Float& cosine) {            \
    sine = ::sin##suffix(x);                                                                 \
    cosine = ::cos##suffix(x);                                                               \
  }
VF_SCALAR_MATH(float, f)
VF_SCALAR_MATH(double, )
#undef VF_SCALAR_MATH
template <>
VF_FN float Scalar<float>::abs(float x) {
  return ::fabsf(x);
}

}  // namespace vae_fast
