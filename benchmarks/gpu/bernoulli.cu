// A thread's work on one whole batch and on two, without what a task decides at run time: their
// difference is what a batch costs (benchmarks/gpu_instructions.py). And the kernels, for their frames.
#include "cuda/likelihood.cuh"

namespace vae_fast::cuda {

using likelihoods::Bernoulli;

template <class F, DType DTYPE, DType TARGET, bool VALUE, bool GRAD, int BATCHES>
__global__ void __launch_bounds__(kThreads, kResident)
    batches_of_bernoulli(Likelihood args, double* out) {
  constexpr int kTask = kThreads * TermBatch<Bernoulli, F>::size;
  args.dtype = DTYPE, args.target_dtype = TARGET;
  args.rows = args.inner = 1;
  __builtin_assume(args.params[0].data != nullptr && args.target != nullptr);
  __builtin_assume(args.grads[0].data != nullptr);
  args.grad_nll.loss = args.grad_nll.part = nullptr;
  args.grad_nll.weight_tensor = nullptr;
  const int lane = static_cast<int>(threadIdx.x & (kThreads - 1));
  double sum = 0.0;
#pragma unroll
  for (int b = 0; b < BATCHES; ++b) {
    const Range range{0, (int64_t{b} * gridDim.x + blockIdx.x) * kTask, 0, kTask};
    sum += likelihood_range<Bernoulli, F, VALUE, GRAD>(args, range, lane, kThreads, true);
  }
  out[lane] = sum;
}

#define VF_COUNT(F, dtype, target, value, grad)                                             \
  template __global__ void                                                                  \
  batches_of_bernoulli<F, DType::dtype, DType::target, value, grad, 1>(Likelihood, double*); \
  template __global__ void                                                                  \
  batches_of_bernoulli<F, DType::dtype, DType::target, value, grad, 2>(Likelihood, double*);
VF_COUNT(F32, f32, f32, true, false)
VF_COUNT(F32, f32, f32, true, true)
VF_COUNT(F32, f32, u8, true, true)
VF_COUNT(BF16, bf16, bf16, true, true)
VF_COUNT(BF16, bf16, u8, true, true)

#define VF_KERNEL(F, value, grad)                                                        \
  template __global__ void likelihood_kernel<Bernoulli, F, value, grad>(                 \
      const Elbo, const Plan, const Finish, double*, unsigned*, const bool, const bool);
VF_KERNEL(F32, true, false)
VF_KERNEL(F32, true, true)
VF_KERNEL(BF16, true, true)

}  // namespace vae_fast::cuda
