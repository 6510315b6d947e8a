// Formulas of a gathered batch: a byte's value, and whether a pixel is set when it is binarised.
//
// M is a math policy (a SIMD level, or a scalar type): see cpu/simd.h and math/scalar.h.
#pragma once

#include "math/macros.h"

namespace vae_fast::gather {

// x / 255 for x of 0 to 255, correctly rounded without a division: 1/255 in two parts, the first
// short enough for its product to be exact.
template <class T>
VF_FN T scaled(T x) {
  return x * 0x1.01p-8f + x * 0x1.0101p-24f;
}

// floor(255 w / 2^32), 0 to 254, of a uniform 32-bit word: x > limit(w) then has probability
// x / 255, to 2^-32, and is never true of 0 and always of 255 (Salakhutdinov & Murray 2008, who
// draw binary images so). 255 w = 256 w - w, whose upper half needs no wide product; U is a word or
// a vector of them, in which a comparison yields 0 or -1.
template <class U>
VF_FN U limit(U w) {
  return (w >> 24) + U((w << 8) < w);
}
VF_FN uint32_t limit(uint32_t w) { return (w >> 24) - uint32_t((w << 8) < w); }

}  // namespace vae_fast::gather
