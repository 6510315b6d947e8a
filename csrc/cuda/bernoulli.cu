// The Bernoulli loss: value, gradient, or both in one pass over logits and target.
//
// Bytes per element, value + gradient: 12 in float32; 5 with bfloat16 logits and uint8 targets.
#include "cuda/bernoulli.cuh"

#include "cuda/drivers.h"
#include "cuda/finish.cuh"

namespace vae_fast::cuda {
namespace {

template <class F, bool LOGITS, bool VALUE, bool GRAD>
__global__ void __launch_bounds__(kThreads, kResident)
    bernoulli_kernel(const Bernoulli args, const Split split, const Finish sums, double* partials,
                     const bool aligned) {
  for_each_task<BernoulliBatch<F>::V, VALUE>(
      split, blockIdx.x, gridDim.x,
      [&](const Range& range, int lane, int lanes) {
        return bernoulli_range<F, LOGITS, VALUE, GRAD>(args, range, lane, lanes, aligned);
      },
      [&](int64_t task, double sum) {
        if (partials != nullptr) {
          __stwb(partials + task, sum);
        } else {
          write_sum(args.nll, task, sum, sums.wide);
        }
      });
  if constexpr (VALUE) {
    if (partials != nullptr && gridDim.x == 1) {
      __syncthreads();
      finish(sums, 0, 1);
    }
  }
}

struct Plan {
  Split split;
  bool direct;  // each task's sum is a result: no second stage
  int64_t blocks;
};

Plan plan_of(const Bernoulli& args) {
  Plan plan;
  const bool per_row = (args.nll != nullptr && args.reduction == Reduction::none) ||
                       (args.grad != nullptr && args.grad_nll.per_row);
  with_format(args.dtype, [&](auto format) {
    using B = BernoulliBatch<decltype(format)>;
    plan.split = per_row ? make_split<B>(args.rows, args.cols)
                         : make_split<B>(1, args.rows * args.cols);
    return cudaSuccess;
  });
  plan.direct =
      args.nll == nullptr || (args.reduction == Reduction::none && plan.split.parts == 1);
  plan.blocks = plan.direct ? plan.split.blocks() : stage_one_blocks(plan.split.blocks());
  return plan;
}

}  // namespace

size_t bernoulli_workspace(const Bernoulli& args) {
  const Plan plan = plan_of(args);
  return plan.direct ? 0 : static_cast<size_t>(plan.split.tasks()) * sizeof(double);
}

cudaError_t bernoulli(const Bernoulli& args, void* workspace, cudaStream_t stream) {
  if (!valid(args)) return cudaErrorInvalidValue;
  const Plan plan = plan_of(args);
  if (args.nll == nullptr && (args.grad == nullptr || args.rows * args.cols == 0)) {
    return cudaSuccess;
  }
  double* partials = plan.direct ? nullptr : static_cast<double*>(workspace);
  Finish sums;
  sums.sums = args.reduction == Reduction::none ? args.rows : 1;
  sums.nll = {partials, sums.sums == 0 ? 0 : plan.split.tasks() / sums.sums, args.nll};
  sums.wide = args.dtype == DType::f64;
  sums.scale = mean_scale(args.reduction, args.rows);
  if (plan.blocks > 0) {
    const cudaError_t error = with_bernoulli(
        args, args.nll != nullptr, args.grad != nullptr,
        [&](auto format, auto logits, auto value, auto grad) {
          return launch(bernoulli_kernel<decltype(format), decltype(logits)::value,
                                         decltype(value)::value, decltype(grad)::value>,
                        plan.blocks, kThreads, stream, args, plan.split, sums, partials,
                        lies_well(args));
        });
    if (error != cudaSuccess || plan.blocks == 1) return error;
  }
  return plan.direct ? cudaSuccess : launch_finish(sums, stream);
}

}  // namespace vae_fast::cuda
