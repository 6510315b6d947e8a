// One likelihood's kernel: -log p and its gradients over a range, and the KL's extent beside it.
//
// Bytes per element: each parameter and the target read (4 + 4 in float32, 2 + 1 for bfloat16 logits
// and uint8 targets), and each gradient written in its parameter's dtype. Parameters and gradients
// lie dense, row by row; vae_fast/ops/likelihood.py brings them into that form.
#pragma once

#include <type_traits>

#include "cuda/finish.cuh"
#include "cuda/kl.cuh"
#include "cuda/math.cuh"
#include "cuda/split.cuh"
#include "cuda/upstream.cuh"
#include "likelihoods/list.h"

namespace vae_fast::cuda {

// Data in [0, 1] are what half precision is trained on. Others' parameters are widened before.
template <class L>
constexpr bool kReadsHalf = L::params == 1 && L::target == likelihoods::Target::unit;
template <class L>
constexpr bool kHasNonzero = likelihoods::HasNonzeroPart<L>::value;

// 16-byte accesses to parameters and gradients (two of them to float64), and 64 bytes of float32 in
// flight, or one access to each tensor where a term is long.
template <class L, class F>
constexpr int kGroups = kHasNonzero<L> || L::params == 3     ? 1
                        : F::bytes == 4 && L::params == 1 ? 4
                        : F::bytes == 8 && L::params == 2 ? 1
                                                          : 2;
template <class L, class F>
using TermBatch = Batch<F::bytes == 2 ? 8 : 4, kGroups<L, F>>;

// The gamma function's terms in float64 need more registers than two blocks leave.
template <class L, class F>
constexpr int kResidentOf = F::bytes == 8 && (kHasNonzero<L> || L::params > 1) ? 1 : kResident;

struct Plan {
  Split recon, kl;
  int64_t recon_blocks, kl_blocks;
  bool alone;   // one block does all
  bool direct;  // each task's sum is a result, or none is wanted: no second stage

  int64_t blocks() const { return alone ? 1 : recon_blocks + kl_blocks; }
  size_t partials() const {
    return direct ? 0 : static_cast<size_t>(recon.tasks() + kl.tasks());
  }
};

// The target in any of its dtypes: the parameters' own, float32 beside half precision, or bytes. The
// choice is the same for every thread, and made once a batch.
template <class F, bool SCALED, Reuse REUSE, class B, class C>
VF_DEVICE void load_target(const Likelihood& args, const B& batch, C (&t)[B::size]) {
  if (args.target_dtype == args.dtype) {
    load<F, REUSE>(args.target, batch, C(0), t);
    return;
  }
  if constexpr (F::bytes == 2) {
    if (args.target_dtype == DType::f32) {
      load<F32, REUSE>(args.target, batch, C(0), t);
      return;
    }
  }
  load<Byte, REUSE>(args.target, batch, C(0), t);
  if (args.target_dtype == DType::boolean) {  // any byte but 0 is true
#pragma unroll
    for (int k = 0; k < B::size; ++k) t[k] = t[k] != C(0) ? C(1) : C(0);
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
  constexpr Reuse kReuse = GRAD ? Reuse::never : Reuse::soon;
  const bool streamed = args.rows * args.inner * F::bytes > kStreamedBytes;
  const C factor = GRAD ? coefficient<C>(args.grad_nll, range.segment) : C(0);
  double sum = 0.0;
  for (int64_t group = range.begin / B::V + lane; group * B::V < range.end;
       group += int64_t{lanes} * B::U) {
    const B batch(group, lanes, range.begin, range.end, aligned);
    C x[L::params][B::size], t[B::size], nll[B::size];
#pragma unroll
    for (int j = 0; j < L::params; ++j) load<F, kReuse>(args.params[j].data, batch, C(1), x[j]);
    load_target<F, kScaled, kReuse>(args, batch, t);
#pragma unroll
    for (int k = 0; k < B::size; ++k) {
      C p[L::params], g[L::params];
#pragma unroll
      for (int j = 0; j < L::params; ++j) p[j] = x[j][k];
      L::template term<M, VALUE, GRAD>(p, t[k], nll[k], g);
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
          if (!batch.has(batch.start(k / B::V) + k % B::V)) nll[k] = C(0);
        }
      }
      sum += static_cast<double>(tree_sum(nll));
    }
    if constexpr (GRAD) {
#pragma unroll
      for (int j = 0; j < L::params; ++j) {
        if (args.grads[j].data != nullptr) store<F>(args.grads[j].data, batch, x[j], streamed);
      }
    }
  }
  return sum;
}

// Some blocks do the likelihood, and some the KL. Without a KL its split has no tasks.
template <class L, class F, bool VALUE, bool GRAD>
__global__ void __launch_bounds__(kThreads, kResidentOf<L, F>)
    likelihood_kernel(const Elbo args, const Plan plan, const Finish sums, double* partials,
                      const bool aligned, const bool kl_aligned) {
  const bool alone = plan.alone;
  if (alone || blockIdx.x < plan.recon_blocks) {
    for_each_task<TermBatch<L, F>::V, VALUE>(
        plan.recon, blockIdx.x, alone ? 1 : plan.recon_blocks,
        [&](const Range& range, int lane, int lanes) {
          return likelihood_range<L, F, VALUE, GRAD>(args.recon, range, lane, lanes, aligned);
        },
        [&](int64_t task, double sum) {
          if (partials != nullptr) {
            __stwb(partials + task, sum);
          } else {
            write_sum(args.recon.nll, task, sum, sums.wide);
          }
        });
  }
  if (alone || blockIdx.x >= plan.recon_blocks) {
    const int64_t block = alone ? 0 : blockIdx.x - plan.recon_blocks;
    const int64_t blocks = alone ? 1 : plan.kl_blocks;
    double* own = partials != nullptr ? partials + plan.recon.tasks() : nullptr;
    using C = typename F::C;  // float64 on one side is float64 on both
    for_each_task<KlBatch<C>::V, VALUE>(
        plan.kl, block, blocks,
        [&](const Range& range, int lane, int lanes) {
          return standard_kl_range<C, VALUE, GRAD>(args, range, lane, lanes, kl_aligned);
        },
        [&](int64_t task, double sum) {
          if (own != nullptr) __stwb(own + task, sum);
        });
  }
  if constexpr (VALUE) {
    if (alone && partials != nullptr) {
      __syncthreads();
      finish(sums, 0, 1);
    }
  }
}

inline bool lies_well(const Likelihood& args, int params) {
  const int bytes = bytes_of(args.dtype), v = bytes == 2 ? 8 : 4;
  bool well = lies_well(args.target, v * bytes_of(args.target_dtype));
  for (int j = 0; j < params; ++j) {
    well = well && lies_well(args.params[j].data, v * bytes) &&
           lies_well(args.grads[j].data, v * bytes);
  }
  return well;
}

inline bool kl_lies_well(const Elbo& args) {
  return lies_well(args.mu, 16) && lies_well(args.logvar, 16) && lies_well(args.grad_mu, 16) &&
         lies_well(args.grad_logvar, 16);
}

// Calls f with the format of the parameters, of those that L reads.
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

// What the driver asks of one likelihood.
struct Kernels {
  // How many segments of `length` elements are cut.
  Split (*split)(DType dtype, int64_t segments, int64_t length);
  cudaError_t (*launch)(const Elbo& args, bool value, bool grad, const Plan& plan,
                        const Finish& sums, double* partials, cudaStream_t stream);
};

template <class L>
Split split_of(DType dtype, int64_t segments, int64_t length) {
  Split split{segments, length};
  with_format_of<L>(dtype, [&](auto format) {
    split = make_split<TermBatch<L, decltype(format)>>(segments, length);
    return cudaSuccess;
  });
  return split;
}

// The logits' Bernoulli, which most training is, has a kernel for each of value, gradient and both;
// of the others, one kernel makes value and gradient, whichever is wanted.
template <class L>
cudaError_t launch_likelihood(const Elbo& args, bool value, bool grad, const Plan& plan,
                              const Finish& sums, double* partials, cudaStream_t stream) {
  using std::false_type, std::true_type;
  return with_format_of<L>(args.recon.dtype, [&](auto format) {
    const auto run = [&](auto with_value, auto with_grad) {
      return launch(likelihood_kernel<L, decltype(format), decltype(with_value)::value,
                                      decltype(with_grad)::value>,
                    plan.blocks(), kThreads, stream, args, plan, sums, partials,
                    lies_well(args.recon, L::params), kl_lies_well(args));
    };
    if constexpr (std::is_same_v<L, likelihoods::Bernoulli>) {
      if (!value) return run(false_type{}, true_type{});
      if (!grad) return run(true_type{}, false_type{});
    }
    return run(true_type{}, true_type{});
  });
}

// The likelihoods are compiled in parts, side by side: likelihood_part_I.cu has those whose place in
// the list is I, I + kParts, ...
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
