// The bindings of every likelihood: -log p, and -log p + beta * KL, with their gradients.
//
// The list (likelihoods/list.h) makes the schemas and the registration. A list of parameters holds
// one tensor for each, in the list's order, or one tensor with all of them stacked in its dim 1.
// Shapes, with N samples:
//   - every parameter has the target's shape, and one dense memory layout with it; or K * N samples
//     to the target's N, sample k * N + n is compared with target n;
//   - or target (N, C, P) and parameters (N or 1, C or 1, P or 1), contiguous: a size of 1 is shared;
//   - or one tensor (N, params * C, ...), contiguous, for a target (N, C, ...).
// A likelihood over planes (as many parameters as the call gives, see likelihoods/target.h) has one
// tensor (N, planes, ...) and a target (N, targets, ...), or (N, ...) where that is one value.
#pragma once

#include <string>

#include "likelihoods/list.h"
#include "torch/tensors.h"

namespace vae_fast {

struct LikelihoodInfo {
  const char* name;
  int params;
  int targets;  // values of the target at one position, of a likelihood over planes; else 0
};

#define VF_INFO(name, L) {#name, likelihoods::L::params, 0},
#define VF_PLANE_INFO(name, L) {#name, 1, likelihoods::L::targets},
constexpr LikelihoodInfo kLikelihoods[] = {VF_LIKELIHOODS(VF_INFO)
                                               VF_PLANE_LIKELIHOODS(VF_PLANE_INFO)};
#undef VF_INFO
#undef VF_PLANE_INFO

using Tensors = std::vector<Tensor>;

inline void check_like_rows(const Tensor& t, const Tensor& target, const char* name) {
  bool same = t.dim() == target.dim() && t.dim() >= 1;
  for (int64_t d = 1; same && d < t.dim(); ++d) same = t.size(d) == target.size(d);
  STD_TORCH_CHECK(same, "vae_fast: ", name, " differs from the target in its features' shape");
}

inline Likelihood plane_args(Likelihood args, const LikelihoodInfo& info, const Tensor& planes,
                             const Tensor& target) {
  STD_TORCH_CHECK(planes.dim() >= 2 && target.dim() >= 1 && planes.is_contiguous() &&
                      target.is_contiguous() && on_device_of(planes, target),
                  "vae_fast: planes (N, planes, ...) and target must be contiguous, on one device");
  args.rows = planes.size(0);
  args.target_rows = target.size(0);
  args.planes = planes.size(1);
  args.inner = 1;
  for (int64_t d = 2; d < planes.dim(); ++d) args.inner *= planes.size(d);
  STD_TORCH_CHECK(target.numel() == args.target_rows * info.targets * args.inner &&
                      (args.target_rows == 0 ? args.rows == 0 : args.rows % args.target_rows == 0),
                  "vae_fast: ", info.name, " has ", info.targets,
                  " values of the target at each position of the planes");
  // The drivers count the numbers of a vector of each plane by ints.
  constexpr int64_t most = INT32_MAX / 64;
  STD_TORCH_CHECK(args.planes <= most, "vae_fast: ", info.name, " takes at most ", most,
                  " planes, not ", args.planes);
  args.params[0] = {const_cast<void*>(planes.const_data_ptr()), args.planes * args.inner,
                    args.inner, 1};
  return args;
}

inline Likelihood likelihood_args(int id, const Tensors& params, const Tensor& target,
                                  int64_t reduction) {
  const LikelihoodInfo& info = kLikelihoods[id];
  const int64_t count = static_cast<int64_t>(params.size());
  STD_TORCH_CHECK(count == info.params || count == 1, "vae_fast: ", info.name, " has ", info.params,
                  " parameters, got ", count);
  const Tensor& first = params[0];
  Likelihood args{};
  args.id = id;
  args.dtype = dtype_of(first);
  args.target_dtype = dtype_of(target);
  args.reduction = reduction_of(reduction);
  STD_TORCH_CHECK(is_floating(args.dtype), "vae_fast: parameters must be floating");
  args.target_rows = rows_of(target);
  args.rows = args.target_rows;
  args.planes = 1;
  args.inner = cols_of(target);
  args.target = target.const_data_ptr();
  if (info.targets > 0) return plane_args(args, info, first, target);

  bool alike = count == info.params;
  for (const Tensor& p : params) {
    STD_TORCH_CHECK(p.scalar_type() == first.scalar_type() && on_device_of(p, target),
                    "vae_fast: the parameters must have one dtype, on the target's device");
    bool same = p.dim() == target.dim() && (p.dim() == 0 || p.size(0) == first.size(0));
    for (int64_t d = 1; same && d < p.dim(); ++d) same = p.size(d) == target.size(d);
    alike = alike && same;
  }
  if (alike && (first.dim() < 2 || first.size(0) == target.size(0))) {
    check_dense(target, "the target");
    for (int64_t j = 0; j < count; ++j) {
      check_like(params[j], target, "a parameter");
      args.params[j] = {const_cast<void*>(params[j].const_data_ptr()), args.inner, 0, 1};
    }
    return args;
  }
  STD_TORCH_CHECK(target.is_contiguous() && target.dim() >= 2,
                  "vae_fast: the target must be "
                  "contiguous, with its samples in dim 0");
  for (const Tensor& p : params) {
    STD_TORCH_CHECK(p.is_contiguous() && p.dim() == target.dim(),
                    "vae_fast: parameters must be contiguous, with the target's number of dims");
  }
  const auto whole_sets = [&](int64_t rows) {
    return args.target_rows > 0 ? rows % args.target_rows == 0 : rows == 0;
  };
  if (count == 1 && info.params > 1) {  // stacked
    bool same = first.size(1) == info.params * target.size(1) && whole_sets(first.size(0));
    for (int64_t d = 2; same && d < first.dim(); ++d) same = first.size(d) == target.size(d);
    STD_TORCH_CHECK(same, "vae_fast: stacked parameters must be (N, ", info.params,
                    " * C, ...) for a target (N, C, ...)");
    args.rows = first.size(0);
    for (int j = 0; j < info.params; ++j) {
      const int64_t offset = j * args.inner * size_of(args.dtype);
      args.params[j] = {
          const_cast<char*>(static_cast<const char*>(first.const_data_ptr())) + offset,
          info.params * args.inner, 0, 1};
    }
    return args;
  }
  // K sets of samples against one target. (One sample against another number of them is shared.)
  if (alike && (first.size(0) != 1 || args.target_rows == 1)) {
    STD_TORCH_CHECK(whole_sets(first.size(0)), "vae_fast: the parameters' ", first.size(0),
                    " samples are no multiple of the target's ", args.target_rows);
    args.rows = first.size(0);
    for (int64_t j = 0; j < count; ++j) {
      args.params[j] = {const_cast<void*>(params[j].const_data_ptr()), args.inner, 0, 1};
    }
    return args;
  }
  STD_TORCH_CHECK(target.dim() == 3, "vae_fast: a target of shared parameters must be (N, C, P)");
  args.planes = target.size(1);
  args.inner = target.size(2);
  for (const Tensor& p : params) {
    if (p.size(0) > 1 && p.size(0) > args.rows) args.rows = p.size(0);
  }
  STD_TORCH_CHECK(whole_sets(args.rows), "vae_fast: the parameters' ", args.rows,
                  " samples are no multiple of the target's ", args.target_rows);
  for (int64_t j = 0; j < count; ++j) {
    const Tensor& p = params[j];
    const auto fits = [&](int64_t d, int64_t size) { return p.size(d) == size || p.size(d) == 1; };
    STD_TORCH_CHECK(fits(0, args.rows) && fits(1, args.planes) && fits(2, args.inner),
                    "vae_fast: a parameter's sizes must be the target's or 1");
    Operand& o = args.params[j];
    o.data = const_cast<void*>(p.const_data_ptr());
    o.step = p.size(2) == 1 ? 0 : 1;
    o.plane = p.size(1) == 1 ? 0 : p.size(2);
    o.row = p.size(0) == 1 ? 0 : p.size(1) * p.size(2);
  }
  return args;
}

// Bit j of `wanted`: whether tensor j of the parameters has a gradient to be made.
inline bool is_wanted(int64_t wanted, size_t j) { return (wanted >> j & 1) != 0; }

inline void set_grads(Likelihood& args, size_t params, size_t j, const Tensor& grad) {
  const int count = kLikelihoods[args.id].params;
  const char* base = static_cast<const char*>(args.params[j].data);
  const bool stacked = params == 1 && count > 1;
  for (int k = stacked ? 0 : int(j); k < (stacked ? count : int(j) + 1); ++k) {
    args.grads[k] = args.params[k];
    args.grads[k].data = static_cast<char*>(grad.mutable_data_ptr()) +
                         (static_cast<const char*>(args.params[k].data) - base);
  }
}

template <class Device>
struct LikelihoodOps {
  static Tensors make_grads(Likelihood& args, const Tensors& params, int64_t wanted) {
    Tensors grads;
    for (size_t j = 0; j < params.size(); ++j) {
      if (!is_wanted(wanted, j)) continue;
      grads.push_back(empty_alike<Device>(params[j]));
      set_grads(args, params.size(), j, grads.back());
    }
    return grads;
  }

  // A loss of args.rows samples: one value, or one for each.
  static Tensor empty_loss(const Likelihood& args, const Tensor& target, const Tensor& like) {
    const bool per_row = args.reduction == Reduction::none &&
                         (target.dim() >= 2 || kLikelihoods[args.id].targets > 0);
    const int64_t rows = args.rows, one = 1;
    return empty(per_row ? 1 : 0, &rows, &one, accumulator(like), like);
  }

  static Upstream known(const Likelihood& args, double weight,
                        const MaybeTensor& weight_tensor = std::nullopt) {
    Upstream up;
    up.weight = weight;
    up.weight_tensor = static_cast<const float*>(data(weight_tensor));
    up.scale = args.reduction == Reduction::batchmean ? 1.0 / double(args.rows) : 1.0;
    up.per_row = args.reduction == Reduction::none;
    return up;
  }

  static Upstream given(const Likelihood& args, const MaybeTensor& loss, const MaybeTensor& part,
                        const Tensor& like, double weight = 1.0,
                        const MaybeTensor& weight_tensor = std::nullopt) {
    const int64_t expected = args.reduction == Reduction::none ? args.rows : 1;
    for (const MaybeTensor& grad : {loss, part}) {
      STD_TORCH_CHECK(!grad || (grad->scalar_type() == accumulator(like) && grad->is_contiguous() &&
                                grad->numel() == expected && on_device_of(*grad, like)),
                      "vae_fast: a loss's gradient must be contiguous, in the loss's dtype, with ",
                      expected, " elements");
    }
    Upstream up = known(args, weight, weight_tensor);
    up.loss = data(loss);
    up.part = data(part);
    return up;
  }

  // --- -log p ------------------------------------------------------------------------------------

  template <int ID>
  static Tensor nll(const Tensors& params, const Tensor& target, int64_t reduction) {
    Likelihood args = likelihood_args(ID, params, target, reduction);
    Tensor value = empty_loss(args, target, params[0]);
    args.nll = value.mutable_data_ptr();
    Device::nll(args, target);
    return value;
  }

  template <int ID>
  static Tensors nll_backward(Tensor grad_nll, const Tensors& params, const Tensor& target,
                              int64_t reduction, int64_t wanted) {
    Likelihood args = likelihood_args(ID, params, target, reduction);
    args.grad_nll = given(args, std::nullopt, grad_nll, params[0]);
    Tensors grads = make_grads(args, params, wanted);
    Device::nll(args, target);
    return grads;
  }

  // Value and gradients in one pass; the loss's own gradient is taken to be grad_scale.
  template <int ID>
  static std::tuple<Tensor, Tensors> nll_with_grad(const Tensors& params, const Tensor& target,
                                                   int64_t reduction, double grad_scale,
                                                   int64_t wanted) {
    Likelihood args = likelihood_args(ID, params, target, reduction);
    Tensor value = empty_loss(args, target, params[0]);
    args.nll = value.mutable_data_ptr();
    args.grad_nll = known(args, grad_scale);
    Tensors grads = make_grads(args, params, wanted);
    Device::nll(args, target);
    return {value, grads};
  }

  // The same into the caller's buffers, which may be the parameters themselves: a caller that keeps a
  // workspace needs no fresh memory, which would cost page faults.
  template <int ID>
  static Tensor nll_with_grad_out(const Tensors& params, const Tensor& target, int64_t reduction,
                                  double grad_scale, Tensors grads) {
    Likelihood args = likelihood_args(ID, params, target, reduction);
    Tensor value = empty_loss(args, target, params[0]);
    args.nll = value.mutable_data_ptr();
    args.grad_nll = known(args, grad_scale);
    STD_TORCH_CHECK(grads.size() == params.size(), "vae_fast: a gradient for each parameter");
    for (size_t j = 0; j < params.size(); ++j) {
      check_like(grads[j], params[j], "a gradient");
      STD_TORCH_CHECK(grads[j].scalar_type() == params[j].scalar_type(),
                      "vae_fast: a gradient must have its parameter's dtype");
      set_grads(args, params.size(), j, grads[j]);
    }
    Device::nll(args, target);
    return value;
  }

  // --- -log p + beta * KL ------------------------------------------------------------------------

  static Elbo elbo_args(int id, const Tensors& params, const Tensor& target, const Tensor& mu,
                        const Tensor& logvar, double beta, const MaybeTensor& beta_tensor,
                        int64_t reduction) {
    check_pair(mu, logvar);
    check_beta(beta_tensor, mu);
    Elbo args{};
    args.recon = likelihood_args(id, params, target, reduction);
    args.kl_dtype = dtype_of(mu);
    STD_TORCH_CHECK(rows_of(mu) == args.recon.rows && on_device_of(mu, target) &&
                        (args.kl_dtype == DType::f64) == (args.recon.dtype == DType::f64),
                    "vae_fast: mu does not match the parameters in samples, device or float64");
    args.kl_cols = cols_of(mu);
    args.mu = mu.const_data_ptr();
    args.logvar = logvar.const_data_ptr();
    args.beta = beta;
    args.beta_tensor = static_cast<const float*>(data(beta_tensor));
    return args;
  }

  struct Losses {
    Tensor loss, recon, kl;

    Losses(Elbo& args, const Tensor& target, const Tensor& like)
        : loss(empty_loss(args.recon, target, like)), recon(empty_loss(args.recon, target, like)),
          kl(empty_loss(args.recon, target, like)) {
      args.loss = loss.mutable_data_ptr();
      args.recon.nll = recon.mutable_data_ptr();
      args.kl = kl.mutable_data_ptr();
    }
  };

  struct Grads {
    Tensors params;
    Tensor mu, logvar;

    Grads(Elbo& args, const Tensors& of, const Tensor& of_mu, int64_t wanted)
        : params(make_grads(args.recon, of, wanted)), mu(empty_alike<Device>(of_mu)),
          logvar(empty_alike<Device>(of_mu)) {
      args.grad_mu = mu.mutable_data_ptr();
      args.grad_logvar = logvar.mutable_data_ptr();
    }
  };

  template <int ID>
  static std::tuple<Tensor, Tensor, Tensor> elbo(const Tensors& params, const Tensor& target,
                                                 const Tensor& mu, const Tensor& logvar,
                                                 double beta, const MaybeTensor& beta_tensor,
                                                 int64_t reduction) {
    Elbo args = elbo_args(ID, params, target, mu, logvar, beta, beta_tensor, reduction);
    Losses out(args, target, params[0]);
    Device::elbo(args, target);
    return {out.loss, out.recon, out.kl};
  }

  template <int ID>
  static std::tuple<Tensors, Tensor, Tensor> elbo_backward(
      const MaybeTensor& grad_loss, const MaybeTensor& grad_recon, const MaybeTensor& grad_kl,
      const Tensors& params, const Tensor& target, const Tensor& mu, const Tensor& logvar,
      double beta, const MaybeTensor& beta_tensor, int64_t reduction, int64_t wanted) {
    Elbo args = elbo_args(ID, params, target, mu, logvar, beta, beta_tensor, reduction);
    STD_TORCH_CHECK(grad_loss || grad_recon || grad_kl, "vae_fast: no gradient was given");
    const Tensor& like = params[0];
    args.recon.grad_nll = given(args.recon, grad_loss, grad_recon, like);
    args.grad_kl = given(args.recon, grad_loss, grad_kl, like, beta, beta_tensor);
    // A part without an upstream gradient has the known gradient 0, not the known gradient 1.
    if (!grad_loss && !grad_recon) args.recon.grad_nll.scale = 0.0;
    if (!grad_loss && !grad_kl) args.grad_kl.scale = 0.0;
    Grads grads(args, params, mu, wanted);
    Device::elbo(args, target);
    return {grads.params, grads.mu, grads.logvar};
  }

  // Values and gradients in one pass; the loss's own gradient is taken to be grad_scale.
  template <int ID>
  static std::tuple<Tensor, Tensor, Tensor, Tensors, Tensor, Tensor> elbo_with_grad(
      const Tensors& params, const Tensor& target, const Tensor& mu, const Tensor& logvar,
      double beta, const MaybeTensor& beta_tensor, int64_t reduction, double grad_scale,
      int64_t wanted) {
    Elbo args = elbo_args(ID, params, target, mu, logvar, beta, beta_tensor, reduction);
    args.recon.grad_nll = known(args.recon, grad_scale);
    args.grad_kl = known(args.recon, beta * grad_scale, beta_tensor);
    Losses out(args, target, params[0]);
    Grads grads(args, params, mu, wanted);
    Device::elbo(args, target);
    return {out.loss, out.recon, out.kl, grads.params, grads.mu, grads.logvar};
  }

  template <int ID>
  static void register_one(torch::stable::detail::StableLibrary& m) {
    const auto name = [](const char* op) { return std::string(kLikelihoods[ID].name) + op; };
    m.impl(name("_nll").c_str(), TORCH_BOX(&nll<ID>));
    m.impl(name("_nll_backward").c_str(), TORCH_BOX(&nll_backward<ID>));
    m.impl(name("_nll_with_grad").c_str(), TORCH_BOX(&nll_with_grad<ID>));
    m.impl(name("_nll_with_grad_out").c_str(), TORCH_BOX(&nll_with_grad_out<ID>));
    m.impl(name("_elbo").c_str(), TORCH_BOX(&elbo<ID>));
    m.impl(name("_elbo_backward").c_str(), TORCH_BOX(&elbo_backward<ID>));
    m.impl(name("_elbo_with_grad").c_str(), TORCH_BOX(&elbo_with_grad<ID>));
  }

  template <int... ID>
  static void register_each(torch::stable::detail::StableLibrary& m,
                            std::integer_sequence<int, ID...>) {
    (register_one<ID>(m), ...);
  }

  static void register_all(torch::stable::detail::StableLibrary& m) {
    register_each(m, std::make_integer_sequence<int, int(std::size(kLikelihoods))>{});
  }
};

// The schemas of every likelihood's ops.
inline void define_likelihoods(torch::stable::detail::StableLibrary& m) {
  for (const LikelihoodInfo& info : kLikelihoods) {
    const std::string name = info.name, inputs = "Tensor[] params, Tensor target",
                      latent = ", Tensor mu, Tensor logvar, float beta, Tensor? beta_tensor",
                      losses = "Tensor loss, Tensor recon, Tensor kl",
                      grads = "Tensor[] grads, Tensor grad_mu, Tensor grad_logvar";
    const auto define = [&](const std::string& op, const std::string& arguments,
                            const std::string& results) {
      m.def((name + op + "(" + arguments + ") -> " + results).c_str());
    };
    define("_nll", inputs + ", int reduction", "Tensor");
    define("_nll_backward", "Tensor grad_nll, " + inputs + ", int reduction, int wanted",
           "Tensor[]");
    define("_nll_with_grad", inputs + ", int reduction, float grad_scale, int wanted",
           "(Tensor nll, Tensor[] grads)");
    define("_nll_with_grad_out", inputs + ", int reduction, float grad_scale, Tensor(a!)[] grads",
           "Tensor");
    define("_elbo", inputs + latent + ", int reduction", "(" + losses + ")");
    define("_elbo_backward",
           "Tensor? grad_loss, Tensor? grad_recon, Tensor? grad_kl, " + inputs + latent +
               ", int reduction, int wanted",
           "(" + grads + ")");
    define("_elbo_with_grad", inputs + latent + ", int reduction, float grad_scale, int wanted",
           "(" + losses + ", " + grads + ")");
  }
}

}  // namespace vae_fast
