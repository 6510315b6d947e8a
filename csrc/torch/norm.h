// The binding of the Euclidean norm.
#pragma once

#include "torch/tensors.h"

namespace vae_fast {

template <class Device>
struct NormOps {
  static Tensor euclidean_norm(const Tensor& x) {
    STD_TORCH_CHECK(x.scalar_type() == ScalarType::Float && x.dim() == 1 && x.is_contiguous(),
                    "vae_fast: the norm's argument must be contiguous float32, (N,)");
    Tensor out = Device::empty(0, nullptr, nullptr, ScalarType::Float, x);
    Norm args{};
    args.n = x.numel();
    args.x = static_cast<const float*>(x.const_data_ptr());
    args.out = static_cast<float*>(out.mutable_data_ptr());
    Device::norm(args);
    return out;
  }

  static void register_all(torch::stable::detail::StableLibrary& m) {
    m.impl("euclidean_norm", TORCH_BOX(&euclidean_norm));
  }
};

}  // namespace vae_fast
