// Kernels of a squared distance q, and their derivatives in it.
//
// inverse = 1 / (2 h^2) for a bandwidth h; both kernels are 1 - q * inverse + ... near 0.
#pragma once

#include "math/macros.h"

namespace vae_fast::pairwise {

struct Rbf {  // exp(-q / (2 h^2))
  template <class M, class T = typename M::T>
  static VF_FN T value(T q, T inverse, T& slope) {
    const T k = M::exp_nonpositive(-(q * inverse));
    slope = -(k * inverse);
    return k;
  }
};

struct Imq {  // 2 h^2 / (2 h^2 + q)
  template <class M, class T = typename M::T>
  static VF_FN T value(T q, T inverse, T& slope) {
    const T k = M::divide(M::splat(1.0f), q * inverse + 1.0f);
    slope = -(k * k) * inverse;
    return k;
  }
};

}  // namespace vae_fast::pairwise
