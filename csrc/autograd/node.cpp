// vae_fast._C_autograd: the autograd node of a likelihood's usual call, in C++.
//
// At a thousand elements a node in Python costs several times as much as the kernel. This one does
// what _NLL and _Elbo in vae_fast/ops/likelihood.py do, for usual calls: parameters of the
// target's shape, contiguous, on the CPU; no tensor subclass, no mode, no transform. All else is
// left to Python: a call returns None, and what backward can't hand out it asks `again` for.
//
// Nodes are outside LibTorch's stable ABI, so this library serves the very torch it was built with,
// and nothing needs it (vae_fast/ops/node.py). Which likelihoods there are, and which dtypes their
// targets have, Python says.
#include <ATen/PythonTorchFunctionTLS.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/Dtype.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/python_variable.h>

#include <string>
#include <tuple>
#include <vector>

namespace {

namespace py = pybind11;
using at::Tensor;
using at::TensorList;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using Maybe = std::optional<Tensor>;

// An op of the library by its name and C++ signature; the schemas are in csrc/torch/likelihood.h.
template <class Signature>
struct Op {
  c10::TypedOperatorHandle<Signature> handle;

  explicit Op(const std::string& name)
      : handle(c10::Dispatcher::singleton()
                   .findSchemaOrThrow(("vae_fast::" + name).c_str(), "")
                   .typed<Signature>()) {}
  template <class... Args>
  auto operator()(const Args&... args) const {
    return handle.call(args...);
  }
};

struct Likelihood {
  std::string name;
  size_t params;
  uint64_t targets;  // a bit for each dtype that a target may have
  Op<Tensor(TensorList, const Tensor&, int64_t)> nll;
  Op<std::tuple<Tensor, std::vector<Tensor>>(TensorList, const Tensor&, int64_t, double, int64_t)>
      nll_with_grad;
  Op<std::tuple<Tensor, Tensor, Tensor>(TensorList, const Tensor&, const Tensor&, const Tensor&,
                                        double, const Maybe&, int64_t)>
      elbo;
  Op<std::tuple<Tensor, Tensor, Tensor, std::vector<Tensor>, Tensor, Tensor>(
      TensorList, const Tensor&, const Tensor&, const Tensor&, double, const Maybe&, int64_t, double,
      int64_t)>
      elbo_with_grad;

  Likelihood(const std::string& name, size_t params, uint64_t targets)
      : name(name),
        params(params),
        targets(targets),
        nll(name + "_nll"),
        nll_with_grad(name + "_nll_with_grad"),
        elbo(name + "_elbo"),
        elbo_with_grad(name + "_elbo_with_grad") {}
};

std::vector<Likelihood> likelihoods;
PyObject* again = nullptr;  // (name, options, saved, upstream, needs) -> gradients; see node.py
c10::DispatchKeySet plain_keys;

constexpr uint64_t bit(at::ScalarType dtype) { return uint64_t(1) << int(dtype); }
constexpr uint64_t kFloating = bit(at::kFloat) | bit(at::kDouble) | bit(at::kHalf) | bit(at::kBFloat16);

// --- what is usual -------------------------------------------------------------------------------

// No mode and no transform: nobody but autograd is between a call and its kernel. Autocast has
// nothing to say about our ops.
bool is_usual_here() {
  const auto local = c10::impl::tls_local_dispatch_key_set();
  return local.included_ == c10::default_included_set &&
         (local.excluded_ | c10::autocast_dispatch_keyset) == c10::default_excluded_set &&
         !at::impl::torch_function_mode_enabled();
}

bool is_usual(const Tensor& t) { return t.defined() && t.key_set() == plain_keys; }

// The tensor of a Python object, if a kernel can read its memory as it is; null for any other.
const Tensor* usual(PyObject* object) {
  if (!THPVariable_CheckExact(object)) return nullptr;
  const Tensor& t = THPVariable_Unpack(object);
  return is_usual(t) && t.is_contiguous() && !t._fw_grad(0).defined() ? &t : nullptr;
}

// --- the node ------------------------------------------------------------------------------------

// A node's data beside its tensors, in one number: each saved value costs an entry of a hash map.
struct Options {
  int64_t likelihood, reduction, wanted;  // wanted: bit j, whether parameter j has a gradient
  bool latent;                            // whether the KL is in

  int64_t packed() const { return ((likelihood << 2 | reduction) << 1 | int64_t(latent)) << 8 | wanted; }
  static Options of(int64_t packed) {
    return {packed >> 11, packed >> 9 & 3, packed & 255, (packed >> 8 & 1) != 0};
  }
};

// Gradients that were made for an upstream gradient of 1, for the real one. False where half
// precision has rounded them already.
bool rescale(std::vector<Tensor>& grads, const Tensor& upstream) {
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

py::object wrapped(const variable_list& tensors) {
  py::tuple result(tensors.size());
  for (size_t i = 0; i < tensors.size(); ++i) {
    PyObject* object = THPVariable_Wrap(tensors[i]);
    if (object == nullptr) throw python_error();
    result[i] = py::reinterpret_steal<py::object>(object);
  }
  return result;
}

// The gradients of the saved tensors, from Python.
variable_list asked_again(AutogradContext* ctx, const Options& options, double beta,
                          const variable_list& saved, const variable_list& upstream) {
  const py::gil_scoped_acquire held;
  py::tuple needs(saved.size());
  for (size_t i = 0; i < saved.size(); ++i) needs[i] = py::bool_(ctx->needs_input_grad(i));
  PyObject* result = PyObject_CallFunction(
      again, "sOdiOOO", likelihoods[options.likelihood].name.c_str(),
      options.latent ? Py_True : Py_False, beta, int(options.reduction), wrapped(saved).ptr(),
      wrapped(upstream).ptr(), needs.ptr());
  if (result == nullptr) {
    python_error error;
    error.persist();
    throw error;
  }
  const auto found = py::reinterpret_steal<py::tuple>(result);
  variable_list grads(saved.size());
  for (size_t i = 0; i < grads.size(); ++i) {
    const py::object grad = found[i];
    if (!grad.is_none()) grads[i] = THPVariable_Unpack(grad.ptr());
  }
  return grads;
}

// tensors: target, parameters; or target, mu, logvar, parameters. One value, or loss, recon and kl.
struct Loss : torch::autograd::Function<Loss> {
  static constexpr size_t kNumbers = 2;  // arguments of forward before the tensors

  static variable_list forward(AutogradContext* ctx, int64_t packed, double beta,
                               TensorList tensors) {
    const Options options = Options::of(packed);
    const Likelihood& of = likelihoods[options.likelihood];
    const c10::impl::ExcludeDispatchKeyGuard below(c10::autograd_dispatch_keyset_with_ADInplaceOrView);
    ctx->save_for_backward(tensors.vec());
    ctx->set_materialize_grads(false);
    ctx->saved_data["options"] = packed;
    if (options.latent) {
      auto [loss, recon, kl, grads, grad_mu, grad_logvar] =
          of.elbo_with_grad(tensors.slice(3), tensors[0], tensors[1], tensors[2], beta, Maybe(),
                            options.reduction, 1.0, options.wanted);
      grads.insert(grads.begin(), {grad_mu, grad_logvar});
      ctx->saved_data["grads"] = std::move(grads);
      ctx->saved_data["beta"] = beta;
      return {loss, recon, kl};
    }
    auto [value, grads] = of.nll_with_grad(tensors.slice(1), tensors[0], options.reduction, 1.0,
                                           options.wanted);
    ctx->saved_data["grads"] = std::move(grads);
    return {value};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& upstream) {
    const variable_list saved = ctx->get_saved_variables();  // which says if one was changed since
    const Options options = Options::of(ctx->saved_data["options"].toInt());
    variable_list result(kNumbers + saved.size());
    bool only_first = true;
    for (size_t i = 1; i < upstream.size(); ++i) only_first = only_first && !upstream[i].defined();
    if (only_first && !upstream[0].defined()) return result;

    // They are given away, once: whoever gets them may write to them.
    std::vector<Tensor> grads;
    const auto kept = ctx->saved_data.find("grads");
    if (kept != ctx->saved_data.end()) {
      grads = kept->second.toTensorVector();
      ctx->saved_data.erase(kept);
    }
    const bool hand_out = !grads.empty() && only_first && !at::GradMode::is_enabled() &&
                          is_usual(upstream[0]) && is_usual_here() && rescale(grads, upstream[0]);
    if (hand_out) {
      auto grad = grads.begin();
      auto place = result.begin() + kNumbers + 1;
      if (options.latent) place = std::move(grad, grad + 2, place), grad += 2;
      for (int64_t wanted = options.wanted; wanted != 0; wanted >>= 1, ++place) {
        if ((wanted & 1) != 0) *place = std::move(*grad++);
      }
      return result;
    }
    const double beta = options.latent ? ctx->saved_data["beta"].toDouble() : 1.0;
    variable_list made = asked_again(ctx, options, beta, saved, upstream);
    std::move(made.begin(), made.end(), result.begin() + kNumbers);
    return result;
  }
};

// --- what Python calls ---------------------------------------------------------------------------

// The tensors of a call, or none of them where anything is unusual.
variable_list usual_tensors(const Likelihood& of, PyObject* params, PyObject* target_object,
                            PyObject* const* latent, int64_t reduction, int64_t& wanted) {
  const bool is_list = PyList_Check(params);
  if ((!is_list && !PyTuple_Check(params)) || reduction == 0 || !is_usual_here()) return {};
  if (size_t(PySequence_Fast_GET_SIZE(params)) != of.params) return {};
  const Tensor* target = usual(target_object);
  if (target == nullptr || target->dim() < 2 || target->requires_grad() ||
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
  const bool grad_mode = at::GradMode::is_enabled();
  at::ScalarType dtype{};
  for (size_t j = 0; j < of.params; ++j) {
    const Tensor* p = usual(PySequence_Fast_GET_ITEM(params, j));
    if (p == nullptr || p->sizes() != target->sizes()) return {};
    if (j == 0) dtype = p->scalar_type();
    if (p->scalar_type() != dtype || (kFloating & bit(dtype)) == 0) return {};
    if (grad_mode && p->requires_grad()) wanted |= int64_t(1) << j;
    tensors.push_back(*p);
  }
  if (latent != nullptr && (dtype == at::kDouble) != is_double) return {};
  return tensors;
}

bool asks_gradients(const variable_list& tensors) {
  bool asked = false;
  for (const Tensor& t : tensors) asked = asked || t.requires_grad();
  return asked && at::GradMode::is_enabled();
}

// add(name, params, target dtypes) -> the likelihood's number.
PyObject* add(PyObject*, PyObject* args) {
  HANDLE_TH_ERRORS
  const char* name = nullptr;
  Py_ssize_t params = 0;
  PyObject* dtypes = nullptr;
  if (!PyArg_ParseTuple(args, "snO!", &name, &params, &PyTuple_Type, &dtypes)) return nullptr;
  TORCH_CHECK(params > 0 && params <= 8, "vae_fast: a likelihood has 1 to 8 parameters");
  uint64_t targets = 0;
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(dtypes); ++i) {
    PyObject* dtype = PyTuple_GET_ITEM(dtypes, i);
    TORCH_CHECK(THPDtype_Check(dtype), "vae_fast: dtypes must be dtypes");
    targets |= bit(reinterpret_cast<THPDtype*>(dtype)->scalar_type);
  }
  likelihoods.emplace_back(name, params, targets);
  return PyLong_FromSize_t(likelihoods.size() - 1);
  END_HANDLE_TH_ERRORS
}

PyObject* set_again(PyObject*, PyObject* function) {
  Py_INCREF(function);
  Py_XSETREF(again, function);
  Py_RETURN_NONE;
}

// nll(number, params, target, reduction) -> value, or None where the call is unusual.
PyObject* nll(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  TORCH_CHECK(count == 4, "vae_fast: nll takes 4 arguments");
  Options options{PyLong_AsLong(args[0]), PyLong_AsLong(args[3]), 0, false};
  const Likelihood& of = likelihoods.at(options.likelihood);
  const variable_list tensors =
      usual_tensors(of, args[1], args[2], nullptr, options.reduction, options.wanted);
  if (tensors.empty()) Py_RETURN_NONE;
  Tensor value;
  {
    const py::gil_scoped_release released;
    value = options.wanted != 0 ? Loss::apply(options.packed(), 1.0, TensorList(tensors))[0]
                                : of.nll(TensorList(tensors).slice(1), tensors[0], options.reduction);
  }
  return THPVariable_Wrap(std::move(value));
  END_HANDLE_TH_ERRORS
}

// elbo(number, params, target, mu, logvar, beta, reduction) -> (loss, recon, kl), or None.
PyObject* elbo(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  TORCH_CHECK(count == 7, "vae_fast: elbo takes 7 arguments");
  Options options{PyLong_AsLong(args[0]), PyLong_AsLong(args[6]), 0, true};
  if (!PyFloat_CheckExact(args[5]) && !PyLong_CheckExact(args[5])) Py_RETURN_NONE;
  const double beta = PyFloat_AsDouble(args[5]);
  if (PyErr_Occurred()) {  // beyond a float's range, which Python says in a sentence
    PyErr_Clear();
    Py_RETURN_NONE;
  }
  const Likelihood& of = likelihoods.at(options.likelihood);
  const variable_list tensors =
      usual_tensors(of, args[1], args[2], args + 3, options.reduction, options.wanted);
  if (tensors.empty()) Py_RETURN_NONE;
  variable_list losses;
  {
    const py::gil_scoped_release released;
    if (asks_gradients(tensors)) {
      losses = Loss::apply(options.packed(), beta, TensorList(tensors));
    } else {
      auto [loss, recon, kl] = of.elbo(TensorList(tensors).slice(3), tensors[0], tensors[1],
                                       tensors[2], beta, Maybe(), options.reduction);
      losses = {loss, recon, kl};
    }
  }
  return wrapped(losses).release().ptr();
  END_HANDLE_TH_ERRORS
}

PyMethodDef methods[] = {
    {"add", add, METH_VARARGS, "add(name, params, target dtypes): a likelihood's number."},
    {"set_again", set_again, METH_O, "What makes the gradients that a node can't hand out."},
    {"nll", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(nll)), METH_FASTCALL,
     "nll(number, params, target, reduction): the value, or None where the call is unusual."},
    {"elbo", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(elbo)), METH_FASTCALL,
     "elbo(number, params, target, mu, logvar, beta, reduction): (loss, recon, kl), or None."},
    {nullptr, nullptr, 0, nullptr}};

PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_C_autograd", "Autograd nodes in C++.", -1, methods,
                          nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__C_autograd() {
  PyObject* module = PyModule_Create(&definition);
  if (module == nullptr) return nullptr;
  try {
    plain_keys = at::empty({0}).key_set();
    // vae_fast/built.py has the same string: a library of other sources is not used.
    if (PyModule_AddStringConstant(module, "torch", VAE_FAST_BUILD_TORCH) == 0 &&
        PyModule_AddStringConstant(module, "interface", "add 3, set_again 1, nll 4, elbo 7") == 0) {
      return module;
    }
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_ImportError, error.what());
  }
  Py_DECREF(module);
  return nullptr;
}
