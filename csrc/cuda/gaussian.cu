// The Gaussian family: sampling and KL in one launch, and the gradients of both in another.
//
// Bytes per element in float32: forward, 8 read (mu, logvar; 16 with a prior) and 4 written per
// sample; backward, 8 and 4 per sample read, 8 written (16 with a prior). eps is never in memory.
#include "cuda/drivers.h"
#include "cuda/finish.cuh"
#include "cuda/noise.cuh"
#include "cuda/upstream.cuh"
#include "ops/gaussian.h"

namespace vae_fast::cuda {
namespace {

// 16-byte accesses to half precision and float32, two of them to float64; 8 elements at a time.
template <class F>
using GaussianBatch = Batch<F::bytes == 2 ? 8 : 4, F::bytes == 4 ? 2 : 1>;

template <class F>
VF_DEVICE double forward_range(const GaussianForward& args, const Range& range, int lane, int lanes,
                               bool aligned) {
  using C = typename F::C;
  using M = Math<C>;
  using B = GaussianBatch<F>;
  const int64_t n = args.rows * args.cols;
  const bool streamed = n * args.num_samples * F::bytes > kStreamedBytes;
  const bool prior = args.kl != nullptr && args.prior_mu != nullptr;
  constexpr int W = kWords<B, F::bytes>;
  double sum = 0.0;
  for (int group = lane; group * B::V < range.end; group += lanes * B::U) {
    const B batch(group, lanes, range.begin, range.end, aligned);
    // Beyond the range's end all is 0, whose KL is exactly 0.
    uint32_t mu_words[W], logvar_words[W], prior_mu_words[W], prior_logvar_words[W];
    request<F::bytes, Reuse::soon>(at<F::bytes>(args.mu, range.origin), batch, 0, mu_words);
    request<F::bytes, Reuse::soon>(at<F::bytes>(args.logvar, range.origin), batch, 0, logvar_words);
    if (prior) {
      request<F::bytes, Reuse::soon>(at<F::bytes>(args.prior_mu, range.origin), batch, 0,
                                     prior_mu_words);
      request<F::bytes, Reuse::soon>(at<F::bytes>(args.prior_logvar, range.origin), batch, 0,
                                     prior_logvar_words);
    }
    C mu[B::size], logvar[B::size];
    decode<F, B>(mu_words, mu);
    decode<F, B>(logvar_words, logvar);
    if (args.kl != nullptr) {
      C terms[B::size];
      if (prior) {
        C prior_mu[B::size], prior_logvar[B::size];
        decode<F, B>(prior_mu_words, prior_mu);
        decode<F, B>(prior_logvar_words, prior_logvar);
#pragma unroll
        for (int k = 0; k < B::size; ++k) {
          terms[k] = gaussian::Two<M>(mu[k], logvar[k], prior_mu[k], prior_logvar[k]).kl();
        }
      } else {
#pragma unroll
        for (int k = 0; k < B::size; ++k) {
          terms[k] = gaussian::kl_standard<M>(mu[k], logvar[k], M::exp(logvar[k]));
        }
      }
      sum += static_cast<double>(tree_sum(terms));
    }
    if (args.z != nullptr) {
      const Key key(args.key);
#pragma unroll
      for (int k = 0; k < B::size; ++k) logvar[k] = gaussian::standard_deviation<M>(logvar[k]);
      for (int64_t s = 0; s < args.num_samples; ++s) {
        C z[B::size];
        noise_of(key, s * n + range.origin, batch, z);
#pragma unroll
        for (int k = 0; k < B::size; ++k) z[k] = gaussian::sample<M>(mu[k], logvar[k], z[k]);
        const B own(group, lanes, range.begin, range.end, aligned && s * n % B::V == 0);
        store<F>(at<F::bytes>(args.z, s * n + range.origin), own, z, streamed);
      }
    }
  }
  return sum;
}

template <class F>
__global__ void __launch_bounds__(kThreads, F::bytes == 8 ? 1 : kResident)
    gaussian_forward_kernel(const GaussianForward args, const Split split, const Finish sums,
                            double* partials, unsigned* counter, const bool aligned) {
  for_each_task<GaussianBatch<F>::V, true>(
      split, blockIdx.x, gridDim.x,
      [&](const Range& range, int lane, int lanes) {
        return forward_range<F>(args, range, lane, lanes, aligned);
      },
      [&](int64_t task, double sum) {
        if (partials != nullptr) {
          put(partials + task, sum);
        } else {
          write_sum(args.kl, task, sum, sums.wide);
        }
      });
  if (counter != nullptr && is_last_block(counter)) finish(sums, 0, 1);
}

template <class F>
VF_DEVICE void backward_range(const GaussianBackward& args, const Range& range, int lane, int lanes,
                              bool aligned) {
  using C = typename F::C;
  using M = Math<C>;
  using B = GaussianBatch<F>;
  const int64_t n = args.rows * args.cols;
  const bool streamed = n * F::bytes > kStreamedBytes;
  const bool prior = args.prior_mu != nullptr;
  const C factor = args.has_kl ? coefficient<C>(args.grad_kl, range.segment) : C(0);
  constexpr int W = kWords<B, F::bytes>;
  for (int group = lane; group * B::V < range.end; group += lanes * B::U) {
    const B batch(group, lanes, range.begin, range.end, aligned);
    // Loads are requested before the noise is made, except a second sample's gradient and a prior,
    // for which there are too few registers.
    uint32_t logvar_words[W], mu_words[W], grad_words[W];
    const auto ask = [&](const void* base, int64_t first, uint32_t* words) {
      const B own(group, lanes, range.begin, range.end, aligned && first % B::V == 0);
      request<F::bytes, Reuse::never>(at<F::bytes>(base, first + range.origin), own, 0, words);
    };
    ask(args.logvar, 0, logvar_words);
    if (args.grad_z != nullptr) ask(args.grad_z, 0, grad_words);
    if (args.has_kl) ask(args.mu, 0, mu_words);
    C logvar[B::size], grad_mu[B::size] = {}, grad_logvar[B::size] = {};
    decode<F, B>(logvar_words, logvar);
    if (args.grad_z != nullptr) {
      const Key key(args.key);
      for (int64_t s = 0; s < args.num_samples; ++s) {
        C grad_z[B::size], eps[B::size];
        if (s > 0) ask(args.grad_z, s * n, grad_words);
        noise_of(key, s * n + range.origin, batch, eps);
        decode<F, B>(grad_words, grad_z);
#pragma unroll
        for (int k = 0; k < B::size; ++k) {
          grad_mu[k] += grad_z[k];
          grad_logvar[k] += grad_z[k] * eps[k];
        }
      }
#pragma unroll
      for (int k = 0; k < B::size; ++k) {
        const C sigma = gaussian::standard_deviation<M>(logvar[k]);
        grad_logvar[k] = gaussian::sample_grad_logvar<M>(sigma, grad_logvar[k]);
      }
    }
    C grad_prior_mu[B::size] = {}, grad_prior_logvar[B::size] = {};
    if (args.has_kl) {
      C mu[B::size];
      decode<F, B>(mu_words, mu);
      if (prior) {
        C prior_mu[B::size], prior_logvar[B::size];
        uint32_t prior_mu_words[W], prior_logvar_words[W];
        ask(args.prior_mu, 0, prior_mu_words);
        ask(args.prior_logvar, 0, prior_logvar_words);
        decode<F, B>(prior_mu_words, prior_mu);
        decode<F, B>(prior_logvar_words, prior_logvar);
#pragma unroll
        for (int k = 0; k < B::size; ++k) {
          const gaussian::Two<M> two(mu[k], logvar[k], prior_mu[k], prior_logvar[k]);
          const C d = two.grad_mu() * factor;
          grad_mu[k] += d;
          grad_logvar[k] += two.grad_logvar() * factor;
          grad_prior_mu[k] = -d;
          grad_prior_logvar[k] = two.grad_prior_logvar() * factor;
        }
      } else {
#pragma unroll
        for (int k = 0; k < B::size; ++k) {
          grad_mu[k] += mu[k] * factor;
          grad_logvar[k] += gaussian::kl_standard_grad_logvar<M>(M::exp(logvar[k])) * factor;
        }
      }
    }
    store<F>(at<F::bytes>(args.grad_mu, range.origin), batch, grad_mu, streamed);
    store<F>(at<F::bytes>(args.grad_logvar, range.origin), batch, grad_logvar, streamed);
    if (args.grad_prior_mu != nullptr) {
      store<F>(at<F::bytes>(args.grad_prior_mu, range.origin), batch, grad_prior_mu, streamed);
      store<F>(at<F::bytes>(args.grad_prior_logvar, range.origin), batch, grad_prior_logvar,
               streamed);
    }
  }
}

template <class F>
__global__ void __launch_bounds__(kThreads, F::bytes == 8 ? 1 : kResident)
    gaussian_backward_kernel(const GaussianBackward args, const Split split, const bool aligned) {
  for_each_task<GaussianBatch<F>::V, false>(
      split, blockIdx.x, gridDim.x,
      [&](const Range& range, int lane, int lanes) {
        backward_range<F>(args, range, lane, lanes, aligned);
        return 0.0;
      },
      [](int64_t, double) {});
}

struct Plan {
  Split split;
  bool direct;  // each task's sum is a result, or there is none: no second stage
};

template <class Args>
Split split_of(const Args& args, bool per_row) {
  Split split{};
  with_format(args.dtype, [&](auto format) {
    using B = GaussianBatch<decltype(format)>;
    const int threads = threads_for(args.rows * args.cols);
    split = per_row ? make_split<B>(args.rows, args.cols, threads)
                    : make_split<B>(1, args.rows * args.cols, threads);
    return cudaSuccess;
  });
  return split;
}

Plan plan_of(const GaussianForward& args) {
  Plan plan;
  const bool per_row = args.kl != nullptr && args.reduction == Reduction::none;
  plan.split = split_of(args, per_row);
  plan.direct = args.kl == nullptr || (per_row && plan.split.parts == 1);
  return plan;
}

}  // namespace

size_t gaussian_workspace(const GaussianForward& args) {
  const Plan plan = plan_of(args);
  return plan.direct ? 0 : static_cast<size_t>(plan.split.tasks()) * sizeof(double);
}

cudaError_t gaussian_forward(const GaussianForward& args, void* workspace, cudaStream_t stream) {
  if (args.kl == nullptr && (args.z == nullptr || args.rows * args.cols == 0)) return cudaSuccess;
  const Plan plan = plan_of(args);
  double* partials = plan.direct ? nullptr : static_cast<double*>(workspace);
  Finish sums;
  sums.sums = args.reduction == Reduction::none ? args.rows : 1;
  sums.kl = {partials, sums.sums == 0 ? 0 : plan.split.tasks() / sums.sums, args.kl};
  sums.wide = args.dtype == DType::f64;
  sums.scale = mean_scale(args.reduction, args.rows);
  const bool aligned = is_aligned(args.mu, 16) && is_aligned(args.logvar, 16) &&
                       is_aligned(args.prior_mu, 16) && is_aligned(args.prior_logvar, 16) &&
                       is_aligned(args.z, 16);
  unsigned* counter = nullptr;
  if (plan.split.blocks() > 0) {
    counter = counter_of(sums, partials, stream);
    const cudaError_t error = with_format(args.dtype, [&](auto format) {
      return launch(gaussian_forward_kernel<decltype(format)>, plan.split.blocks(),
                    plan.split.threads, stream, args, plan.split, sums, partials, counter, aligned);
    });
    if (error != cudaSuccess) return error;
  }
  return plan.direct || counter != nullptr ? cudaSuccess : launch_finish(sums, stream);
}

cudaError_t gaussian_backward(const GaussianBackward& args, cudaStream_t stream) {
  if (args.rows * args.cols == 0) return cudaSuccess;
  const Split split = split_of(args, args.has_kl && args.grad_kl.per_row);
  const bool aligned = is_aligned(args.mu, 16) && is_aligned(args.logvar, 16) &&
                       is_aligned(args.prior_mu, 16) && is_aligned(args.prior_logvar, 16) &&
                       is_aligned(args.grad_z, 16) && is_aligned(args.grad_mu, 16) &&
                       is_aligned(args.grad_logvar, 16) && is_aligned(args.grad_prior_mu, 16) &&
                       is_aligned(args.grad_prior_logvar, 16);
  return with_format(args.dtype, [&](auto format) {
    return launch(gaussian_backward_kernel<decltype(format)>, split.blocks(), split.threads, stream,
                  args, split, aligned);
  });
}

}  // namespace vae_fast::cuda
