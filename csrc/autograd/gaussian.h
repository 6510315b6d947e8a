// The node of a Gaussian: sampling, the KL, or both. It does what the functions of
// vae_fast/ops/gaussian.py do.
#pragma once

#include "autograd/usual.h"

namespace vae_fast::autograd {

struct GaussianOps {
  Op<Tensor(const Tensor&, const Tensor&, const Tensor&, std::optional<int64_t>)> reparameterize{
      "reparameterize"};
  Op<std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&,
                                std::optional<int64_t>)>
      reparameterize_backward{"reparameterize_backward"};
  Op<std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&)>
      reparameterize_keeping{"reparameterize_keeping"};
  Op<Tensor(const Tensor&, const Tensor&, const Maybe&, const Maybe&, int64_t)> gaussian_kl{
      "gaussian_kl"};
  Op<std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, const Maybe&, const Maybe&,
                                const Tensor&, int64_t)>
      sample_and_kl{"sample_and_kl"};
  Op<std::tuple<Tensor, Tensor, Tensor>(const Tensor&, const Tensor&, const Maybe&, const Maybe&,
                                        const Tensor&, int64_t)>
      sample_and_kl_keeping{"sample_and_kl_keeping"};
  Op<std::tuple<Tensor, Tensor>(const Maybe&, const Maybe&, const Tensor&, const Tensor&,
                                const Maybe&, const Maybe&, int64_t)>
      backward{"gaussian_backward"};
  Op<std::tuple<Tensor, Tensor, Tensor, Tensor>(const Maybe&, const Maybe&, const Tensor&,
                                                const Tensor&, const Tensor&, const Tensor&,
                                                const Maybe&, const Maybe&, int64_t)>
      prior_backward{"gaussian_prior_backward"};
};

inline const GaussianOps& gaussian_ops() {
  static const GaussianOps ops;
  return ops;
}

// (samples, kl, reduction, (mu, logvar, prior_mu, prior_logvar, key), upstream, needs) -> gradients of
// these five; ops/gaussian.py has it.
inline PyObject* gaussian_again = nullptr;

// tensors: mu, logvar, the prior's pair if there is one, and the noise key if there are samples.
// z, or kl, or both.
struct Gaussian : torch::autograd::Function<Gaussian> {
  static constexpr size_t kNumbers = 1;

  struct Options {
    bool samples, kl, prior, keeps;  // keeps: dz/dlogvar, for backward
    int64_t reduction;

    int64_t packed() const {
      return reduction << 4 | int64_t(samples) << 3 | int64_t(kl) << 2 | int64_t(prior) << 1 |
             int64_t(keeps);
    }
    static Options of(int64_t packed) {
      return {(packed & 8) != 0, (packed & 4) != 0, (packed & 2) != 0, (packed & 1) != 0,
              packed >> 4};
    }
  };

  // The tensors by name; undefined where there is none.
  struct Named {
    Tensor mu, logvar;
    Maybe prior_mu, prior_logvar;
    Tensor key, slope;

    Named(const Options& options, TensorList tensors) : mu(tensors[0]), logvar(tensors[1]) {
      size_t next = 2;
      if (options.prior) prior_mu = tensors[2], prior_logvar = tensors[3], next = 4;
      if (options.samples) key = tensors[next++];
      if (next < tensors.size()) slope = tensors[next];
    }
  };

  static variable_list forward(AutogradContext* ctx, int64_t packed, TensorList tensors) {
    const Options options = Options::of(packed);
    const BelowAutograd below;
    Tensor slope;
    variable_list result = values(options, Named(options, tensors), slope);
    variable_list saved = tensors.vec();
    if (slope.defined()) saved.push_back(std::move(slope));
    ctx->save_for_backward(std::move(saved));
    ctx->set_materialize_grads(false);
    ctx->saved_data["options"] = packed;
    return result;
  }

  // Below autograd.
  static variable_list values(const Options& options, const Named& of, Tensor& slope) {
    const GaussianOps& ops = gaussian_ops();
    if (!options.samples) {
      return {ops.gaussian_kl(of.mu, of.logvar, of.prior_mu, of.prior_logvar, options.reduction)};
    }
    if (!options.kl) {
      if (!options.keeps) return {ops.reparameterize(of.mu, of.logvar, of.key, std::nullopt)};
      auto [z, kept] = ops.reparameterize_keeping(of.mu, of.logvar, of.key);
      slope = std::move(kept);
      return {z};
    }
    if (!options.keeps) {
      auto [z, kl] = ops.sample_and_kl(of.mu, of.logvar, of.prior_mu, of.prior_logvar, of.key,
                                       options.reduction);
      return {z, kl};
    }
    auto [z, kl, kept] = ops.sample_and_kl_keeping(of.mu, of.logvar, of.prior_mu, of.prior_logvar,
                                                   of.key, options.reduction);
    slope = std::move(kept);
    return {z, kl};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& upstream) {
    const variable_list saved = ctx->get_saved_variables();
    const Options options = Options::of(ctx->saved_data["options"].toInt());
    const size_t inputs = 2 + (options.prior ? 2 : 0) + (options.samples ? 1 : 0);
    variable_list result(kNumbers + inputs);
    const Tensor grad_z = options.samples ? upstream[0] : Tensor();
    const Tensor grad_kl = options.kl ? upstream.back() : Tensor();
    if (!grad_z.defined() && !grad_kl.defined()) return result;
    const Named of(options, saved);
    if (!is_usual_backward(upstream)) {
      asked_again(ctx, options, of, upstream, result);
      return result;
    }
    const BelowAutograd below;
    const GaussianOps& ops = gaussian_ops();
    const auto place = result.begin() + kNumbers;
    if (!options.kl && options.keeps) {
      place[0] = grad_z;
      place[1] = grad_z.mul(of.slope);
    } else if (!options.kl) {
      std::tie(place[0], place[1]) =
          ops.reparameterize_backward(grad_z.contiguous(), of.logvar, of.key, std::nullopt);
    } else {
      const Maybe z = contiguous(grad_z), kl = contiguous(grad_kl);
      // The noise comes from the key or from the slope.
      const Maybe slope = of.slope.defined() ? Maybe(of.slope) : Maybe();
      const Maybe key = of.key.defined() && !slope ? Maybe(of.key) : Maybe();
      if (options.prior && kl) {
        std::tie(place[0], place[1], place[2], place[3]) = ops.prior_backward(
            z, kl, of.mu, of.logvar, *of.prior_mu, *of.prior_logvar, key, slope, options.reduction);
      } else {
        std::tie(place[0], place[1]) =
            ops.backward(z, kl, of.mu, of.logvar, key, slope, options.reduction);
      }
    }
    return result;
  }

 private:
  static void asked_again(AutogradContext* ctx, const Options& options, const Named& of,
                          const variable_list& upstream, variable_list& result) {
    const variable_list found = from_python(gaussian_again, 5, [&] {
      py::tuple needs(5);
      for (size_t i = 0; i < 5; ++i) {
        const bool is_input = i < 2 || (i < 4 && options.prior);
        needs[i] = py::bool_(is_input && ctx->needs_input_grad(i));
      }
      const variable_list given = {of.mu, of.logvar, of.prior_mu.value_or(Tensor()),
                                   of.prior_logvar.value_or(Tensor()), of.key};
      return py::make_tuple(options.samples, options.kl, options.reduction, wrapped(given),
                            wrapped(upstream), needs);
    });
    for (size_t i = 0; i < (options.prior ? 4u : 2u); ++i) result[kNumbers + i] = found[i];
  }
};

// --- what Python calls ---------------------------------------------------------------------------

// The tensors of a call, or none of them if anything is unusual. `key` is a null pointer if there
// are no samples.
inline variable_list usual_gaussian(PyObject* mu_object, PyObject* logvar_object,
                                    PyObject* const* prior, PyObject* key_object,
                                    Gaussian::Options& options) {
  const Tensor *mu = usual(mu_object), *logvar = usual(logvar_object);
  if (mu == nullptr || logvar == nullptr || !is_usual_here() ||
      (kFloating & bit(mu->scalar_type())) == 0) {
    return {};
  }
  variable_list tensors;
  tensors.reserve(6);
  tensors.push_back(*mu);
  tensors.push_back(*logvar);
  if (prior != nullptr && (prior[0] != Py_None || prior[1] != Py_None)) {
    const Tensor *prior_mu = usual(prior[0]), *prior_logvar = usual(prior[1]);
    if (prior_mu == nullptr || prior_logvar == nullptr) return {};
    tensors.push_back(*prior_mu);
    tensors.push_back(*prior_logvar);
    options.prior = true;
  }
  for (const Tensor& t : tensors) {
    if (t.sizes() != mu->sizes() || t.scalar_type() != mu->scalar_type()) return {};
  }
  if (key_object == Py_None) {  // as vae_fast.noise.new_key draws it
    tensors.push_back(at::randint(INT64_MIN, INT64_MAX, {2}, at::kLong));
  } else if (key_object != nullptr) {
    const Tensor* key = usual(key_object);
    if (key == nullptr || key->scalar_type() != at::kLong || key->sizes() != at::IntArrayRef({2})) {
      return {};
    }
    tensors.push_back(*key);
  }
  return tensors;
}

inline variable_list gaussian_values(const variable_list& tensors, Gaussian::Options options,
                                     int64_t kept_bytes) {
  const py::gil_scoped_release released;
  if (asks_gradients(tensors)) {
    const Tensor& mu = tensors[0];
    options.keeps = options.samples && mu.element_size() >= 4 &&
                    int64_t(mu.numel() * mu.element_size()) <= kept_bytes;
    return Gaussian::apply(options.packed(), TensorList(tensors));
  }
  const BelowAutograd below;
  Tensor slope;
  return Gaussian::values(options, Gaussian::Named(options, tensors), slope);
}

// reparameterize(mu, logvar, key, kept bytes) -> z, or None where the call is unusual.
inline PyObject* reparameterize(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  TORCH_CHECK(count == 4, "vae_fast: reparameterize takes 4 arguments");
  Gaussian::Options options{true, false, false, false, 0};
  const variable_list tensors = usual_gaussian(args[0], args[1], nullptr, args[2], options);
  if (tensors.empty()) Py_RETURN_NONE;
  return THPVariable_Wrap(gaussian_values(tensors, options, PyLong_AsLong(args[3]))[0]);
  END_HANDLE_TH_ERRORS
}

// gaussian_kl(mu, logvar, prior_mu, prior_logvar, reduction) -> kl, or None.
inline PyObject* gaussian_kl(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  TORCH_CHECK(count == 5, "vae_fast: gaussian_kl takes 5 arguments");
  Gaussian::Options options{false, true, false, false, PyLong_AsLong(args[4])};
  const variable_list tensors = usual_gaussian(args[0], args[1], args + 2, nullptr, options);
  if (tensors.empty()) Py_RETURN_NONE;
  return THPVariable_Wrap(gaussian_values(tensors, options, 0)[0]);
  END_HANDLE_TH_ERRORS
}

// sample_and_kl(mu, logvar, prior_mu, prior_logvar, key, reduction, kept bytes) -> (z, kl), or None.
inline PyObject* sample_and_kl(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  TORCH_CHECK(count == 7, "vae_fast: sample_and_kl takes 7 arguments");
  Gaussian::Options options{true, true, false, false, PyLong_AsLong(args[5])};
  const variable_list tensors = usual_gaussian(args[0], args[1], args + 2, args[4], options);
  if (tensors.empty()) Py_RETURN_NONE;
  return wrapped(gaussian_values(tensors, options, PyLong_AsLong(args[6]))).release().ptr();
  END_HANDLE_TH_ERRORS
}

}  // namespace vae_fast::autograd
