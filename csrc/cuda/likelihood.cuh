// One likelihood's kernel: -log p and its gradients over a range, and the KL's extent beside it.
//
// Bytes per element: each parameter and the target read (4 + 4 in float32, 2 + 1 for bfloat16
// logits and uint8 targets), and each gradient written in its parameter's dtype. Parameters and
// gradients are dense, row by row; vae_fast/ops/likelihood.py brings them into that form.
#pragma once

#include <type_traits>
#include <utility>

#include "cuda/finish.cuh"
#include "cuda/kl.cuh"
#include "cuda/math.cuh"
#include "cuda/split.cuh"
#include "cuda/upstream.cuh"
#include "likelihoods/list.h"
#include "ops/gather.h"

namespace vae_fast::cuda {

// Half precision is used with data in [0, 1]. Parameters of other likelihoods are widened before.
template <class L>
constexpr bool kReadsHalf = L::params == 1 && L::target == likelihoods::Target::unit;
template <class L>
constexpr bool kHasNonzero = likelihoods::HasNonzeroPart<L>::value;

// 16-byte accesses to parameters and gradients (two of them to float64), and 64 bytes of float32 in
// flight, or one access to each tensor where a term is long.
template <class L, class F>
constexpr int kGroups = kHasNonzero<L> || L::params == 3  ? 1
                        : F::bytes == 4 && L::params == 1 ? 4
                        : F::bytes == 8 && L::params == 2 ? 1
                                                          : 2;
template <class L, class F>
using TermBatch = Batch<F::bytes == 2 ? 8 : 4, kGroups<L, F>>;

// The gamma function's terms in float64 need more registers than two blocks leave.
template <class L, class F>
constexpr int kResidentOf = F::bytes == 8 && (kHasNonzero<L> || L::params > 1) ? 1 : kResident;

// A likelihood whose value is linear + log(1 + e): see likelihoods/target.h.
template <class L, class = void>
constexpr bool kHasParts = false;
template <class L>
constexpr bool
    kHasParts<L, std::void_t<decltype(L::template parts<Math<float>, true, true>(
                     std::declval<const float (&)[L::params]>(), 0.0f, std::declval<float&>(),
                     std::declval<float&>(), std::declval<float (&)[L::params]>()))>> = true;

struct Plan {
  Split recon, kl;
  int64_t recon_blocks, kl_blocks;
  bool direct;  // each task's sum is a result, or none is wanted: no second stage

  int64_t blocks() const { return recon_blocks + kl_blocks; }
  size_t partials() const { return direct ? 0 : static_cast<size_t>(recon.tasks() + kl.tasks()); }
};

// The target in any of its dtypes: the parameters' own, float32 beside half precision, or bytes.
// The choice is the same for every thread, and made twice a batch.
template <class F>
constexpr int kTargetBytes = F::bytes == 2 ? 4 : F::bytes;  // at most

template <class F, Reuse REUSE, class B>
VF_DEVICE void request_target(const Likelihood& args, const void* target, const B& batch,
                              uint32_t* words) {
  if (args.target_dtype == args.dtype) return request<F::bytes, REUSE>(target, batch, 0, words);
  if constexpr (F::bytes == 2) {
    if (args.target_dtype == DType::f32) return request<4, REUSE>(target, batch, 0, words);
  }
  request<1, REUSE>(target, batch, 0, words);
}

template <class F, bool SCALED, class B, class C>
VF_DEVICE void decode_target(const Likelihood& args, const uint32_t* words, C (&t)[B::size]) {
  if (args.target_dtype == args.dtype) return decode<F, B>(words, t);
  if constexpr (F::bytes == 2) {
    if (args.target_dtype == DType::f32) return decode<F32, B>(words, t);
  }
  decode<Byte, B>(words, t);
  if (args.target_dtype == DType::boolean) {  // any byte but 0 is true
#pragma unroll
    for (int k = 0; k < B::size; ++k) t[k] = t[k] != C(0) ? C(1) : C(0);
  } else if constexpr (SCALED && sizeof(C) == 4) {
#pragma unroll
    for (int k = 0; k < B::size; ++k) t[k] = gather::scaled(t[k]);
  } else if constexpr (SCALED) {
    // x / 255, rounded once: the product with the reciprocal, put right by its remainder.
    constexpr C r = C(1.0 / 255.0);
#pragma unroll
    for (int k = 0; k < B::size; ++k) {
      const C q = t[k] * r;
      t[k] = Math<C>::fma(Math<C>::fma(C(-255), q, t[k]), r, q);
    }
  }
}

template <class L, class F, bool VALUE, bool GRAD>
VF_DEVICE double likelihood_range(const Likelihood& args, const Range& range, int lane, int lanes,
                                  bool aligned) {
  using C = typename F::C;
  using M = Math<C>;
  using B = TermBatch<L, F>;
  constexpr bool kScaled =
      L::target == likelihoods::Target::unit || L::target == likelihoods::Target::real;
  constexpr bool kParts = kHasParts<L> && VALUE;
  constexpr Reuse kReuse = GRAD ? Reuse::never : Reuse::soon;
  const bool streamed = args.rows * args.inner * F::bytes > kStreamedBytes;
  const C factor = GRAD ? coefficient<C>(args.grad_nll, range.segment) : C(0);
  const void* target = at<1>(args.target, range.origin * bytes_of(args.target_dtype));
  double sum = 0.0;
  for (int group = lane; group * B::V < range.end; group += lanes * B::U) {
    const B batch(group, lanes, range.begin, range.end, aligned);
    uint32_t words[L::params][kWords<B, F::bytes>], target_words[kWords<B, kTargetBytes<F>>];
#pragma unroll
    for (int j = 0; j < L::params; ++j) {
      request<F::bytes, kReuse>(at<F::bytes>(args.params[j].data, range.origin), batch, F::one,
                                words[j]);
    }
    request_target<F, kReuse>(args, target, batch, target_words);
    // e: of a likelihood in parts, whose logarithms are summed as the logarithm of a product.
    C x[L::params][B::size], t[B::size], nll[B::size], e[B::size];
#pragma unroll
    for (int j = 0; j < L::params; ++j) decode<F, B>(words[j], x[j]);
    decode_target<F, kScaled, B>(args, target_words, t);
#pragma unroll
    for (int k = 0; k < B::size; ++k) {
      C p[L::params], g[L::params];
#pragma unroll
      for (int j = 0; j < L::params; ++j) p[j] = x[j][k];
      if constexpr (kParts) {
        L::template parts<M, VALUE, GRAD>(p, t[k], nll[k], e[k], g);
      } else {
        L::template term<M, VALUE, GRAD>(p, t[k], nll[k], g);
      }
      if constexpr (kHasNonzero<L>) {
        if (t[k] != C(0)) L::template add_nonzero<M, VALUE, GRAD>(p, t[k], nll[k], g);
      }
#pragma unroll
      for (int j = 0; j < L::params; ++j) {
        if constexpr (GRAD) x[j][k] = g[j] * factor;
      }
    }
    if constexpr (VALUE) {
      if (!batch.whole) {
#pragma unroll
        for (int k = 0; k < B::size; ++k) {
          if (batch.has(batch.start(k / B::V) + k % B::V)) continue;
          nll[k] = C(0);
          if constexpr (kParts) e[k] = C(0);
        }
      }
      C total = tree_sum(nll);
      if constexpr (kParts) total += log1p_sum<M>(e);
      sum += static_cast<double>(total);
    }
    if constexpr (GRAD) {
#pragma unroll
      for (int j = 0; j < L::params; ++j) {
        void* grad = at<F::bytes>(args.grads[j].data, range.origin);
        if (grad != nullptr) store<F>(grad, batch, x[j], streamed);
      }
    }
  }
  return sum;
}

// Some blocks do the likelihood, and some the KL. Without a KL its split has no tasks.
template <class L, class F, bool VALUE, bool GRAD>
__global__ void __launch_bounds__(kThreads, kResidentOf<L, F>)
    likelihood_kernel(const Elbo args, const Plan plan, const Finish sums, double* partials,
                      unsigned* counter, const bool aligned, const bool kl_aligned) {
  if (blockIdx.x < plan.recon_blocks) {
    for_each_task<TermBatch<L, F>::V, VALUE>(
        plan.recon, blockIdx.x, plan.recon_blocks,
        [&](const Range& range, int lane, int lanes) {
          return likelihood_range<L, F, VALUE, GRAD>(args.recon, range, lane, lanes, aligned);
        },
        [&](int64_t task, double sum) {
          if (partials != nullptr) {
            put(partials + task, sum);
          } else {
            write_sum(args.recon.nll, task, sum, sums.wide);
          }
        });
  } else {
    double* own = partials != nullptr ? partials + plan.recon.tasks() : nullptr;
    using C = typename F::C;  // float64 on one side is float64 on both
    for_each_task<KlBatch<C>::V, VALUE>(
        plan.kl, blockIdx.x - plan.recon_blocks, plan.kl_blocks,
        [&](const Range& range, int lane, int lanes) {
          return standard_kl_range<C, VALUE, GRAD>(args, range, lane, lanes, kl_aligned);
        },
        [&](int64_t task, double sum) {
          if (own != nullptr) put(own + task, sum);
        });
  }
  if constexpr (VALUE) {
    if (counter != nullptr && is_last_block(counter)) finish(sums, 0, 1);
  }
}

inline bool is_aligned(const Likelihood& args, int params) {
  const int bytes = bytes_of(args.dtype), v = bytes == 2 ? 8 : 4;
  bool aligned = is_aligned(args.target, v * bytes_of(args.target_dtype));
  for (int j = 0; j < params; ++j) {
    aligned = aligned && is_aligned(args.params[j].data, v * bytes) &&
              is_aligned(args.grads[j].data, v * bytes);
  }
  return aligned;
}

inline bool kl_is_aligned(const Elbo& args) {
  return is_aligned(args.mu, 16) && is_aligned(args.logvar, 16) && is_aligned(args.grad_mu, 16) &&
         is_aligned(args.grad_logvar, 16);
}

// Calls f with the parameters' format, if L reads it.
template <class L, class Body>
cudaError_t with_format_of(DType dtype, Body&& f) {
  if constexpr (kReadsHalf<L>) {
    return with_format(dtype, f);
  } else {
    if (dtype == DType::f32) return f(F32{});
    if (dtype == DType::f64) return f(F64{});
    return cudaErrorInvalidValue;
  }
}

// What the driver needs of one likelihood.
struct Kernels {
  // How many segments of `length` elements are cut.
  Split (*split)(DType dtype, int64_t segments, int64_t length, int threads);
  cudaError_t (*launch)(const Elbo& args, bool value, bool grad, const Plan& plan,
                        const Finish& sums, double* partials, unsigned* counter,
                        cudaStream_t stream);
};

template <class L>
Split split_of(DType dtype, int64_t segments, int64_t length, int threads) {
  Split split{segments, length};
  with_format_of<L>(dtype, [&](auto format) {
    split = make_split<TermBatch<L, decltype(format)>>(segments, length, threads);
    return cudaSuccess;
  });
  return split;
}

// Most training uses the Bernoulli of logits, so it has a kernel for the value, one for the
// gradient and one for both. Every other likelihood has one kernel, which makes both, whichever is
// wanted.
template <class L>
cudaError_t launch_likelihood(const Elbo& args, bool value, bool grad, const Plan& plan,
                              const Finish& sums, double* partials, unsigned* counter,
                              cudaStream_t stream) {
  using std::false_type, std::true_type;
  return with_format_of<L>(args.recon.dtype, [&](auto format) {
    const auto run = [&](auto with_value, auto with_grad) {
      return launch(likelihood_kernel<L, decltype(format), decltype(with_value)::value,
                                      decltype(with_grad)::value>,
                    plan.blocks(), plan.recon.threads, stream, args, plan, sums, partials, counter,
                    is_aligned(args.recon, L::params), kl_is_aligned(args));
    };
    if constexpr (std::is_same_v<L, likelihoods::Bernoulli>) {
      if (!value) return run(false_type{}, true_type{});
      if (!grad) return run(true_type{}, false_type{});
    }
    return run(true_type{}, true_type{});
  });
}

// The likelihoods are compiled in parts, in parallel: likelihood_part_I.cu has numbers I, I +
// kParts, ... of the list.
constexpr int kParts = 4;
template <int PART>
Kernels kernels_in_part(int id);
template <>
Kernels kernels_in_part<0>(int id);
template <>
Kernels kernels_in_part<1>(int id);
template <>
Kernels kernels_in_part<2>(int id);
template <>
Kernels kernels_in_part<3>(int id);

}  // namespace vae_fast::cuda
