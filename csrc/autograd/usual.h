// What the nodes share: ops by name, what is usual, and the gradients that Python makes.
#pragma once

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

namespace vae_fast::autograd {

namespace py = pybind11;
using at::Tensor;
using at::TensorList;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using Maybe = std::optional<Tensor>;

// An op of the library by its name and C++ signature; the schemas are in csrc/torch.
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

// Calls of kernels within a node: below autograd.
struct BelowAutograd {
  c10::impl::ExcludeDispatchKeyGuard guard{c10::autograd_dispatch_keyset_with_ADInplaceOrView};
};

constexpr uint64_t bit(at::ScalarType dtype) { return uint64_t(1) << int(dtype); }
constexpr uint64_t kFloating =
    bit(at::kFloat) | bit(at::kDouble) | bit(at::kHalf) | bit(at::kBFloat16);

inline c10::DispatchKeySet plain_keys;  // of a tensor with nothing special about it

// No mode and no transform: nothing but autograd is between a call and its kernel. Autocast has
// nothing to say about our ops.
inline bool is_usual_here() {
  const auto local = c10::impl::tls_local_dispatch_key_set();
  return local.included_ == c10::default_included_set &&
         (local.excluded_ | c10::autocast_dispatch_keyset) == c10::default_excluded_set &&
         !at::impl::torch_function_mode_enabled();
}

inline bool is_usual(const Tensor& t) { return t.defined() && t.key_set() == plain_keys; }

// The tensor of a Python object if a kernel can read it directly; else null.
inline const Tensor* usual(PyObject* object) {
  if (!THPVariable_CheckExact(object)) return nullptr;
  const Tensor& t = THPVariable_Unpack(object);
  return is_usual(t) && t.is_contiguous() && !t._fw_grad(0).defined() ? &t : nullptr;
}

// Whether a backward may call kernels: nothing will be differentiated again, and upstream gradients,
// some of which may be absent, are plain tensors.
inline bool is_usual_backward(const variable_list& upstream) {
  if (at::GradMode::is_enabled() || !is_usual_here()) return false;
  for (const Tensor& grad : upstream) {
    if (grad.defined() && !is_usual(grad)) return false;
  }
  return true;
}

inline Maybe contiguous(const Tensor& t) { return t.defined() ? Maybe(t.contiguous()) : Maybe(); }

inline bool asks_gradients(const variable_list& tensors) {
  bool asked = false;
  for (const Tensor& t : tensors) asked = asked || t.requires_grad();
  return asked && at::GradMode::is_enabled();
}

// The tensors as a tuple, with None for undefined ones.
inline py::tuple wrapped(const variable_list& tensors) {
  py::tuple result(tensors.size());
  for (size_t i = 0; i < tensors.size(); ++i) {
    PyObject* object = THPVariable_Wrap(tensors[i]);
    if (object == nullptr) throw python_error();
    result[i] = py::reinterpret_steal<py::object>(object);
  }
  return result;
}

// Gradients from a Python function, called with the tuple that `arguments()` returns.
template <class Arguments>
variable_list from_python(PyObject* function, size_t count, const Arguments& arguments) {
  const py::gil_scoped_acquire held;
  PyObject* result = nullptr;
  {
    const py::tuple all = arguments();
    result = PyObject_CallObject(function, all.ptr());
  }
  if (result == nullptr) {
    python_error error;
    error.persist();
    throw error;
  }
  const auto found = py::reinterpret_steal<py::tuple>(result);
  variable_list grads(count);
  for (size_t i = 0; i < count; ++i) {
    const py::object grad = found[i];
    if (!grad.is_none()) grads[i] = THPVariable_Unpack(grad.ptr());
  }
  return grads;
}

inline py::tuple needs_of(const AutogradContext* ctx, size_t count) {
  py::tuple needs(count);
  for (size_t i = 0; i < count; ++i) needs[i] = py::bool_(ctx->needs_input_grad(i));
  return needs;
}

}  // namespace vae_fast::autograd
