// A training step's own kernels, and separately two of the sums that one of them computes.
#include "cuda/step.cu"

namespace vae_fast::cuda {

__global__ void __launch_bounds__(kThreads)
    columns_kernel(const StepDecide args, const StepPart part, double* out) {
  out[threadIdx.x] = add_up_columns(args, part, int64_t{blockIdx.x} * kColumns);
}

__global__ void __launch_bounds__(kThreads) kl_kernel(const StepDecide args, double* out) {
  out[threadIdx.x] = kl_of(args, int64_t{blockIdx.x} * kLatents);
}

}  // namespace vae_fast::cuda
