// The bindings of GroupNorm and SiLU in one pass.
#pragma once

#include "norm/args.h"
#include "torch/tensors.h"

namespace vae_fast {

template <class Device>
struct GroupNormOps {
  // Whether the channels of a position are neighbours in memory, with no gaps between positions.
  static bool is_channels_last(const Tensor& x) {
    int64_t expected = 1;
    const auto fits = [&](int64_t d) {
      const bool same = x.size(d) == 1 || x.stride(d) == expected;
      expected *= x.size(d);
      return same;
    };
    bool all = fits(1);
    for (int64_t d = x.dim() - 1; d >= 2; --d) all = fits(d) && all;
    return fits(0) && all;
  }

  template <class Args>
  static Args arguments(const Tensor& x, const MaybeTensor& weight, const MaybeTensor& bias,
                        int64_t groups, bool silu) {
    STD_TORCH_CHECK(x.dim() >= 2 && is_floating(dtype_of(x)),
                    "vae_fast: GroupNorm takes floating (N, C, ...)");
    Args args{};
    args.dtype = dtype_of(x);
    args.silu = silu;
    args.rows = x.size(0);
    args.channels = x.size(1);
    args.groups = groups;
    args.inner = 1;
    for (int64_t d = 2; d < x.dim(); ++d) args.inner *= x.size(d);
    STD_TORCH_CHECK(groups >= 1 && args.channels >= 1 && args.channels % groups == 0,
                    "vae_fast: GroupNorm needs channels that its groups divide");
    const bool last = x.numel() == 0 || is_channels_last(x);
    STD_TORCH_CHECK(last || x.is_contiguous(),
                    "vae_fast: GroupNorm takes contiguous or channels-last tensors");
    args.channels_last = last && args.channels > 1;
    for (const MaybeTensor* t : {&weight, &bias}) {
      STD_TORCH_CHECK(!*t || is_channel_vector(**t, x),
                      "vae_fast: GroupNorm's weight and bias must be contiguous (C,), float32 "
                      "(float64 beside float64), on the input's device");
    }
    args.x = x.const_data_ptr();
    args.weight = data(weight);
    args.bias = data(bias);
    return args;
  }

  static bool is_channel_vector(const Tensor& t, const Tensor& x) {
    return t.dim() == 1 && t.size(0) == x.size(1) && t.is_contiguous() &&
           t.scalar_type() == accumulator(x) && on_device_of(t, x);
  }

  static std::tuple<Tensor, Tensor, Tensor> group_norm(const Tensor& x, const MaybeTensor& weight,
                                                       const MaybeTensor& bias, int64_t groups,
                                                       double eps, bool silu) {
    auto args = arguments<GroupNorm>(x, weight, bias, groups, silu);
    const int64_t sizes[] = {args.rows, groups}, strides[] = {groups, 1};
    Tensor y = empty_alike<Device>(x);
    Tensor mean = empty(2, sizes, strides, accumulator(x), x);
    Tensor rstd = empty(2, sizes, strides, accumulator(x), x);
    args.eps = eps;
    args.y = y.mutable_data_ptr();
    args.mean = mean.mutable_data_ptr();
    args.rstd = rstd.mutable_data_ptr();
    Device::group_norm(args, x);
    return {y, mean, rstd};
  }

  static std::tuple<Tensor, Tensor, Tensor> group_norm_backward(
      const Tensor& grad_y, const Tensor& x, const MaybeTensor& weight, const MaybeTensor& bias,
      const Tensor& mean, const Tensor& rstd, bool silu) {
    for (const Tensor* t : {&mean, &rstd}) {
      STD_TORCH_CHECK(t->dim() == 2 && t->size(0) == x.size(0) && t->size(1) == mean.size(1) &&
                          t->is_contiguous() && t->scalar_type() == accumulator(x) &&
                          on_device_of(*t, x),
                      "vae_fast: GroupNorm's mean and rstd must be contiguous (N, groups)");
    }
    auto args = arguments<GroupNormBackward>(x, weight, bias, mean.size(1), silu);
    check_like(grad_y, x, "grad_y");
    STD_TORCH_CHECK(grad_y.scalar_type() == x.scalar_type(),
                    "vae_fast: GroupNorm's grad_y must have the input's dtype");
    const int64_t one = 1;
    Tensor grad_x = empty_alike<Device>(x);
    Tensor grad_weight = empty(1, &args.channels, &one, accumulator(x), x);
    Tensor grad_bias = empty(1, &args.channels, &one, accumulator(x), x);
    args.mean = mean.const_data_ptr();
    args.rstd = rstd.const_data_ptr();
    args.grad_y = grad_y.const_data_ptr();
    args.grad_x = grad_x.mutable_data_ptr();
    args.grad_weight = grad_weight.mutable_data_ptr();
    args.grad_bias = grad_bias.mutable_data_ptr();
    Device::group_norm_backward(args, x);
    return {grad_x, grad_weight, grad_bias};
  }

  static void register_all(torch::stable::detail::StableLibrary& m) {
    m.impl("group_norm", TORCH_BOX(&group_norm));
    m.impl("group_norm_backward", TORCH_BOX(&group_norm_backward));
  }
};

}  // namespace vae_fast
