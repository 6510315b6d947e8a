// The CUDA drivers: walk device memory, reduce, launch. What library_cuda.cpp calls.
//
// No torch header, no exception and no host synchronisation: every pointer of the arguments is
// device memory, everything is queued on `stream`, and the first error of a launch is returned.
// `workspace` holds as many bytes as the op's *_workspace function says (null when that is 0),
// 16-byte aligned, with any content. All can be captured into a CUDA graph: a noise key is read on
// the device at each replay. Sums add up in an order that the problem's size and dtype fix, so they
// have the same bits on every GPU and under every load.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "norm/args.h"
#include "ops/args.h"
#include "ops/step.h"

namespace vae_fast::cuda {

size_t gaussian_workspace(const GaussianForward& args);
cudaError_t gaussian_forward(const GaussianForward& args, void* workspace, cudaStream_t stream);
cudaError_t gaussian_backward(const GaussianBackward& args, cudaStream_t stream);

// Why the kernels do not serve these arguments, in words that follow the likelihood's name; null if
// they do.
const char* refusal(const Likelihood& args);
// How many likelihoods have kernels and, where `names` is given, their names in the list's order
// and whether each reads half precision.
int likelihoods_on_cuda(const char** names, bool* reads_half);

size_t nll_workspace(const Likelihood& args);
cudaError_t nll(const Likelihood& args, void* workspace, cudaStream_t stream);

size_t elbo_workspace(const Elbo& args);
cudaError_t elbo(const Elbo& args, void* workspace, cudaStream_t stream);

size_t group_norm_workspace(const GroupNorm& args);
cudaError_t group_norm(const GroupNorm& args, void* workspace, cudaStream_t stream);
size_t group_norm_backward_workspace(const GroupNormBackward& args);
cudaError_t group_norm_backward(const GroupNormBackward& args, void* workspace,
                                cudaStream_t stream);

cudaError_t step_sample(const StepSample& args, cudaStream_t stream);
cudaError_t step_sample_backward(const StepSampleBackward& args, cudaStream_t stream);
size_t step_decide_workspace(const StepDecide& args);
cudaError_t step_decide(const StepDecide& args, void* workspace, cudaStream_t stream);
cudaError_t step_update(const StepUpdate& args, cudaStream_t stream);

// An index outside the data ends the kernel with a trap, before the data is read.
cudaError_t gather(const Gather& args, cudaStream_t stream);

// A test hook: the words of `counters` consecutive counters of the key from `first` on, 4 each.
cudaError_t philox_words(const int64_t* key, uint64_t first, int64_t counters, uint32_t* words,
                         cudaStream_t stream);

}  // namespace vae_fast::cuda
