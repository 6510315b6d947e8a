// Box-Muller: two 32-bit words to two standard normals, the same on every device to a few ulp.
//
// The first word gives the radius through u = (w + 1/2) / 2^32 in (0, 1], the second the angle. The
// angle is split into a quadrant and a signed rest by integer arithmetic, so that sine and cosine
// see arguments within a quarter of pi only.
#pragma once

#include "math/macros.h"

namespace vae_fast {

// M::from_unsigned and M::from_signed round to nearest; M::U is M's 32-bit unsigned integer.
template <class M>
VF_FN void box_muller(typename M::U radius_word, typename M::U angle_word, typename M::T& first,
                      typename M::T& second) {
  using T = typename M::T;
  using U = typename M::U;
  const T u = M::from_unsigned(radius_word) * 0x1p-32f + 0x1p-33f;
  const T radius = M::sqrt_positive(-2.0f * M::log_normal(u));

  const U quadrant = (angle_word + (1u << 29)) >> 30;  // 4 wraps to 0: a full turn
  const T rest = M::from_signed(angle_word - (quadrant << 30)) * M::kRadiansPerWord;
  T sine, cosine;
  M::sincos_quarter(rest, sine, cosine);
  const auto odd = M::bit(quadrant & 1u);
  const T x = M::select(odd, sine, cosine), y = M::select(odd, cosine, sine);
  first = radius * M::negate_if((quadrant + 1u) & 2u, x);
  second = radius * M::negate_if(quadrant & 2u, y);
}

}  // namespace vae_fast
