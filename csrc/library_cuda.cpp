// The CUDA implementations of the ops that library.cpp defines.
#include <cuda_runtime_api.h>
#include <torch/csrc/stable/accelerator.h>

#include "cuda/drivers.h"
#include "torch/gather.h"
#include "torch/gaussian.h"
#include "torch/group_norm.h"
#include "torch/likelihood.h"
#include "torch/step.h"

namespace vae_fast {
namespace {

// Runs a driver on the device of `like` and torch's current stream there. What it needs as
// workspace comes from torch's allocator, which knows the stream and CUDA-graph capture.
template <class Driver>
void launch_on(const Tensor& like, size_t workspace_bytes, const Driver& driver) {
  const int32_t index = like.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(index);
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(index, &stream));
  MaybeTensor workspace;
  if (workspace_bytes > 0) {
    const int64_t bytes = static_cast<int64_t>(workspace_bytes), one = 1;
    workspace = empty(1, &bytes, &one, ScalarType::Byte, like);
  }
  const cudaError_t error = driver(workspace ? workspace->mutable_data_ptr() : nullptr,
                                   static_cast<cudaStream_t>(stream));
  if (error == cudaSuccess) return;
  (void)cudaGetLastError();  // or torch would report the same error again, at some later launch
  if (error == cudaErrorNoKernelImageForDevice || error == cudaErrorUnsupportedPtxVersion) {
    STD_TORCH_CHECK(false, "vae_fast: this build (", VAE_FAST_CUDA_ARCHS, ") has no code for GPU ",
                    index, ": ", cudaGetErrorString(error),
                    "; reinstall with TORCH_CUDA_ARCH_LIST set to its compute capability");
  }
  STD_TORCH_CHECK(false, "vae_fast: a CUDA kernel did not launch on GPU ", index, ": ",
                  cudaGetErrorString(error));
}

struct Cuda {
  static constexpr bool kKeepsSlope = false;

  // torch's own allocator keeps memory already.
  static Tensor empty(int64_t dim, const int64_t* sizes, const int64_t* strides, ScalarType dtype,
                      const Tensor& like) {
    return vae_fast::empty(dim, sizes, strides, dtype, like);
  }
  static void gaussian_forward(const GaussianForward& args, const Tensor& like) {
    launch_on(like, cuda::gaussian_workspace(args), [&](void* workspace, cudaStream_t stream) {
      return cuda::gaussian_forward(args, workspace, stream);
    });
  }
  static void gaussian_backward(const GaussianBackward& args, const Tensor& like) {
    launch_on(like, 0,
              [&](void*, cudaStream_t stream) { return cuda::gaussian_backward(args, stream); });
  }
  static void check(const Likelihood& args) {
    const char* why = cuda::refusal(args);
    STD_TORCH_CHECK(why == nullptr, "vae_fast: ", kLikelihoods[args.id].name, " ", why ? why : "");
  }
  static void nll(const Likelihood& args, const Tensor& like) {
    check(args);
    launch_on(like, cuda::nll_workspace(args), [&](void* workspace, cudaStream_t stream) {
      return cuda::nll(args, workspace, stream);
    });
  }
  static void elbo(const Elbo& args, const Tensor& like) {
    check(args.recon);
    launch_on(like, cuda::elbo_workspace(args), [&](void* workspace, cudaStream_t stream) {
      return cuda::elbo(args, workspace, stream);
    });
  }
  static void group_norm(const GroupNorm& args, const Tensor& like) {
    STD_TORCH_CHECK(args.silu, "vae_fast: on a GPU GroupNorm has SiLU behind it");
    launch_on(like, cuda::group_norm_workspace(args), [&](void* workspace, cudaStream_t stream) {
      return cuda::group_norm(args, workspace, stream);
    });
  }
  static void group_norm_backward(const GroupNormBackward& args, const Tensor& like) {
    STD_TORCH_CHECK(args.silu, "vae_fast: on a GPU GroupNorm has SiLU behind it");
    const size_t bytes = cuda::group_norm_backward_workspace(args);
    launch_on(like, bytes, [&](void* workspace, cudaStream_t stream) {
      return cuda::group_norm_backward(args, workspace, stream);
    });
  }
  static void gather(const Gather& args, const Tensor& like) {
    launch_on(like, 0, [&](void*, cudaStream_t stream) { return cuda::gather(args, stream); });
  }
  static void step_sample(const StepSample& args, const Tensor& like) {
    launch_on(like, 0, [&](void*, cudaStream_t stream) { return cuda::step_sample(args, stream); });
  }
  static void step_sample_backward(const StepSampleBackward& args, const Tensor& like) {
    launch_on(like, 0,
              [&](void*, cudaStream_t stream) { return cuda::step_sample_backward(args, stream); });
  }
  static void step_decide(const StepDecide& args, const Tensor& like) {
    const size_t bytes = cuda::step_decide_workspace(args);
    launch_on(like, bytes, [&](void* workspace, cudaStream_t stream) {
      return cuda::step_decide(args, workspace, stream);
    });
  }
  static void step_update(const StepUpdate& args, const Tensor& like) {
    launch_on(like, 0, [&](void*, cudaStream_t stream) { return cuda::step_update(args, stream); });
  }
};

}  // namespace
}  // namespace vae_fast

STABLE_TORCH_LIBRARY_IMPL(vae_fast, CUDA, m) {
  vae_fast::GaussianOps<vae_fast::Cuda>::register_all(m);
  vae_fast::LikelihoodOps<vae_fast::Cuda>::register_all(m);
  vae_fast::GatherOps<vae_fast::Cuda>::register_all(m);
  vae_fast::GroupNormOps<vae_fast::Cuda>::register_all(m);
  vae_fast::StepOps<vae_fast::Cuda>::register_all(m);
}
