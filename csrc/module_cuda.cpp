// The Python module vae_fast._C_cuda. Importing it loads the library, and that registers the CUDA
// kernels of the ops (library_cuda.cpp); it offers itself what it was built for, and a test hook.

#include <cuda_runtime_api.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <memory>
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

// The likelihoods that have CUDA kernels, and whether each reads half precision.
py::dict likelihoods() {
  const int count = vae_fast::cuda::likelihoods_on_cuda(nullptr, nullptr);
  const auto names = std::make_unique<const char*[]>(count);
  const auto reads_half = std::make_unique<bool[]>(count);
  vae_fast::cuda::likelihoods_on_cuda(names.get(), reads_half.get());
  py::dict found;
  for (int id = 0; id < count; ++id) found[names[id]] = static_cast<bool>(reads_half[id]);
  return found;
}

void check(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
}

struct DeviceFree {
  void operator()(void* p) const { cudaFree(p); }
};
using DeviceMemory = std::unique_ptr<void, DeviceFree>;

DeviceMemory device_memory(size_t bytes) {
  void* p = nullptr;
  check(cudaMalloc(&p, bytes));
  return DeviceMemory(p);
}

// On the current device's default stream, waited for: this is for tests.
py::array_t<uint32_t> random_words(int64_t key, int64_t stream, uint64_t block, int64_t blocks) {
  if (blocks < 0) throw std::invalid_argument("blocks must not be negative");
  py::array_t<uint32_t> words(4 * blocks);
  if (blocks == 0) return words;
  const int64_t keys[2] = {key, stream};
  const size_t bytes = 4 * static_cast<size_t>(blocks) * sizeof(uint32_t);
  const DeviceMemory device_key = device_memory(sizeof(keys)), device_words = device_memory(bytes);
  check(cudaMemcpy(device_key.get(), keys, sizeof(keys), cudaMemcpyHostToDevice));
  check(vae_fast::cuda::philox_words(static_cast<const int64_t*>(device_key.get()), block, blocks,
                                     static_cast<uint32_t*>(device_words.get()), nullptr));
  check(cudaMemcpy(words.mutable_data(), device_words.get(), bytes, cudaMemcpyDeviceToHost));
  return words;
}

}  // namespace

PYBIND11_MODULE(_C_cuda, module) {
  module.doc() = "CUDA kernels of vae_fast; importing it registers them with PyTorch.";
  module.def("build_info", &build_info,
             "The CUDA toolkit and the GPU architectures this library was built with and for.");
  module.def("likelihoods", &likelihoods,
             "The likelihoods that have CUDA kernels, and whether each reads half precision.");
  module.def("random_words", &random_words, py::arg("key"), py::arg("stream"), py::arg("block"),
             py::arg("blocks"),
             "The Philox words of `blocks` consecutive counters from `block` on, 4 each, made on "
             "the current GPU.");
}
