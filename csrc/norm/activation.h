// SiLU and its slope on the CPU, as exactly as the storage type S can hold them.
//
// bfloat16 has 8 bits. There a sigmoid to 13 bits moves a result by a sixteenth of a unit in the last
// place at most, and takes half of the instructions of an exact one.
#pragma once

#include "norm/formulas.h"
#include "norm/pair.h"

namespace vae_fast::norm {

// 1 / (1 + e^-v), relative error 1.4e-4. With t = -v log2 e and r its distance from the integer below
// it, or the nearest, e^-v = 2^(t - r) 2^r, and 2^r is a polynomial (minimax error 7.5e-5). Where e^-v
// overflows, the result is 0.
template <class M, class T = typename M::T>
VF_FN T short_sigmoid(T v) {
#if defined(VF_BYTES) && VF_BYTES == 64
  const T t = v * -0x1.715476p+0f;
  constexpr int down = _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC;
  const T r = (T)_mm512_reduce_ps((__m512)t, down);
  T p = r * 0x1.3f96a4p-4f + 0x1.cefc4cp-3f;
  p = p * r + 0x1.64444ap-1f;
  p = p * r + 0x1.fff632p-1f;
  return (T)_mm512_rcp14_ps(_mm512_scalef_ps((__m512)p, (__m512)t) + 1.0f);
#else
  typename M::I n;
  const T t = M::at_least(M::at_most(v * -0x1.715476p+0f, 130.0f), -130.0f);
  const T nf = M::nearest(t, n);
  const T r = t - nf;
  T p = r * 0x1.c3f768p-5f + 0x1.f0de1ap-3f;
  p = p * r + 0x1.62f31ap-1f;
  p = p * r + 0x1.fff692p-1f;
  return 1.0f / (1.0f + M::scale(p, nf, n));
#endif
}

// silu(v), or v itself.
template <class M, class S, bool SILU, class T = typename M::T>
VF_FN T activation(T v) {
  if constexpr (!SILU) {
    return v;
  } else if constexpr (std::is_same_v<S, bf16>) {
    return v * short_sigmoid<M>(v);
  } else {
    return silu<M>(v);
  }
}

// The derivative of the same: sigmoid(v) (1 + v sigmoid(-v)).
template <class M, class S, bool SILU, class T = typename M::T>
VF_FN T slope(T v) {
  if constexpr (!SILU) {
    return M::splat(1.0f);
  } else if constexpr (std::is_same_v<S, bf16>) {
    const T up = short_sigmoid<M>(v), y = v * up;
    return up + (y - y * up);
  } else {
    return silu_grad<M>(v);
  }
}

}  // namespace vae_fast::norm
