// KL to the standard normal over a range: the value's sum, and the gradients times the upstream's.
//
// Bytes per element in float32: 8 read (mu, logvar), and 8 written for the gradients.
#pragma once

#include "cuda/math.cuh"
#include "cuda/split.cuh"
#include "cuda/upstream.cuh"
#include "ops/gaussian.h"

namespace vae_fast::cuda {

// For the KL beside a likelihood: one batch for all formats of a compute type, so that a kernel
// holds the arithmetic once. The format is the same for every thread.
template <class C>
using KlBatch = Batch<sizeof(C) == 4 ? 8 : 4, 1>;

template <Reuse REUSE, class B, class C>
VF_DEVICE void load_any(DType dtype, const void* base, const B& batch, C (&x)[B::size]) {
  if constexpr (sizeof(C) == 8) {
    load<F64, REUSE>(base, batch, C(0), x);
  } else if (dtype == DType::f32) {
    load<F32, REUSE>(base, batch, C(0), x);
  } else if (dtype == DType::bf16) {
    load<BF16, REUSE>(base, batch, C(0), x);
  } else {
    load<F16, REUSE>(base, batch, C(0), x);
  }
}

template <class B, class C>
VF_DEVICE void store_any(DType dtype, void* base, const B& batch, const C (&x)[B::size]) {
  if constexpr (sizeof(C) == 8) {
    store<F64>(base, batch, x, false);
  } else if (dtype == DType::f32) {
    store<F32>(base, batch, x, false);
  } else if (dtype == DType::bf16) {
    store<BF16>(base, batch, x, false);
  } else {
    store<F16>(base, batch, x, false);
  }
}

template <class C, bool VALUE, bool GRAD>
VF_DEVICE double standard_kl_range(const Elbo& args, const Range& range, int lane, int lanes,
                                   bool aligned) {
  using M = Math<C>;
  using B = KlBatch<C>;
  constexpr Reuse kReuse = GRAD ? Reuse::never : Reuse::soon;
  const C factor = GRAD ? coefficient<C>(args.grad_kl, range.segment) : C(0);
  double sum = 0.0;
  for (int64_t group = range.begin / B::V + lane; group * B::V < range.end;
       group += int64_t{lanes} * B::U) {
    const B batch(group, lanes, range.begin, range.end, aligned);
    // Where the range ends: mu = logvar = 0, whose terms are exactly 0.
    C mu[B::size], logvar[B::size], terms[B::size];
    load_any<kReuse>(args.kl_dtype, args.mu, batch, mu);
    load_any<kReuse>(args.kl_dtype, args.logvar, batch, logvar);
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
        store_any(args.kl_dtype, args.grad_mu, batch, mu);
        store_any(args.kl_dtype, args.grad_logvar, batch, logvar);
      }
    }
  }
  return sum;
}

}  // namespace vae_fast::cuda
