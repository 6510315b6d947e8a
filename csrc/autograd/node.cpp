// vae_fast._C_autograd: the autograd nodes of usual calls, in C++.
//
// At a thousand elements a node in Python costs several times as much as the kernel. These nodes do
// the same for usual calls: contiguous tensors on the CPU, of one dtype; no tensor subclass, no mode,
// no transform. Any other call returns None and goes on in Python. Gradients that backward can't
// compute come from a Python function.
//
// Nodes are outside LibTorch's stable ABI, so this library serves only the torch that it was built
// with, and is optional. Python passes the list of likelihoods and their targets' dtypes.
#include "autograd/gaussian.h"
#include "autograd/loss.h"

namespace {

using namespace vae_fast::autograd;

PyObject* set_again(PyObject*, PyObject* args) {
  PyObject *loss = nullptr, *gaussian = nullptr;
  if (!PyArg_ParseTuple(args, "OO", &loss, &gaussian)) return nullptr;
  Py_INCREF(loss);
  Py_INCREF(gaussian);
  Py_XSETREF(loss_again, loss);
  Py_XSETREF(gaussian_again, gaussian);
  Py_RETURN_NONE;
}

using Fast = PyObject* (*)(PyObject*, PyObject* const*, Py_ssize_t);

PyCFunction erased(Fast function) {
  return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function));
}

PyMethodDef methods[] = {
    {"add", add, METH_VARARGS,
     "add(name, params, planes, is_class, shares, target dtypes): a likelihood's number."},
    {"set_again", set_again, METH_VARARGS,
     "set_again(loss, gaussian): what makes the gradients that a node can't hand out."},
    {"nll", erased(nll), METH_FASTCALL,
     "nll(number, params, target, reduction): the value, or None where the call is unusual."},
    {"elbo", erased(elbo), METH_FASTCALL,
     "elbo(number, params, target, mu, logvar, beta, reduction): (loss, recon, kl), or None."},
    {"reparameterize", erased(reparameterize), METH_FASTCALL,
     "reparameterize(mu, logvar, key, kept_bytes): z, or None."},
    {"gaussian_kl", erased(gaussian_kl), METH_FASTCALL,
     "gaussian_kl(mu, logvar, prior_mu, prior_logvar, reduction): kl, or None."},
    {"sample_and_kl", erased(sample_and_kl), METH_FASTCALL,
     "sample_and_kl(mu, logvar, prior_mu, prior_logvar, key, reduction, kept_bytes): (z, kl), or None."},
    {nullptr, nullptr, 0, nullptr}};

PyModuleDef definition = {PyModuleDef_HEAD_INIT,
                          "_C_autograd",
                          "Autograd nodes in C++.",
                          -1,
                          methods,
                          nullptr,
                          nullptr,
                          nullptr,
                          nullptr};

// vae_fast/built.py has the same string: a library of other sources is not used.
constexpr char kInterface[] =
    "add 6, set_again 2, nll 4, elbo 7, reparameterize 4, gaussian_kl 5, sample_and_kl 7";

}  // namespace

PyMODINIT_FUNC PyInit__C_autograd() {
  PyObject* module = PyModule_Create(&definition);
  if (module == nullptr) return nullptr;
  try {
    plain_keys = at::empty({0}).key_set();
    if (PyModule_AddStringConstant(module, "torch", VAE_FAST_BUILD_TORCH) == 0 &&
        PyModule_AddStringConstant(module, "interface", kInterface) == 0) {
      return module;
    }
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_ImportError, error.what());
  }
  Py_DECREF(module);
  return nullptr;
}
