// Horner's scheme, with the coefficients from the lowest on.
#pragma once

#include "math/macros.h"

namespace vae_fast {

template <class T>
VF_FN T polynomial(T x, float c0, float c1) {
  return x * c1 + c0;
}
template <class T, class... Rest>
VF_FN T polynomial(T x, float c0, float c1, Rest... rest) {
  return polynomial(x, c1, rest...) * x + c0;
}

}  // namespace vae_fast
