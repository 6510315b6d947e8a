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
VF_DEVICE void request_any(DType dtype, const void* base, const B& batch, uint32_t* words) {
  if constexpr (sizeof(C) == 8) {
    request<8, REUSE>(base, batch, 0, words);
  } else if (dtype == DType::f32) {
    request<4, REUSE>(base, batch, 0, words);
  } else {
    request<2, REUSE>(base, batch, 0, words);
  }
}

template <class B, class C>
VF_DEVICE void decode_any(DType dtype, const uint32_t* words, C (&x)[B::size]) {
  if constexpr (sizeof(C) == 8) {
    decode<F64, B>(words, x);
  } else if (dtype == DType::f32) {
    decode<F32, B>(words, x);
  } else if (dtype == DType::bf16) {
    decode<BF16, B>(words, x);
  } else {
    decode<F16, B>(words, x);
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
  const int64_t origin = range.origin * bytes_of(args.kl_dtype);
  const void *mu_at = at<1>(args.mu, origin), *logvar_at = at<1>(args.logvar, origin);
  double sum = 0.0;
  for (int group = lane; group * B::V < range.end; group += lanes * B::U) {
    const B batch(group, lanes, range.begin, range.end, aligned);
    // Beyond the range's end mu = logvar = 0, whose terms are exactly 0.
    C mu[B::size], logvar[B::size], terms[B::size];
    uint32_t mu_words[kWords<B, sizeof(C)>], logvar_words[kWords<B, sizeof(C)>];
    request_any<kReuse, B, C>(args.kl_dtype, mu_at, batch, mu_words);
    request_any<kReuse, B, C>(args.kl_dtype, logvar_at, batch, logvar_words);
    decode_any<B>(args.kl_dtype, mu_words, mu);
    decode_any<B>(args.kl_dtype, logvar_words, logvar);
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
        store_any(args.kl_dtype, at<1>(args.grad_mu, origin), batch, mu);
        store_any(args.kl_dtype, at<1>(args.grad_logvar, origin), batch, logvar);
      }
    }
  }
  return sum;
}

}  // namespace vae_fast::cuda
