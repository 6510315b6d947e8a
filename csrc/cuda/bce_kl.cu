// BCE + beta * KL: both extents in one launch, some blocks for the one and some for the other.
//
// Bytes: those of the Bernoulli loss per pixel and those of the KL per latent (bernoulli.cuh,
// kl.cuh); the losses are added up by a second, small launch, or by the block itself if it is one.
#include "cuda/bernoulli.cuh"
#include "cuda/drivers.h"
#include "cuda/finish.cuh"
#include "cuda/kl.cuh"

namespace vae_fast::cuda {
namespace {

struct Plan {
  Split recon, kl;
  int64_t recon_blocks, kl_blocks;
  bool alone;  // one block does all

  int64_t blocks() const { return alone ? 1 : recon_blocks + kl_blocks; }
  size_t partials() const { return static_cast<size_t>(recon.tasks() + kl.tasks()); }
};

template <class F, bool LOGITS, bool VALUE, bool GRAD>
__global__ void __launch_bounds__(kThreads, kResident)
    bce_kl_kernel(const BceKl args, const Plan plan, const Finish sums, double* partials,
                  const bool aligned, const bool kl_aligned) {
  const bool alone = plan.alone;
  if (alone || blockIdx.x < plan.recon_blocks) {
    for_each_task<BernoulliBatch<F>::V, VALUE>(
        plan.recon, blockIdx.x, alone ? 1 : plan.recon_blocks,
        [&](const Range& range, int lane, int lanes) {
          return bernoulli_range<F, LOGITS, VALUE, GRAD>(args.recon, range, lane, lanes, aligned);
        },
        [&](int64_t task, double sum) {
          if (partials != nullptr) __stwb(partials + task, sum);
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

bool has_value(const BceKl& args) { return args.loss != nullptr; }
// A tensor without elements has a null pointer: ask both.
bool has_grad(const BceKl& args) {
  return args.recon.grad != nullptr || args.grad_mu != nullptr;
}

Plan plan_of(const BceKl& args) {
  const Bernoulli& recon = args.recon;
  Plan plan;
  const bool per_row = (has_value(args) && recon.reduction == Reduction::none) ||
                       (has_grad(args) && (recon.grad_nll.per_row || args.grad_kl.per_row));
  const auto split = [&](auto batch, int64_t cols) {
    using B = decltype(batch);
    return per_row ? make_split<typename B::type>(recon.rows, cols)
                   : make_split<typename B::type>(1, recon.rows * cols);
  };
  with_format(recon.dtype, [&](auto format) {
    plan.recon = split(Type<BernoulliBatch<decltype(format)>>{}, recon.cols);
    return cudaSuccess;
  });
  with_format(args.kl_dtype, [&](auto format) {
    plan.kl = split(Type<KlBatch<typename decltype(format)::C>>{}, args.kl_cols);
    return cudaSuccess;
  });
  plan.recon_blocks = plan.recon.blocks();
  plan.kl_blocks = plan.kl.blocks();
  plan.alone = stage_one_blocks(plan.recon_blocks + plan.kl_blocks) == 1;
  return plan;
}

bool valid_pair(const BceKl& args) {
  const DType l = args.kl_dtype;
  return valid(args.recon) && (l == DType::f64) == (args.recon.dtype == DType::f64) &&
         (l == DType::f64 || l == DType::f32 || l == DType::bf16 || l == DType::f16);
}

bool kl_lies_well(const BceKl& args) {
  return lies_well(args.mu, 16) && lies_well(args.logvar, 16) && lies_well(args.grad_mu, 16) &&
         lies_well(args.grad_logvar, 16);
}

}  // namespace

size_t bce_kl_workspace(const BceKl& args) {
  return has_value(args) ? plan_of(args).partials() * sizeof(double) : 0;
}

cudaError_t bce_kl(const BceKl& args, void* workspace, cudaStream_t stream) {
  if (!valid_pair(args)) return cudaErrorInvalidValue;
  if (!has_value(args) && !has_grad(args)) return cudaSuccess;
  const Bernoulli& recon = args.recon;
  const Plan plan = plan_of(args);
  double* partials = has_value(args) ? static_cast<double*>(workspace) : nullptr;
  Finish sums;
  sums.sums = recon.reduction == Reduction::none ? recon.rows : 1;
  if (sums.sums > 0 && partials != nullptr) {
    sums.nll = {partials, plan.recon.tasks() / sums.sums, recon.nll};
    sums.kl = {partials + plan.recon.tasks(), plan.kl.tasks() / sums.sums, args.kl};
  }
  sums.loss = args.loss;
  sums.wide = recon.dtype == DType::f64;
  sums.scale = mean_scale(recon.reduction, recon.rows);
  sums.beta = args.beta;
  sums.beta_tensor = args.beta_tensor;
  if (plan.blocks() > 0) {
    const cudaError_t error = with_bernoulli(
        recon, has_value(args), has_grad(args),
        [&](auto format, auto logits, auto value, auto grad) {
          return launch(bce_kl_kernel<decltype(format), decltype(logits)::value,
                                      decltype(value)::value, decltype(grad)::value>,
                        plan.blocks(), kThreads, stream, args, plan, sums, partials,
                        lies_well(recon), kl_lies_well(args));
        });
    if (error != cudaSuccess || plan.alone) return error;
  }
  return has_value(args) ? launch_finish(sums, stream) : cudaSuccess;
}

}  // namespace vae_fast::cuda
