// A thread's work on one whole batch and on two, without decisions at run time. The difference is the
// cost of a batch (benchmarks/gpu_instructions.py). Also whole kernels, whose frames are counted.
#include "cuda/likelihood.cuh"

namespace vae_fast::cuda {

using likelihoods::Bernoulli;

template <class L, class F, DType DTYPE, DType TARGET, bool VALUE, bool GRAD, int BATCHES>
__global__ void __launch_bounds__(kThreads, kResidentOf<L, F>)
    batches_of(Likelihood args, double* out) {
  constexpr int kTask = kThreads * TermBatch<L, F>::size;
  args.dtype = DTYPE, args.target_dtype = TARGET;
  args.rows = args.inner = 1;
  __builtin_assume(args.target != nullptr);
#pragma unroll
  for (int j = 0; j < L::params; ++j) {
    __builtin_assume(args.params[j].data != nullptr && args.grads[j].data != nullptr);
  }
  args.grad_nll.loss = args.grad_nll.part = nullptr;
  args.grad_nll.weight_tensor = nullptr;
  const int lane = static_cast<int>(threadIdx.x & (kThreads - 1));
  double sum = 0.0;
#pragma unroll
  for (int b = 0; b < BATCHES; ++b) {
    const Range range{0, (int64_t{b} * gridDim.x + blockIdx.x) * kTask, 0, kTask};
    sum += likelihood_range<L, F, VALUE, GRAD>(args, range, lane, kThreads, true);
  }
  out[lane] = sum;
}

#define VF_BATCHES(L, F, dtype, target, value, grad, n)                                    \
  template __global__ void                                                                 \
  batches_of<likelihoods::L, F, DType::dtype, DType::target, value, grad, n>(Likelihood, double*);
#define VF_COUNT(L, F, dtype, target, value, grad)   \
  VF_BATCHES(L, F, dtype, target, value, grad, 1)    \
  VF_BATCHES(L, F, dtype, target, value, grad, 2)
#define VF_COUNT_BOTH(name, L) VF_COUNT(L, F32, f32, f32, true, true)
VF_LIKELIHOODS(VF_COUNT_BOTH)
VF_COUNT(Bernoulli, F32, f32, f32, true, false)
VF_COUNT(Bernoulli, F32, f32, u8, true, true)
VF_COUNT(Bernoulli, BF16, bf16, bf16, true, true)
VF_COUNT(Bernoulli, BF16, bf16, u8, true, true)

#define VF_KERNEL(F, value, grad)                                        \
  template __global__ void likelihood_kernel<Bernoulli, F, value, grad>( \
      const Elbo, const Plan, const Finish, double*, unsigned*, const bool, const bool);
VF_KERNEL(F32, true, false)
VF_KERNEL(F32, true, true)
VF_KERNEL(BF16, true, true)

}  // namespace vae_fast::cuda
