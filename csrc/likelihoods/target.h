// What a likelihood's target means, and what a likelihood may bring beside `term`.
//
// A likelihood of one position's own parameters is a struct (csrc/likelihoods/laplace.h is a short
// one):
//   params, target   how many parameters an element has, and what its target is;
//   term             sets the element's -log p, in nats, and its derivative by each parameter;
//   add_nonzero      optional, for counts: `term` holds what x = 0 needs and what every x shares, and
//                    this adds the rest where x > 0. A driver calls it on those elements alone;
//   parts            optional: -log p as linear + log(1 + e) with e in [0, 1], for a driver that sums
//                    logarithms as the logarithm of a product;
//   reads_halves     optional: the CPU's kernels read half precision and bytes as they are, where
//                    others' blocks are widened first.
// M is a math policy (cpu/simd.h, math/scalar.h). NaN in any input gives NaN.
//
// A likelihood over planes (a number of parameters that only the call knows) has
//   targets, target  values of the target at one position;
//   position         -log p of the position. in.count planes are read with in.param(j), and each
//                    gradient is set with out.grad(j, value). Where Out::readable, out.read(j) gives
//                    back what grad(j) set, unrounded, and grad(j) may be called again; elsewhere
//                    grad(j) is called once, and a second pass computes what the first did.
#pragma once

#include <type_traits>

#include "math/macros.h"

namespace vae_fast::likelihoods {

enum class Target {
  unit,      // in [0, 1]; bytes are x / 255
  real,      // any number; bytes are x / 255
  count,     // 0, 1, 2, ...; bytes are counts
  level,     // 0 to 255, an 8-bit value
  category,  // a class's number
};

template <class L, class = void>
struct HasNonzeroPart : std::false_type {};
template <class L>
struct HasNonzeroPart<L, std::void_t<decltype(L::has_nonzero_part)>>
    : std::bool_constant<L::has_nonzero_part> {};

}  // namespace vae_fast::likelihoods
