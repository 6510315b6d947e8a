// The Python module vae_fast._C_cuda. Importing it loads the library, and that registers the CUDA
// kernels of the ops (library_cuda.cpp); it offers itself what it was built for, and a test hook.

#include <cuda_runtime_api.h>
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "cuda/drivers.h"

#ifndef VAE_FAST_CUDA_ARCHS
#error "setup.py defines VAE_FAST_CUDA_ARCHS, the GPU architectures compiled for"
#endif

namespace py = pybind11;

namespace {

py::dict build_info() {
  // CUDART_VERSION is 13000 for CUDA 13.0 and 12090 for CUDA 12.9.
  constexpr int version = CUDART_VERSION;
  py::dict info;
  info["toolkit"] = std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
  info["architectures"] = VAE_FAST_CUDA_ARCHS;  // as in TORCH_CUDA_ARCH_LIST: "8.0;9.0+PTX"
  return info;
}

// Addresses, not tensors: this source includes no torch header.
void random_words(intptr_t key, intptr_t words, int64_t n, intptr_t stream) {
  const cudaError_t error = vae_fast::cuda::philox_words(
      reinterpret_cast<const int64_t*>(key), reinterpret_cast<uint32_t*>(words), n,
      reinterpret_cast<cudaStream_t>(stream));
  if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
}

}  // namespace

PYBIND11_MODULE(_C_cuda, module) {
  module.doc() = "CUDA kernels of vae_fast; importing it registers them with PyTorch.";
  module.def("build_info", &build_info,
             "The CUDA toolkit and the GPU architectures this library was built with and for.");
  module.def("random_words", &random_words, py::arg("key"), py::arg("words"), py::arg("n"),
             py::arg("stream"),
             "For tests: queues on `stream` the writing of the key's first `n` Philox words to "
             "`words` (uint32). All are addresses; key and words lie on the current device.");
}
