// From torch tensors to the plain arguments of ops/args.h, for either device.
//
// `Device` runs the drivers: Cpu in library.cpp, Cuda in library_cuda.cpp. The Python side has
// checked shapes and dtypes with errors for people; what is checked here is what keeps a kernel
// from reading out of bounds whoever calls it. Only LibTorch's stable ABI is used.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/shim_utils.h>

#include <optional>
#include <tuple>
#include <type_traits>
#include <vector>

#include "ops/args.h"

namespace vae_fast {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using MaybeTensor = std::optional<Tensor>;

inline DType dtype_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Float: return DType::f32;
    case ScalarType::Double: return DType::f64;
    case ScalarType::BFloat16: return DType::bf16;
    case ScalarType::Half: return DType::f16;
    case ScalarType::Byte: return DType::u8;
    case ScalarType::Bool: return DType::boolean;
    default: STD_TORCH_CHECK(false, "vae_fast: no kernel for this dtype");
  }
  return DType::f32;
}

inline bool is_floating(DType dtype) { return dtype != DType::u8 && dtype != DType::boolean; }

inline int64_t rows_of(const Tensor& t) { return t.dim() >= 2 ? t.size(0) : 1; }
inline int64_t cols_of(const Tensor& t) {
  const int64_t rows = rows_of(t);
  if (rows != 0) return t.numel() / rows;
  int64_t cols = 1;
  for (int64_t d = 1; d < t.dim(); ++d) cols *= t.size(d);
  return cols;
}

// --- checks --------------------------------------------------------------------------------------

// Dense: contiguous, or any other layout without holes that two tensors share (channels-last).
inline void check_like(const Tensor& t, const Tensor& other, const char* name) {
  bool same = t.dim() == other.dim() && t.numel() == other.numel() &&
              t.get_device_index() == other.get_device_index() && t.is_cpu() == other.is_cpu();
  for (int64_t d = 0; same && d < t.dim(); ++d) {
    same = t.size(d) == other.size(d) && (t.stride(d) == other.stride(d) || t.size(d) <= 1 ||
                                          t.numel() == 0);
  }
  STD_TORCH_CHECK(same, "vae_fast: ", name, " differs in shape, memory layout or device");
}

inline void check_dense(const Tensor& t, const char* name) {
  if (t.is_contiguous()) return;
  // Samples are outermost and the rest has no holes: the product of the inner sizes is the stride.
  int64_t extent = 1;
  for (int64_t d = 0; d < t.dim(); ++d) extent += (t.size(d) - 1) * t.stride(d);
  const bool outermost =
      t.dim() >= 2 && (t.size(0) == 1 || t.stride(0) == t.numel() / t.size(0));
  STD_TORCH_CHECK(extent == t.numel() && outermost,
                  "vae_fast: ", name, " must be dense in memory, with the samples outermost");
}

inline void check_pair(const Tensor& mu, const Tensor& logvar) {
  check_dense(mu, "mu");
  check_like(logvar, mu, "logvar");
  STD_TORCH_CHECK(dtype_of(mu) == dtype_of(logvar) && is_floating(dtype_of(mu)),
                  "vae_fast: mu and logvar must have one floating dtype");
}

inline void check_key(const Tensor& key, const Tensor& like) {
  STD_TORCH_CHECK(key.scalar_type() == ScalarType::Long && key.numel() == 2 &&
                      key.is_contiguous() && key.is_cpu() == like.is_cpu(),
                  "vae_fast: the noise key must be 2 contiguous int64 on the inputs' device");
}

inline Reduction reduction_of(int64_t code) {
  STD_TORCH_CHECK(code >= 0 && code <= 2, "vae_fast: unknown reduction code ", code);
  return static_cast<Reduction>(code);
}

// --- outputs -------------------------------------------------------------------------------------

inline ScalarType accumulator(const Tensor& t) {
  return t.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// Through the C shim, which is several times quicker than a boxed call of aten::empty.
inline Tensor empty(int64_t dim, const int64_t* sizes, const int64_t* strides, ScalarType dtype,
                    const Tensor& like) {
  int32_t device_type;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      dim, sizes, strides,
      torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype)), device_type,
      like.get_device_index(), &handle));
  return Tensor(handle);
}


// A loss: one value, or one per sample.
inline Tensor empty_sum(const Tensor& t, Reduction reduction) {
  const int64_t rows = rows_of(t), one = 1;
  const bool per_row = reduction == Reduction::none && t.dim() >= 2;
  return empty(per_row ? 1 : 0, &rows, &one, accumulator(t), t);
}

inline const void* data(const MaybeTensor& t) { return t ? t->const_data_ptr() : nullptr; }

inline const int64_t* key_data(const Tensor& key) {
  return static_cast<const int64_t*>(key.const_data_ptr());
}

// --- upstream gradients --------------------------------------------------------------------------

inline void check_upstream(const MaybeTensor& grad, const Tensor& of, Reduction reduction) {
  if (!grad) return;
  const int64_t expected = reduction == Reduction::none ? rows_of(of) : 1;
  STD_TORCH_CHECK(grad->scalar_type() == accumulator(of) && grad->is_contiguous() &&
                      grad->numel() == expected && grad->is_cpu() == of.is_cpu(),
                  "vae_fast: a loss's gradient must be contiguous, in the loss's dtype, with ",
                  expected, " elements");
}

// Of a loss whose weighted sum (weight) or own value (part) was differentiated.
inline Upstream upstream(const MaybeTensor& loss, const MaybeTensor& part, const Tensor& of,
                         Reduction reduction, double weight = 1.0,
                         const MaybeTensor& weight_tensor = std::nullopt) {
  check_upstream(loss, of, reduction);
  check_upstream(part, of, reduction);
  Upstream up;
  up.loss = data(loss);
  up.part = data(part);
  up.weight = weight;
  up.weight_tensor = static_cast<const float*>(data(weight_tensor));
  up.scale = reduction == Reduction::batchmean ? 1.0 / double(rows_of(of)) : 1.0;
  up.per_row = reduction == Reduction::none;
  return up;
}

inline void check_beta(const MaybeTensor& beta, const Tensor& like) {
  STD_TORCH_CHECK(!beta || (beta->scalar_type() == ScalarType::Float && beta->numel() == 1 &&
                            beta->is_cpu() == like.is_cpu()),
                  "vae_fast: a beta tensor must be one float32 on the inputs' device");
}

// --- the ops -------------------------------------------------------------------------------------

template <class Device>
struct Ops {
  // --- large outputs, from wherever the device likes to have them --------------------------------

  static Tensor alike(const Tensor& t) {
    return Device::empty(t.dim(), t.sizes().data(), t.strides().data(), t.scalar_type(), t);
  }

  static Tensor empty_samples(const Tensor& mu, std::optional<int64_t> num_samples) {
    if (!num_samples) return alike(mu);
    std::vector<int64_t> sizes{*num_samples}, strides{mu.numel()};
    for (int64_t d = 0; d < mu.dim(); ++d) {
      sizes.push_back(mu.size(d));
      strides.push_back(mu.stride(d));
    }
    return Device::empty(mu.dim() + 1, sizes.data(), strides.data(), mu.scalar_type(), mu);
  }

  // --- Gaussian ----------------------------------------------------------------------------------

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

  static Tensor reparameterize(Tensor mu, Tensor logvar, Tensor key,
                               std::optional<int64_t> num_samples) {
    GaussianForward args = gaussian_args(mu, logvar, std::nullopt, std::nullopt);
    check_key(key, mu);
    STD_TORCH_CHECK(num_samples.value_or(1) >= 1, "vae_fast: num_samples must be positive");
    Tensor z = empty_samples(mu, num_samples);
    args.key = key_data(key);
    args.num_samples = num_samples.value_or(1);
    args.z = z.mutable_data_ptr();
    Device::gaussian_forward(args, mu);
    return z;
  }

  static std::tuple<Tensor, Tensor> reparameterize_backward(Tensor grad_z, Tensor logvar,
                                                            Tensor key,
                                                            std::optional<int64_t> num_samples) {
    check_dense(logvar, "logvar");
    check_key(key, logvar);
    const int64_t samples = num_samples.value_or(1);
    STD_TORCH_CHECK(grad_z.numel() == samples * logvar.numel() && samples >= 1 &&
                        grad_z.scalar_type() == logvar.scalar_type() &&
                        grad_z.is_cpu() == logvar.is_cpu(),
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

  static Tensor gaussian_kl(Tensor mu, Tensor logvar, MaybeTensor prior_mu,
                            MaybeTensor prior_logvar, int64_t reduction) {
    GaussianForward args = gaussian_args(mu, logvar, prior_mu, prior_logvar);
    args.reduction = reduction_of(reduction);
    Tensor kl = empty_sum(mu, args.reduction);
    args.kl = kl.mutable_data_ptr();
    Device::gaussian_forward(args, mu);
    return kl;
  }

  static std::tuple<Tensor, Tensor> sample_and_kl(Tensor mu, Tensor logvar, MaybeTensor prior_mu,
                                                  MaybeTensor prior_logvar, Tensor key,
                                                  int64_t reduction) {
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
  static std::tuple<Tensor, Tensor> reparameterize_keeping(Tensor mu, Tensor logvar, Tensor key) {
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
      Tensor mu, Tensor logvar, MaybeTensor prior_mu, MaybeTensor prior_logvar, Tensor key,
      int64_t reduction) {
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

  static std::tuple<Tensor, Tensor> gaussian_backward(MaybeTensor grad_z, MaybeTensor grad_kl,
                                                      Tensor mu, Tensor logvar, MaybeTensor key,
                                                      MaybeTensor slope, int64_t reduction) {
    GaussianBackward args =
        gaussian_backward_args(grad_z, grad_kl, mu, logvar, key, slope, reduction);
    Tensor grad_mu = alike(mu), grad_logvar = alike(mu);
    args.grad_mu = grad_mu.mutable_data_ptr();
    args.grad_logvar = grad_logvar.mutable_data_ptr();
    Device::gaussian_backward(args, mu);
    return {grad_mu, grad_logvar};
  }

  static std::tuple<Tensor, Tensor, Tensor, Tensor> gaussian_prior_backward(
      MaybeTensor grad_z, MaybeTensor grad_kl, Tensor mu, Tensor logvar, Tensor prior_mu,
      Tensor prior_logvar, MaybeTensor key, MaybeTensor slope, int64_t reduction) {
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

  // --- Bernoulli ---------------------------------------------------------------------------------

  static void check_target_dtype(const Bernoulli& args) {
    STD_TORCH_CHECK(is_floating(args.dtype) &&
                        (!is_floating(args.target_dtype) || args.target_dtype == args.dtype ||
                         (args.target_dtype == DType::f32 && args.dtype != DType::f64)),
                    "vae_fast: no kernel for this pair of logits and target dtypes");
  }

  static Bernoulli bernoulli_args(const Tensor& logits, const Tensor& target, int64_t reduction,
                                  bool from_logits) {
    check_dense(logits, "logits");
    check_like(target, logits, "target");
    Bernoulli args{};
    args.dtype = dtype_of(logits);
    args.target_dtype = dtype_of(target);
    check_target_dtype(args);
    args.rows = rows_of(logits);
    args.cols = cols_of(logits);
    args.logits = logits.const_data_ptr();
    args.target = target.const_data_ptr();
    args.from_logits = from_logits;
    args.reduction = reduction_of(reduction);
    return args;
  }

  static Tensor bernoulli_nll(Tensor logits, Tensor target, int64_t reduction, bool from_logits) {
    Bernoulli args = bernoulli_args(logits, target, reduction, from_logits);
    Tensor nll = empty_sum(logits, args.reduction);
    args.nll = nll.mutable_data_ptr();
    Device::bernoulli(args, logits);
    return nll;
  }

  static Tensor bernoulli_nll_backward(Tensor grad_nll, Tensor logits, Tensor target,
                                       int64_t reduction, bool from_logits) {
    Bernoulli args = bernoulli_args(logits, target, reduction, from_logits);
    Tensor grad = alike(logits);
    args.grad = grad.mutable_data_ptr();
    args.grad_nll = upstream(std::nullopt, grad_nll, logits, args.reduction);
    Device::bernoulli(args, logits);
    return grad;
  }

  // Value and gradient in one pass; the loss's own gradient is taken to be grad_scale.
  static std::tuple<Tensor, Tensor> bernoulli_nll_with_grad(Tensor logits, Tensor target,
                                                            int64_t reduction, bool from_logits,
                                                            double grad_scale) {
    Bernoulli args = bernoulli_args(logits, target, reduction, from_logits);
    Tensor nll = empty_sum(logits, args.reduction), grad = alike(logits);
    args.nll = nll.mutable_data_ptr();
    args.grad = grad.mutable_data_ptr();
    args.grad_nll = upstream(std::nullopt, std::nullopt, logits, args.reduction, grad_scale);
    Device::bernoulli(args, logits);
    return {nll, grad};
  }

  // The same into the caller's buffer, which may be logits itself: no fresh memory, and none of
  // its page faults, where the caller keeps a workspace.
  static Tensor bernoulli_nll_with_grad_out(Tensor logits, Tensor target, int64_t reduction,
                                            bool from_logits, double grad_scale, Tensor grad) {
    Bernoulli args = bernoulli_args(logits, target, reduction, from_logits);
    check_like(grad, logits, "grad");
    STD_TORCH_CHECK(grad.scalar_type() == logits.scalar_type(),
                    "vae_fast: grad must have the dtype of logits");
    Tensor nll = empty_sum(logits, args.reduction);
    args.nll = nll.mutable_data_ptr();
    args.grad = grad.mutable_data_ptr();
    args.grad_nll = upstream(std::nullopt, std::nullopt, logits, args.reduction, grad_scale);
    Device::bernoulli(args, logits);
    return nll;
  }

  // Logits (K, B, ...) against one target (B, ...): a value for each of K * B, (K, B), without the
  // target being repeated. Sample set k is one run of the driver on the target as it is.
  static Bernoulli sample_set_args(const Tensor& logits, const Tensor& target) {
    STD_TORCH_CHECK(logits.is_contiguous() && target.is_contiguous() && target.dim() >= 2 &&
                        logits.dim() == target.dim() + 1 && logits.is_cpu() == target.is_cpu() &&
                        logits.get_device_index() == target.get_device_index(),
                    "vae_fast: logits (K, B, ...) and target (B, ...) must be contiguous");
    for (int64_t d = 0; d < target.dim(); ++d) {
      STD_TORCH_CHECK(logits.size(d + 1) == target.size(d),
                      "vae_fast: logits' sizes after the first must be target's");
    }
    Bernoulli args{};
    args.dtype = dtype_of(logits);
    args.target_dtype = dtype_of(target);
    check_target_dtype(args);
    args.rows = rows_of(target);
    args.cols = cols_of(target);
    args.target = target.const_data_ptr();
    args.reduction = Reduction::none;
    return args;
  }

  template <class T>
  static T* advance(T* p, int64_t bytes) {
    using Byte = std::conditional_t<std::is_const_v<T>, const char, char>;
    return static_cast<Byte*>(p) + bytes;
  }

  static Tensor bernoulli_nll_samples(Tensor logits, Tensor target) {
    Bernoulli args = sample_set_args(logits, target);
    const int64_t sets = logits.size(0), sizes[2] = {sets, args.rows}, strides[2] = {args.rows, 1};
    Tensor nll = empty(2, sizes, strides, accumulator(logits), logits);
    const int64_t set_bytes = args.rows * args.cols * int64_t(logits.element_size());
    const int64_t row_bytes = args.rows * int64_t(nll.element_size());
    for (int64_t k = 0; k < sets; ++k) {
      args.logits = advance(logits.const_data_ptr(), k * set_bytes);
      args.nll = advance(nll.mutable_data_ptr(), k * row_bytes);
      Device::bernoulli(args, logits);
    }
    return nll;
  }

  static Tensor bernoulli_nll_samples_backward(Tensor grad_nll, Tensor logits, Tensor target) {
    Bernoulli args = sample_set_args(logits, target);
    const int64_t sets = logits.size(0);
    STD_TORCH_CHECK(grad_nll.is_contiguous() && grad_nll.scalar_type() == accumulator(logits) &&
                        grad_nll.numel() == sets * args.rows &&
                        grad_nll.is_cpu() == logits.is_cpu(),
                    "vae_fast: grad_nll must be contiguous, (K, B), in the loss's dtype");
    Tensor grad = alike(logits);
    const int64_t set_bytes = args.rows * args.cols * int64_t(logits.element_size());
    const int64_t row_bytes = args.rows * int64_t(grad_nll.element_size());
    args.grad_nll.per_row = true;
    for (int64_t k = 0; k < sets; ++k) {
      args.logits = advance(logits.const_data_ptr(), k * set_bytes);
      args.grad = advance(grad.mutable_data_ptr(), k * set_bytes);
      args.grad_nll.part = advance(grad_nll.const_data_ptr(), k * row_bytes);
      Device::bernoulli(args, logits);
    }
    return grad;
  }

  // --- Bernoulli and KL --------------------------------------------------------------------------

  static BceKl bce_kl_args(const Tensor& logits, const Tensor& target, const Tensor& mu,
                           const Tensor& logvar, double beta, const MaybeTensor& beta_tensor,
                           int64_t reduction, bool from_logits) {
    check_pair(mu, logvar);
    check_beta(beta_tensor, mu);
    BceKl args{};
    args.recon = bernoulli_args(logits, target, reduction, from_logits);
    args.kl_dtype = dtype_of(mu);
    STD_TORCH_CHECK(rows_of(mu) == args.recon.rows && mu.is_cpu() == logits.is_cpu() &&
                        (args.kl_dtype == DType::f64) == (args.recon.dtype == DType::f64),
                    "vae_fast: mu does not match logits in samples, device or float64");
    args.kl_cols = cols_of(mu);
    args.mu = mu.const_data_ptr();
    args.logvar = logvar.const_data_ptr();
    args.beta = beta;
    args.beta_tensor = static_cast<const float*>(data(beta_tensor));
    return args;
  }

  struct Losses {
    Tensor loss, recon, kl;

    Losses(BceKl& args, const Tensor& logits)
        : loss(empty_sum(logits, args.recon.reduction)),
          recon(empty_sum(logits, args.recon.reduction)),
          kl(empty_sum(logits, args.recon.reduction)) {
      args.loss = loss.mutable_data_ptr();
      args.recon.nll = recon.mutable_data_ptr();
      args.kl = kl.mutable_data_ptr();
    }
  };

  struct Grads {
    Tensor logits, mu, logvar;

    Grads(BceKl& args, const Tensor& of_logits, const Tensor& of_mu)
        : logits(alike(of_logits)), mu(alike(of_mu)), logvar(alike(of_mu)) {
      args.recon.grad = logits.mutable_data_ptr();
      args.grad_mu = mu.mutable_data_ptr();
      args.grad_logvar = logvar.mutable_data_ptr();
    }
  };

  static std::tuple<Tensor, Tensor, Tensor> bce_kl(Tensor logits, Tensor target, Tensor mu,
                                                   Tensor logvar, double beta,
                                                   MaybeTensor beta_tensor, int64_t reduction,
                                                   bool from_logits) {
    BceKl args =
        bce_kl_args(logits, target, mu, logvar, beta, beta_tensor, reduction, from_logits);
    Losses out(args, logits);
    Device::bce_kl(args, logits);
    return {out.loss, out.recon, out.kl};
  }

  static std::tuple<Tensor, Tensor, Tensor> bce_kl_backward(
      MaybeTensor grad_loss, MaybeTensor grad_recon, MaybeTensor grad_kl, Tensor logits,
      Tensor target, Tensor mu, Tensor logvar, double beta, MaybeTensor beta_tensor,
      int64_t reduction, bool from_logits) {
    BceKl args =
        bce_kl_args(logits, target, mu, logvar, beta, beta_tensor, reduction, from_logits);
    STD_TORCH_CHECK(grad_loss || grad_recon || grad_kl, "vae_fast: no gradient was given");
    const Reduction r = args.recon.reduction;
    args.recon.grad_nll = upstream(grad_loss, grad_recon, logits, r);
    args.grad_kl = upstream(grad_loss, grad_kl, logits, r, beta, beta_tensor);
    // A part that nothing was asked of has the known gradient 0, not the known gradient 1.
    if (!grad_loss && !grad_recon) args.recon.grad_nll.scale = 0.0;
    if (!grad_loss && !grad_kl) args.grad_kl.scale = 0.0;
    Grads grads(args, logits, mu);
    Device::bce_kl(args, logits);
    return {grads.logits, grads.mu, grads.logvar};
  }

  // Values and gradients in one pass; the loss's own gradient is taken to be grad_scale.
  static std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> bce_kl_with_grad(
      Tensor logits, Tensor target, Tensor mu, Tensor logvar, double beta, MaybeTensor beta_tensor,
      int64_t reduction, bool from_logits, double grad_scale) {
    BceKl args =
        bce_kl_args(logits, target, mu, logvar, beta, beta_tensor, reduction, from_logits);
    const Reduction r = args.recon.reduction;
    args.recon.grad_nll = upstream(std::nullopt, std::nullopt, logits, r, grad_scale);
    args.grad_kl =
        upstream(std::nullopt, std::nullopt, logits, r, beta * grad_scale, beta_tensor);
    Losses out(args, logits);
    Grads grads(args, logits, mu);
    Device::bce_kl(args, logits);
    return {out.loss, out.recon, out.kl, grads.logits, grads.mu, grads.logvar};
  }

  // --- Gather ------------------------------------------------------------------------------------

  static Tensor gather_batch(Tensor data, Tensor index, int64_t mode, MaybeTensor key,
                             int64_t first_row, MaybeTensor first_row_tensor) {
    Gather args{};
    args.dtype = dtype_of(data);
    STD_TORCH_CHECK(mode >= 0 && mode <= 2, "vae_fast: unknown mode of gathering ", mode);
    args.mode = static_cast<GatherMode>(mode);
    STD_TORCH_CHECK(!is_floating(args.dtype) && data.is_contiguous() && data.dim() >= 1,
                    "vae_fast: data to gather from must be contiguous uint8 or bool");
    STD_TORCH_CHECK(index.scalar_type() == ScalarType::Long && index.dim() == 1 &&
                        index.is_contiguous() && index.is_cpu() == data.is_cpu() &&
                        index.get_device_index() == data.get_device_index(),
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
                           first_row_tensor->numel() == 1 &&
                           first_row_tensor->is_cpu() == data.is_cpu()),
                      "vae_fast: a first_row tensor must be one int64 on the data's device");
      check_key(*key, data);
      args.key = key_data(*key);
      args.first_row = first_row;
      args.first_row_tensor =
          static_cast<const int64_t*>(vae_fast::data(first_row_tensor));
      dtype = ScalarType::Bool;
    }
    Tensor out = Device::empty(data.dim(), sizes.data(), strides.data(), dtype, data);
    args.out = out.mutable_data_ptr();
    Device::gather(args, data);
    return out;
  }

  // --- Norm --------------------------------------------------------------------------------------

  static Tensor euclidean_norm(Tensor x) {
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
    m.impl("reparameterize", TORCH_BOX(&reparameterize));
    m.impl("reparameterize_backward", TORCH_BOX(&reparameterize_backward));
    m.impl("gaussian_kl", TORCH_BOX(&gaussian_kl));
    m.impl("sample_and_kl", TORCH_BOX(&sample_and_kl));
    m.impl("gaussian_backward", TORCH_BOX(&gaussian_backward));
    m.impl("gaussian_prior_backward", TORCH_BOX(&gaussian_prior_backward));
    m.impl("bernoulli_nll", TORCH_BOX(&bernoulli_nll));
    m.impl("bernoulli_nll_backward", TORCH_BOX(&bernoulli_nll_backward));
    m.impl("bernoulli_nll_with_grad", TORCH_BOX(&bernoulli_nll_with_grad));
    m.impl("bernoulli_nll_with_grad_out", TORCH_BOX(&bernoulli_nll_with_grad_out));
    m.impl("bernoulli_nll_samples", TORCH_BOX(&bernoulli_nll_samples));
    m.impl("bernoulli_nll_samples_backward", TORCH_BOX(&bernoulli_nll_samples_backward));
    m.impl("bce_kl", TORCH_BOX(&bce_kl));
    m.impl("bce_kl_backward", TORCH_BOX(&bce_kl_backward));
    m.impl("bce_kl_with_grad", TORCH_BOX(&bce_kl_with_grad));
    m.impl("gather_batch", TORCH_BOX(&gather_batch));
  }
};

}  // namespace vae_fast
