// The Gaussian family's bindings: sampling, KL, both, and their gradients.
#pragma once

#include "torch/tensors.h"

namespace vae_fast {

template <class Device>
struct GaussianOps {
  static Tensor alike(const Tensor& t) { return empty_alike<Device>(t); }

  static Tensor empty_samples(const Tensor& mu, std::optional<int64_t> num_samples) {
    if (!num_samples) return alike(mu);
    std::vector<int64_t> sizes{*num_samples}, strides{mu.numel()};
    for (int64_t d = 0; d < mu.dim(); ++d) {
      sizes.push_back(mu.size(d));
      strides.push_back(mu.stride(d));
    }
    return Device::empty(mu.dim() + 1, sizes.data(), strides.data(), mu.scalar_type(), mu);
  }

  static GaussianForward gaussian_args(const Tensor& mu, const Tensor& logvar,
                                       const MaybeTensor& prior_mu,
                                       const MaybeTensor& prior_logvar) {
    check_pair(mu, logvar);
    STD_TORCH_CHECK(prior_mu.has_value() == prior_logvar.has_value(),
                    "vae_fast: a prior needs both its parameters");
    if (prior_mu) {
      check_like(*prior_mu, mu, "prior_mu");
      check_like(*prior_logvar, mu, "prior_logvar");
      STD_TORCH_CHECK(prior_mu->scalar_type() == mu.scalar_type() &&
                          prior_logvar->scalar_type() == mu.scalar_type(),
                      "vae_fast: posterior and prior must have one dtype");
    }
    GaussianForward args{};
    args.dtype = dtype_of(mu);
    args.rows = rows_of(mu);
    args.cols = cols_of(mu);
    args.mu = mu.const_data_ptr();
    args.logvar = logvar.const_data_ptr();
    args.prior_mu = data(prior_mu);
    args.prior_logvar = data(prior_logvar);
    return args;
  }

  static Tensor reparameterize(const Tensor& mu, const Tensor& logvar, const Tensor& key,
                               std::optional<int64_t> num_samples) {
    GaussianForward args = gaussian_args(mu, logvar, std::nullopt, std::nullopt);
    check_key(key, mu);
    STD_TORCH_CHECK(
        num_samples.value_or(1) >= 1 && num_samples.value_or(1) <= INT64_MAX / 8 / (mu.numel() + 1),
        "vae_fast: num_samples must be positive, and the samples fit a tensor");
    Tensor z = empty_samples(mu, num_samples);
    args.key = key_data(key);
    args.num_samples = num_samples.value_or(1);
    args.z = z.mutable_data_ptr();
    Device::gaussian_forward(args, mu);
    return z;
  }

  static std::tuple<Tensor, Tensor> reparameterize_backward(const Tensor& grad_z,
                                                            const Tensor& logvar, const Tensor& key,
                                                            std::optional<int64_t> num_samples) {
    check_dense(logvar, "logvar");
    check_key(key, logvar);
    const int64_t samples = num_samples.value_or(1);
    // Divided, not multiplied: a product of int64 may wrap round to grad_z's size.
    STD_TORCH_CHECK(samples >= 1 && grad_z.numel() % samples == 0 &&
                        grad_z.numel() / samples == logvar.numel() &&
                        grad_z.scalar_type() == logvar.scalar_type() &&
                        on_device_of(grad_z, logvar),
                    "vae_fast: grad_z does not match logvar");
    if (!num_samples) {
      check_like(grad_z, logvar, "grad_z");
    } else {
      STD_TORCH_CHECK(grad_z.is_contiguous() && logvar.is_contiguous(),
                      "vae_fast: grad_z and logvar must be contiguous");
    }
    Tensor grad_mu = alike(logvar), grad_logvar = alike(logvar);
    GaussianBackward args{};
    args.dtype = dtype_of(logvar);
    args.rows = rows_of(logvar);
    args.cols = cols_of(logvar);
    args.logvar = logvar.const_data_ptr();
    args.key = key_data(key);
    args.num_samples = samples;
    args.grad_z = grad_z.const_data_ptr();
    args.grad_mu = grad_mu.mutable_data_ptr();
    args.grad_logvar = grad_logvar.mutable_data_ptr();
    Device::gaussian_backward(args, logvar);
    return {grad_mu, grad_logvar};
  }

  static Tensor gaussian_kl(const Tensor& mu, const Tensor& logvar, const MaybeTensor& prior_mu,
                            const MaybeTensor& prior_logvar, int64_t reduction) {
    GaussianForward args = gaussian_args(mu, logvar, prior_mu, prior_logvar);
    args.reduction = reduction_of(reduction);
    Tensor kl = empty_sum(mu, args.reduction);
    args.kl = kl.mutable_data_ptr();
    Device::gaussian_forward(args, mu);
    return kl;
  }

  static std::tuple<Tensor, Tensor> sample_and_kl(const Tensor& mu, const Tensor& logvar,
                                                  const MaybeTensor& prior_mu,
                                                  const MaybeTensor& prior_logvar,
                                                  const Tensor& key, int64_t reduction) {
    GaussianForward args = gaussian_args(mu, logvar, prior_mu, prior_logvar);
    check_key(key, mu);
    args.reduction = reduction_of(reduction);
    Tensor z = alike(mu), kl = empty_sum(mu, args.reduction);
    args.key = key_data(key);
    args.z = z.mutable_data_ptr();
    args.kl = kl.mutable_data_ptr();
    Device::gaussian_forward(args, mu);
    return {z, kl};
  }

  // The same two, keeping dz/dlogvar for backward.
  static std::tuple<Tensor, Tensor> reparameterize_keeping(const Tensor& mu, const Tensor& logvar,
                                                           const Tensor& key) {
    GaussianForward args = gaussian_args(mu, logvar, std::nullopt, std::nullopt);
    check_key(key, mu);
    Tensor z = alike(mu), slope = alike(mu);
    args.key = key_data(key);
    args.z = z.mutable_data_ptr();
    args.slope = slope.mutable_data_ptr();
    Device::gaussian_forward(args, mu);
    return {z, slope};
  }

  static std::tuple<Tensor, Tensor, Tensor> sample_and_kl_keeping(
      const Tensor& mu, const Tensor& logvar, const MaybeTensor& prior_mu,
      const MaybeTensor& prior_logvar, const Tensor& key, int64_t reduction) {
    GaussianForward args = gaussian_args(mu, logvar, prior_mu, prior_logvar);
    check_key(key, mu);
    args.reduction = reduction_of(reduction);
    Tensor z = alike(mu), kl = empty_sum(mu, args.reduction), slope = alike(mu);
    args.key = key_data(key);
    args.z = z.mutable_data_ptr();
    args.kl = kl.mutable_data_ptr();
    args.slope = slope.mutable_data_ptr();
    Device::gaussian_forward(args, mu);
    return {z, kl, slope};
  }

  // The noise of z's gradient comes from the key, or from the slope where forward kept that.
  static GaussianBackward gaussian_backward_args(const MaybeTensor& grad_z,
                                                 const MaybeTensor& grad_kl, const Tensor& mu,
                                                 const Tensor& logvar, const MaybeTensor& key,
                                                 const MaybeTensor& slope, int64_t reduction) {
    check_pair(mu, logvar);
    GaussianBackward args{};
    if (grad_z) {
      check_like(*grad_z, mu, "grad_z");
      STD_TORCH_CHECK((key || slope) && grad_z->scalar_type() == mu.scalar_type(),
                      "vae_fast: grad_z needs mu's dtype, and the noise key or the slope");
      if (slope) {
        check_like(*slope, mu, "slope");
        STD_TORCH_CHECK(Device::kKeepsSlope && slope->scalar_type() == mu.scalar_type(),
                        "vae_fast: the slope must have mu's dtype, and be on the CPU");
        args.slope = slope->const_data_ptr();
      } else {
        check_key(*key, mu);
        args.key = key_data(*key);
      }
      args.grad_z = grad_z->const_data_ptr();
    }
    args.dtype = dtype_of(mu);
    args.rows = rows_of(mu);
    args.cols = cols_of(mu);
    args.mu = mu.const_data_ptr();
    args.logvar = logvar.const_data_ptr();
    args.has_kl = grad_kl.has_value();
    args.grad_kl = upstream(std::nullopt, grad_kl, mu, reduction_of(reduction));
    return args;
  }

  static std::tuple<Tensor, Tensor> gaussian_backward(const MaybeTensor& grad_z,
                                                      const MaybeTensor& grad_kl, const Tensor& mu,
                                                      const Tensor& logvar, const MaybeTensor& key,
                                                      const MaybeTensor& slope, int64_t reduction) {
    GaussianBackward args =
        gaussian_backward_args(grad_z, grad_kl, mu, logvar, key, slope, reduction);
    Tensor grad_mu = alike(mu), grad_logvar = alike(mu);
    args.grad_mu = grad_mu.mutable_data_ptr();
    args.grad_logvar = grad_logvar.mutable_data_ptr();
    Device::gaussian_backward(args, mu);
    return {grad_mu, grad_logvar};
  }

  static std::tuple<Tensor, Tensor, Tensor, Tensor> gaussian_prior_backward(
      const MaybeTensor& grad_z, const MaybeTensor& grad_kl, const Tensor& mu, const Tensor& logvar,
      const Tensor& prior_mu, const Tensor& prior_logvar, const MaybeTensor& key,
      const MaybeTensor& slope, int64_t reduction) {
    GaussianBackward args =
        gaussian_backward_args(grad_z, grad_kl, mu, logvar, key, slope, reduction);
    gaussian_args(mu, logvar, prior_mu, prior_logvar);  // for its checks
    Tensor grads[4] = {alike(mu), alike(mu), alike(mu), alike(mu)};
    args.prior_mu = prior_mu.const_data_ptr();
    args.prior_logvar = prior_logvar.const_data_ptr();
    args.grad_mu = grads[0].mutable_data_ptr();
    args.grad_logvar = grads[1].mutable_data_ptr();
    args.grad_prior_mu = grads[2].mutable_data_ptr();
    args.grad_prior_logvar = grads[3].mutable_data_ptr();
    Device::gaussian_backward(args, mu);
    return {grads[0], grads[1], grads[2], grads[3]};
  }

  static void register_all(torch::stable::detail::StableLibrary& m) {
    m.impl("reparameterize", TORCH_BOX(&reparameterize));
    m.impl("reparameterize_backward", TORCH_BOX(&reparameterize_backward));
    m.impl("gaussian_kl", TORCH_BOX(&gaussian_kl));
    m.impl("sample_and_kl", TORCH_BOX(&sample_and_kl));
    m.impl("gaussian_backward", TORCH_BOX(&gaussian_backward));
    m.impl("gaussian_prior_backward", TORCH_BOX(&gaussian_prior_backward));
  }

  // What only a device that keeps the slope has.
  static void register_keeping(torch::stable::detail::StableLibrary& m) {
    m.impl("reparameterize_keeping", TORCH_BOX(&reparameterize_keeping));
    m.impl("sample_and_kl_keeping", TORCH_BOX(&sample_and_kl_keeping));
  }
};

}  // namespace vae_fast
