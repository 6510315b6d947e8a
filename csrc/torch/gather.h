// The bindings of gathering: rows of a data set of bytes by their index.
#pragma once

#include "torch/tensors.h"

namespace vae_fast {

template <class Device>
struct GatherOps {
  static Tensor gather_batch(const Tensor& data, const Tensor& index, int64_t mode,
                             const MaybeTensor& key, int64_t first_row,
                             const MaybeTensor& first_row_tensor) {
    Gather args{};
    args.dtype = dtype_of(data);
    STD_TORCH_CHECK(mode >= 0 && mode <= 2, "vae_fast: unknown mode of gathering ", mode);
    args.mode = static_cast<GatherMode>(mode);
    STD_TORCH_CHECK(!is_floating(args.dtype) && data.is_contiguous() && data.dim() >= 1,
                    "vae_fast: data to gather from must be contiguous uint8 or bool");
    STD_TORCH_CHECK(index.scalar_type() == ScalarType::Long && index.dim() == 1 &&
                        index.is_contiguous() && on_device_of(index, data),
                    "vae_fast: an index must be contiguous int64, (B,), on the data's device");
    args.samples = data.size(0);
    args.rows = index.numel();
    args.cols = 1;
    std::vector<int64_t> sizes{args.rows}, strides(data.dim(), 1);
    for (int64_t d = 1; d < data.dim(); ++d) {
      sizes.push_back(data.size(d));
      args.cols *= data.size(d);
    }
    for (int64_t d = data.dim() - 2; d >= 0; --d) {
      strides[d] = strides[d + 1] * (sizes[d + 1] > 1 ? sizes[d + 1] : 1);
    }
    args.data = data.const_data_ptr();
    args.index = static_cast<const int64_t*>(index.const_data_ptr());
    ScalarType dtype = data.scalar_type();
    if (args.mode == GatherMode::scale) dtype = ScalarType::Float;
    if (args.mode == GatherMode::binarize) {
      STD_TORCH_CHECK(key.has_value() && args.dtype == DType::u8,
                      "vae_fast: binarising takes uint8 data and a noise key");
      STD_TORCH_CHECK(!first_row_tensor ||
                          (first_row_tensor->scalar_type() == ScalarType::Long &&
                           first_row_tensor->numel() == 1 && on_device_of(*first_row_tensor, data)),
                      "vae_fast: a first_row tensor must be one int64 on the data's device");
      check_key(*key, data);
      args.key = key_data(*key);
      args.first_row = first_row;
      args.first_row_tensor = static_cast<const int64_t*>(vae_fast::data(first_row_tensor));
      dtype = ScalarType::Bool;
    }
    Tensor out = Device::empty(data.dim(), sizes.data(), strides.data(), dtype, data);
    args.out = out.mutable_data_ptr();
    Device::gather(args, data);
    return out;
  }

  static void register_all(torch::stable::detail::StableLibrary& m) {
    m.impl("gather_batch", TORCH_BOX(&gather_batch));
  }
};

}  // namespace vae_fast
