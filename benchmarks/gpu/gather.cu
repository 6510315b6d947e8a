// Like likelihoods.cu, for rows of bytes.
#include "cuda/gather.cu"

namespace vae_fast::cuda {

template <GatherMode MODE, int BATCHES>
__global__ void __launch_bounds__(kThreads, kResident) batches_of_gather(Gather args) {
  constexpr int kTask = kThreads * GatherBatch<MODE>::size;
  args.dtype = DType::u8;
  args.cols = kTask;
  args.first_row = 0;
  args.first_row_tensor = nullptr;
  __builtin_assume(args.data != nullptr && args.out != nullptr);
  const int lane = static_cast<int>(threadIdx.x & (kThreads - 1));
#pragma unroll
  for (int b = 0; b < BATCHES; ++b) {
    const int64_t row = int64_t{b} * gridDim.x + blockIdx.x;
    gather_range<MODE>(args, {row, row * kTask, 0, kTask}, lane, kThreads, true);
  }
}

#define VF_COUNT(mode)                                                                \
  template __global__ void batches_of_gather<GatherMode::mode, 1>(Gather);            \
  template __global__ void batches_of_gather<GatherMode::mode, 2>(Gather);
VF_COUNT(bytes)
VF_COUNT(scale)
VF_COUNT(binarize)

}  // namespace vae_fast::cuda
