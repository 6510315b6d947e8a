// KL to the standard normal over a range: the value's sum, and the gradients times the upstream's.
//
// Bytes per element in float32: 8 read (mu, logvar), and 8 written for the gradients.
#pragma once

#include "cuda/math.cuh"
#include "cuda/split.cuh"
#include "cuda/upstream.cuh"
#include "ops/gaussian.h"

namespace vae_fast::cuda {

// 16-byte accesses to half precision and float32, two of them to float64; 8 elements at a time.
template <class F>
using GaussianBatch = Batch<F::bytes == 2 ? 8 : 4, F::bytes == 4 ? 2 : 1>;

template <class F, bool VALUE, bool GRAD>
VF_DEVICE double standard_kl_range(const BceKl& args, const Range& range, int lane, int lanes,
                                   bool aligned) {
  using C = typename F::C;
  using M = Math<C>;
  using B = GaussianBatch<F>;
  constexpr Reuse kReuse = GRAD ? Reuse::never : Reuse::soon;
  const C factor = GRAD ? coefficient<C>(args.grad_kl, range.segment) : C(0);
  double sum = 0.0;
  for (int64_t group = range.begin / B::V + lane; group * B::V < range.end;
       group += int64_t{lanes} * B::U) {
    const B batch(group, lanes, range.begin, range.end, aligned);
    // Where the range ends: mu = logvar = 0, whose terms are exactly 0.
    C mu[B::size], logvar[B::size], terms[B::size];
    load<F, kReuse>(args.mu, batch, C(0), mu);
    load<F, kReuse>(args.logvar, batch, C(0), logvar);
#pragma unroll
    for (int k = 0; k < B::size; ++k) {
      const C variance = M::exp(logvar[k]);
      if constexpr (VALUE) terms[k] = gaussian::kl_standard<M>(mu[k], logvar[k], variance);
      if constexpr (GRAD) {
        mu[k] = mu[k] * factor;
        logvar[k] = gaussian::kl_standard_grad_logvar<M>(variance) * factor;
      }
    }
    if constexpr (VALUE) sum += static_cast<double>(tree_sum(terms));
    if constexpr (GRAD) {
      if (args.grad_mu != nullptr) {
        store<F>(args.grad_mu, batch, mu, false);
        store<F>(args.grad_logvar, batch, logvar, false);
      }
    }
  }
  return sum;
}

}  // namespace vae_fast::cuda
