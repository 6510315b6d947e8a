// -log of a logistic variable's probability of an 8-bit level's bin, and its derivatives.
//
// Level k stands for 2 k / 255 - 1 in [-1, 1], and its bin reaches 1 / 255 to either side; those of 0
// and 255 reach to infinity (Salimans et al. 2017, section 2.1). With the bin's ends in scales from
// loc, low and up, and h = up - low,
//   sigmoid(up) - sigmoid(low) = (1 - exp(-h)) / ((1 + exp(-up)) (1 + exp(low))),
// the logarithm of which has no terms that cancel: no approximation by the density at the middle is
// needed, however small or certain the bin. With e = exp(-|.|) of the ends and E = exp(-h),
//   -log p = max(-up, 0) + max(low, 0) + log(1 + (e_up + e_low + e_up e_low + E) / (1 - E)).
#pragma once

#include "math/macros.h"

namespace vae_fast {

template <class M, bool VALUE, bool GRAD, class T = typename M::T>
VF_FN void logistic_bin(T loc, T log_scale, T level, T& nll, T& by_loc, T& by_log_scale) {
  const T one = M::splat(1.0f), none = M::splat(0.0f);
  const T inverse = M::exp(-log_scale), unit = inverse * M::constant(1.0 / 255.0);
  // Counted in half bins, the ends are whole numbers, rounded only when loc is taken off.
  const T up = ((2.0f * level - 254.0f) - 255.0f * loc) * unit;
  const T low = ((2.0f * level - 256.0f) - 255.0f * loc) * unit;
  const T h = 2.0f * unit;
  const auto first = level < 0.5f, last = level > 254.5f,
             edge = (level - 127.5f) * (level - 127.5f) > 16129.0f;
  const T e_up = M::select(last, none, M::exp_nonpositive(-M::abs(up)));
  const T e_low = M::select(first, none, M::exp_nonpositive(-M::abs(low)));
  T negative;
  T e_h = M::exp_nonpositive(-h, negative);
  e_h = M::select(edge, none, e_h);
  const T inverse_mass = M::divide(one, M::select(edge, one, -negative));
  if constexpr (VALUE) {
    const T w = (((e_up + e_low) + e_up * e_low) + e_h) * inverse_mass;
    const T linear = M::select(last, none, M::at_least(-up, 0.0f)) +
                     M::select(first, none, M::at_least(low, 0.0f));
    nll = linear + M::log_near(1.0f + w, w);
  }
  if constexpr (GRAD) {
    // sigmoid(-up) and sigmoid(low).
    const T over =
        M::divide_unit(M::select(up >= 0.0f, e_up, M::select(last, none, one)), 1.0f + e_up);
    const T under =
        M::divide_unit(M::select(low <= 0.0f, e_low, M::select(first, none, one)), 1.0f + e_low);
    by_loc = inverse * (over - under);
    by_log_scale = (up * over - low * under) + h * (e_h * inverse_mass);
  }
}

}  // namespace vae_fast
