// The node of a likelihood: -log p, and -log p + beta * KL. It does what _NLL and _Elbo in
// vae_fast/ops/likelihood.py do.
#pragma once

#include "autograd/usual.h"

namespace vae_fast::autograd {

struct Likelihood {
  std::string name;
  size_t params;
  int64_t planes;    // values of the target at a position, of one tensor of planes; else 0
  bool is_class;     // of planes: the target has no dim for them
  bool shares;       // whether rows may share parameters
  uint64_t targets;  // a bit for each dtype that a target may have
  Op<Tensor(TensorList, const Tensor&, int64_t)> nll;
  Op<std::vector<Tensor>(const Tensor&, TensorList, const Tensor&, int64_t, int64_t)> nll_backward;
  Op<std::tuple<Tensor, std::vector<Tensor>>(TensorList, const Tensor&, int64_t, double, int64_t)>
      nll_with_grad;
  Op<std::tuple<Tensor, Tensor, Tensor>(TensorList, const Tensor&, const Tensor&, const Tensor&,
                                        double, const Maybe&, int64_t)>
      elbo;
  Op<std::tuple<std::vector<Tensor>, Tensor, Tensor>(
      const Maybe&, const Maybe&, const Maybe&, TensorList, const Tensor&, const Tensor&,
      const Tensor&, double, const Maybe&, int64_t, int64_t)>
      elbo_backward;
  Op<std::tuple<Tensor, Tensor, Tensor, std::vector<Tensor>, Tensor, Tensor>(
      TensorList, const Tensor&, const Tensor&, const Tensor&, double, const Maybe&, int64_t,
      double, int64_t)>
      elbo_with_grad;

  Likelihood(const std::string& name, size_t params, int64_t planes, bool is_class, bool shares,
             uint64_t targets)
      : name(name), params(params), planes(planes), is_class(is_class), shares(shares),
        targets(targets), nll(name + "_nll"), nll_backward(name + "_nll_backward"),
        nll_with_grad(name + "_nll_with_grad"), elbo(name + "_elbo"),
        elbo_backward(name + "_elbo_backward"), elbo_with_grad(name + "_elbo_with_grad") {}
};

inline std::vector<Likelihood> likelihoods;
// (name, latent, beta, reduction, saved, upstream, needs) -> gradients; ops/likelihood.py has it.
inline PyObject* loss_again = nullptr;

// A node's data besides its tensors, in one number: each saved value costs an entry of a hash map.
struct Options {
  int64_t likelihood, reduction, wanted;  // wanted: bit j, whether parameter j has a gradient
  bool latent;                            // whether the KL is in
  int64_t cut = 0;                        // where parameters are shared: see cut_of

  int64_t packed() const {
    return (((likelihood << 4 | cut) << 2 | reduction) << 1 | int64_t(latent)) << 8 | wanted;
  }
  static Options of(int64_t packed) {
    return {packed >> 15, packed >> 9 & 3, packed & 255, (packed >> 8 & 1) != 0, packed >> 11 & 15};
  }
};

constexpr int64_t kMaxDims = 15;

// --- parameters that rows share ------------------------------------------------------------------

// A parameter's size in the target's dim d: 1 where it has no such dim.
inline int64_t size_in(const Tensor& p, const Tensor& target, int64_t d) {
  const int64_t own = d - (target.dim() - p.dim());
  return own < 0 ? 1 : p.size(own);
}

// Whether the parameter is whole in the target's dims [from, to), or one value.
inline bool is_uniform(const Tensor& p, const Tensor& target, int64_t from, int64_t to) {
  bool whole = true, one = true;
  for (int64_t d = from; d < to; ++d) {
    if (target.size(d) == 1) continue;
    const int64_t size = size_in(p, target, d);
    whole = whole && size == target.size(d);
    one = one && size == 1;
  }
  return whole || one;
}

// A cut of the target's features into dims [1, cut) and [cut, dims): on each side of it every parameter
// has the target's sizes, or is all ones. 0 if there is no such cut, if a parameter does not broadcast,
// or if there are more than kMaxDims dims.
inline int64_t cut_of(TensorList params, const Tensor& target) {
  const int64_t dims = target.dim();
  if (dims > kMaxDims) return 0;
  for (const Tensor& p : params) {
    if (p.dim() > dims) return 0;
    for (int64_t d = 0; d < dims; ++d) {
      const int64_t size = size_in(p, target, d);
      if (size != 1 && size != target.size(d)) return 0;
    }
  }
  for (int64_t cut = 1; cut < dims; ++cut) {
    bool fits = true;
    for (const Tensor& p : params) {
      fits = fits && is_uniform(p, target, 1, cut) && is_uniform(p, target, cut, dims);
    }
    if (fits) return cut;
  }
  return 0;
}

// Target and parameters as the kernels read them: (N, C, P), and (N or 1, C or 1, P or 1).
struct Views {
  Tensor target;
  std::vector<Tensor> params;

  // The parameters follow the target and, with a latent, mu and logvar.
  Views(TensorList tensors, const Options& options) : target(tensors[0]) {
    const TensorList given = tensors.slice(options.latent ? 3 : 1);
    params.reserve(given.size());
    for (const Tensor& p : given) params.push_back(cut_at(p, tensors[0], options.cut));
    target = cut_at(target, target, options.cut);
  }

  // The parameters' gradients in the parameters' own shapes.
  static void reshape(std::vector<Tensor>& grads, TensorList params, const Options& options) {
    if (options.cut == 0) return;
    size_t next = 0;
    for (size_t j = 0; j < params.size(); ++j) {
      if ((options.wanted >> j & 1) == 0) continue;
      // Fresh memory of the node's own, as dense as the parameter.
      grads[next++].unsafeGetTensorImpl()->set_sizes_contiguous(params[j].sizes());
    }
  }

 private:
  static Tensor cut_at(const Tensor& t, const Tensor& target, int64_t cut) {
    if (cut == 0) return t;
    int64_t sizes[3] = {size_in(t, target, 0), 1, 1};
    for (int64_t d = 1; d < target.dim(); ++d) sizes[d < cut ? 1 : 2] *= size_in(t, target, d);
    return t.view(at::IntArrayRef(sizes, 3));
  }
};

// --- the node ------------------------------------------------------------------------------------

// Gradients that were made for an upstream gradient of 1, for the real one. False where half
// precision has rounded them already.
inline bool rescale(std::vector<Tensor>& grads, const Tensor& upstream) {
  const double factor = upstream.scalar_type() == at::kDouble
                            ? *upstream.const_data_ptr<double>()
                            : double(*upstream.const_data_ptr<float>());
  if (factor == 1.0) return true;
  for (const Tensor& grad : grads) {
    if (grad.element_size() < 4) return false;
  }
  for (Tensor& grad : grads) grad.mul_(factor);
  return true;
}

// tensors: target, parameters; or target, mu, logvar, parameters. One value, or loss, recon and kl.
struct Loss : torch::autograd::Function<Loss> {
  static constexpr size_t kNumbers = 2;  // arguments of forward before the tensors

  static variable_list forward(AutogradContext* ctx, int64_t packed, double beta,
                               TensorList tensors) {
    const Options options = Options::of(packed);
    const Likelihood& of = likelihoods[options.likelihood];
    const BelowAutograd below;
    ctx->save_for_backward(tensors.vec());
    ctx->set_materialize_grads(false);
    ctx->saved_data["options"] = packed;
    if (options.latent) ctx->saved_data["beta"] = beta;
    const Views views(tensors, options);
    if (options.reduction == 0) {  // a gradient for each row is only known in backward
      if (!options.latent) return {of.nll(views.params, views.target, 0)};
      auto [loss, recon, kl] =
          of.elbo(views.params, views.target, tensors[1], tensors[2], beta, Maybe(), 0);
      return {loss, recon, kl};
    }
    if (options.latent) {
      auto [loss, recon, kl, grads, grad_mu, grad_logvar] =
          of.elbo_with_grad(views.params, views.target, tensors[1], tensors[2], beta, Maybe(),
                            options.reduction, 1.0, options.wanted);
      Views::reshape(grads, tensors.slice(3), options);
      grads.insert(grads.begin(), {grad_mu, grad_logvar});
      ctx->saved_data["grads"] = std::move(grads);
      return {loss, recon, kl};
    }
    auto [value, grads] =
        of.nll_with_grad(views.params, views.target, options.reduction, 1.0, options.wanted);
    Views::reshape(grads, tensors.slice(1), options);
    ctx->saved_data["grads"] = std::move(grads);
    return {value};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& upstream) {
    const variable_list saved = ctx->get_saved_variables();  // which says if one was changed since
    const Options options = Options::of(ctx->saved_data["options"].toInt());
    const double beta = options.latent ? ctx->saved_data["beta"].toDouble() : 1.0;
    variable_list result(kNumbers + saved.size());
    bool only_first = upstream[0].defined(), any = upstream[0].defined();
    for (size_t i = 1; i < upstream.size(); ++i) {
      only_first = only_first && !upstream[i].defined();
      any = any || upstream[i].defined();
    }
    if (!any) return result;

    // The gradients are handed out once: the receiver may write to them.
    std::vector<Tensor> grads;
    const auto kept = ctx->saved_data.find("grads");
    if (kept != ctx->saved_data.end()) {
      grads = kept->second.toTensorVector();
      ctx->saved_data.erase(kept);
    }
    if (!is_usual_backward(upstream)) {
      variable_list made = asked_again(ctx, options, beta, saved, upstream);
      std::move(made.begin(), made.end(), result.begin() + kNumbers);
      return result;
    }
    const BelowAutograd below;
    if (grads.empty() || !only_first || !rescale(grads, upstream[0])) {
      grads = made_again(options, beta, saved, upstream);
    }
    auto grad = grads.begin();
    auto place = result.begin() + kNumbers + 1;
    if (options.latent) {
      // An unused output sends no gradient, as in plain PyTorch.
      const bool has_kl = upstream[0].defined() || upstream[2].defined();
      if (has_kl) std::move(grad, grad + 2, place);
      grad += 2, place += 2;
      if (!upstream[0].defined() && !upstream[1].defined()) return result;
    }
    for (int64_t wanted = options.wanted; wanted != 0; wanted >>= 1, ++place) {
      if ((wanted & 1) != 0) *place = std::move(*grad++);
    }
    return result;
  }

 private:
  static std::vector<Tensor> made_again(const Options& options, double beta,
                                        const variable_list& saved, const variable_list& upstream) {
    const Likelihood& of = likelihoods[options.likelihood];
    const Views views(saved, options);
    if (!options.latent) {
      std::vector<Tensor> grads = of.nll_backward(upstream[0].contiguous(), views.params,
                                                  views.target, options.reduction, options.wanted);
      Views::reshape(grads, TensorList(saved).slice(1), options);
      return grads;
    }
    auto [grads, grad_mu, grad_logvar] = of.elbo_backward(
        contiguous(upstream[0]), contiguous(upstream[1]), contiguous(upstream[2]), views.params,
        views.target, saved[1], saved[2], beta, Maybe(), options.reduction, options.wanted);
    Views::reshape(grads, TensorList(saved).slice(3), options);
    grads.insert(grads.begin(), {grad_mu, grad_logvar});
    return grads;
  }

  static variable_list asked_again(AutogradContext* ctx, const Options& options, double beta,
                                   const variable_list& saved, const variable_list& upstream) {
    return from_python(loss_again, saved.size(), [&] {
      return py::make_tuple(likelihoods[options.likelihood].name, options.latent, beta,
                            options.reduction, wrapped(saved), wrapped(upstream),
                            needs_of(ctx, saved.size()));
    });
  }
};

// --- what Python calls ---------------------------------------------------------------------------

inline bool fits_planes(const Likelihood& of, const Tensor& planes, const Tensor& target) {
  const int64_t own = of.is_class ? 0 : 1;  // the target's dims for the planes'
  if (planes.dim() < 2 || planes.dim() != target.dim() + 1 - own) return false;
  if (!of.is_class && target.size(1) != of.planes) return false;
  bool fits = planes.size(0) == target.size(0);
  for (int64_t d = 2; fits && d < planes.dim(); ++d)
    fits = planes.size(d) == target.size(d - 1 + own);
  return fits;
}

// The tensors of a call, or none of them if anything is unusual.
inline variable_list usual_tensors(Options& options, PyObject* params, PyObject* target_object,
                                   PyObject* const* latent) {
  const Likelihood& of = likelihoods.at(options.likelihood);
  const bool is_list = PyList_Check(params);
  if ((!is_list && !PyTuple_Check(params)) || !is_usual_here()) return {};
  if (size_t(PySequence_Fast_GET_SIZE(params)) != of.params) return {};
  const Tensor* target = usual(target_object);
  if (target == nullptr || target->dim() < (of.planes == 0 ? 2 : 1) || target->requires_grad() ||
      (of.targets & bit(target->scalar_type())) == 0) {
    return {};
  }
  variable_list tensors;
  tensors.reserve(3 + of.params);
  tensors.push_back(*target);
  bool is_double = false;
  if (latent != nullptr) {
    const Tensor *mu = usual(latent[0]), *logvar = usual(latent[1]);
    if (mu == nullptr || logvar == nullptr || mu->dim() < 2 || mu->size(0) != target->size(0) ||
        mu->sizes() != logvar->sizes() || mu->scalar_type() != logvar->scalar_type() ||
        (kFloating & bit(mu->scalar_type())) == 0) {
      return {};
    }
    is_double = mu->scalar_type() == at::kDouble;
    tensors.push_back(*mu);
    tensors.push_back(*logvar);
  }
  const size_t first = tensors.size();
  const bool grad_mode = at::GradMode::is_enabled();
  at::ScalarType dtype{};
  bool whole = true;
  for (size_t j = 0; j < of.params; ++j) {
    const Tensor* p = usual(PySequence_Fast_GET_ITEM(params, j));
    if (p == nullptr) return {};
    whole = whole && p->sizes() == target->sizes();
    if (j == 0) dtype = p->scalar_type();
    if (p->scalar_type() != dtype || (kFloating & bit(dtype)) == 0) return {};
    if (grad_mode && p->requires_grad()) options.wanted |= int64_t(1) << j;
    tensors.push_back(*p);
  }
  if (latent != nullptr && (dtype == at::kDouble) != is_double) return {};
  if (of.planes > 0) {
    if (!fits_planes(of, tensors[first], *target)) return {};
  } else if (!whole) {
    if (of.shares) options.cut = cut_of(TensorList(tensors).slice(first), *target);
    if (options.cut == 0) return {};
  }
  return tensors;
}

// add(name, params, planes, is_class, shares, target dtypes) -> the likelihood's number.
inline PyObject* add(PyObject*, PyObject* args) {
  HANDLE_TH_ERRORS
  const char* name = nullptr;
  Py_ssize_t params = 0, planes = 0;
  int is_class = 0, shares = 0;
  PyObject* dtypes = nullptr;
  if (!PyArg_ParseTuple(args, "snnppO!", &name, &params, &planes, &is_class, &shares, &PyTuple_Type,
                        &dtypes)) {
    return nullptr;
  }
  TORCH_CHECK(params > 0 && params <= 8, "vae_fast: a likelihood has 1 to 8 parameters");
  uint64_t targets = 0;
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(dtypes); ++i) {
    PyObject* dtype = PyTuple_GET_ITEM(dtypes, i);
    TORCH_CHECK(THPDtype_Check(dtype), "vae_fast: dtypes must be dtypes");
    targets |= bit(reinterpret_cast<THPDtype*>(dtype)->scalar_type);
  }
  likelihoods.emplace_back(name, params, planes, is_class != 0, shares != 0, targets);
  return PyLong_FromSize_t(likelihoods.size() - 1);
  END_HANDLE_TH_ERRORS
}

// nll(number, params, target, reduction) -> value, or None where the call is unusual.
inline PyObject* nll(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  TORCH_CHECK(count == 4, "vae_fast: nll takes 4 arguments");
  Options options{PyLong_AsLong(args[0]), PyLong_AsLong(args[3]), 0, false};
  const variable_list tensors = usual_tensors(options, args[1], args[2], nullptr);
  if (tensors.empty()) Py_RETURN_NONE;
  Tensor value;
  {
    const py::gil_scoped_release released;
    if (options.wanted != 0) {
      value = Loss::apply(options.packed(), 1.0, TensorList(tensors))[0];
    } else {
      const BelowAutograd below;
      const Views views(tensors, options);
      value = likelihoods[options.likelihood].nll(views.params, views.target, options.reduction);
    }
  }
  return THPVariable_Wrap(std::move(value));
  END_HANDLE_TH_ERRORS
}

// elbo(number, params, target, mu, logvar, beta, reduction) -> (loss, recon, kl), or None.
inline PyObject* elbo(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  TORCH_CHECK(count == 7, "vae_fast: elbo takes 7 arguments");
  Options options{PyLong_AsLong(args[0]), PyLong_AsLong(args[6]), 0, true};
  if (!PyFloat_CheckExact(args[5]) && !PyLong_CheckExact(args[5])) Py_RETURN_NONE;
  const double beta = PyFloat_AsDouble(args[5]);
  if (PyErr_Occurred()) {  // beyond a float's range: the node in Python raises a clear error
    PyErr_Clear();
    Py_RETURN_NONE;
  }
  const variable_list tensors = usual_tensors(options, args[1], args[2], args + 3);
  if (tensors.empty()) Py_RETURN_NONE;
  variable_list losses;
  {
    const py::gil_scoped_release released;
    if (asks_gradients(tensors)) {
      losses = Loss::apply(options.packed(), beta, TensorList(tensors));
    } else {
      const BelowAutograd below;
      const Views views(tensors, options);
      auto [loss, recon, kl] = likelihoods[options.likelihood].elbo(
          views.params, views.target, tensors[1], tensors[2], beta, Maybe(), options.reduction);
      losses = {loss, recon, kl};
    }
  }
  return wrapped(losses).release().ptr();
  END_HANDLE_TH_ERRORS
}

}  // namespace vae_fast::autograd
