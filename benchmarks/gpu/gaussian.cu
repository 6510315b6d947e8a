// Like likelihoods.cu, for sampling with the KL and for its gradients.
#include "cuda/gaussian.cu"

namespace vae_fast::cuda {

template <class F, int BATCHES>
__global__ void __launch_bounds__(kThreads, kResident)
    batches_forward(GaussianForward args, double* out) {
  constexpr int kTask = kThreads * GaussianBatch<F>::size;
  args.rows = args.cols = 1;
  args.num_samples = 1;
  args.prior_mu = args.prior_logvar = nullptr;
  __builtin_assume(args.mu != nullptr && args.logvar != nullptr && args.kl != nullptr);
  __builtin_assume(args.z != nullptr);
  const int lane = static_cast<int>(threadIdx.x & (kThreads - 1));
  double sum = 0.0;
#pragma unroll
  for (int b = 0; b < BATCHES; ++b) {
    const Range range{0, (int64_t{b} * gridDim.x + blockIdx.x) * kTask, 0, kTask};
    sum += forward_range<F>(args, range, lane, kThreads, true);
  }
  out[lane] = sum;
}

template <class F, int BATCHES>
__global__ void __launch_bounds__(kThreads, kResident) batches_backward(GaussianBackward args) {
  constexpr int kTask = kThreads * GaussianBatch<F>::size;
  args.rows = args.cols = 1;
  args.num_samples = 1;
  args.has_kl = true;
  args.prior_mu = args.prior_logvar = nullptr;
  args.grad_prior_mu = args.grad_prior_logvar = nullptr;
  __builtin_assume(args.mu != nullptr && args.logvar != nullptr && args.grad_z != nullptr);
  __builtin_assume(args.grad_mu != nullptr && args.grad_logvar != nullptr);
  args.grad_kl.loss = args.grad_kl.part = nullptr;
  args.grad_kl.weight_tensor = nullptr;
  const int lane = static_cast<int>(threadIdx.x & (kThreads - 1));
#pragma unroll
  for (int b = 0; b < BATCHES; ++b) {
    const Range range{0, (int64_t{b} * gridDim.x + blockIdx.x) * kTask, 0, kTask};
    backward_range<F>(args, range, lane, kThreads, true);
  }
}

#define VF_COUNT(F)                                                              \
  template __global__ void batches_forward<F, 1>(GaussianForward, double*);      \
  template __global__ void batches_forward<F, 2>(GaussianForward, double*);      \
  template __global__ void batches_backward<F, 1>(GaussianBackward);             \
  template __global__ void batches_backward<F, 2>(GaussianBackward);
VF_COUNT(F32)
VF_COUNT(BF16)

}  // namespace vae_fast::cuda
