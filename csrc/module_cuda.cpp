// The Python module vae_fast._C_cuda. Importing it loads the library, and that registers the CUDA
// kernels of the ops (library_cuda.cpp); all it offers itself is what it was built for.

#include <cuda_runtime_api.h>
#include <pybind11/pybind11.h>

#ifndef VAE_FAST_CUDA_ARCHS
#error "setup.py defines VAE_FAST_CUDA_ARCHS, the GPU architectures compiled for"
#endif

PYBIND11_MODULE(_C_cuda, module) {
  module.doc() = "CUDA kernels of vae_fast; importing it registers them with PyTorch.";
  // Encoded as CUDA does it: 13000 is 13.0.
  module.attr("cuda_version") = CUDART_VERSION;
  // As in TORCH_CUDA_ARCH_LIST: "8.0;9.0+PTX".
  module.attr("architectures") = VAE_FAST_CUDA_ARCHS;
}
