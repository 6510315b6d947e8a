// The device side of the stand-in: see cuda_runtime_api.h beside this.
#pragma once

#include "cuda_runtime_api.h"
#include "emulation.h"

#include <cmath>
#include <cstring>
#include <functional>
#include <tuple>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
// All shared variables in one section: the emulation poisons it before each block.
#define __shared__ static __attribute__((section("emulated_shared")))

struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

namespace emulation {

cudaError_t run(dim3 grid, dim3 threads, const std::function<void()>& kernel);

template <class T>
T read(const T* p, Access access = Access::read) {
  T value{};
  if (check(p, sizeof(T), access)) std::memcpy(&value, p, sizeof(T));
  return value;
}

template <class T>
void write(T* p, const T& value) {
  if (check(p, sizeof(T), Access::write)) std::memcpy(p, &value, sizeof(T));
}

}  // namespace emulation

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
};

template <class... Params, class... Args>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Params...),
                               Args&&... args) {
  const std::tuple<Params...> values(static_cast<Args&&>(args)...);
  return emulation::run(config->gridDim, config->blockDim, [&] { std::apply(kernel, values); });
}

// Symbols of the device are the host's own variables. Those that are passed to kernels are counters.
cudaError_t emulated_symbol(void** address, void* symbol, size_t bytes);
template <class T>
cudaError_t cudaGetSymbolAddress(void** address, T& symbol) {
  return emulated_symbol(address, &symbol, sizeof(T));
}

inline void __syncthreads() { emulation::block_barrier(); }
inline void __trap() { emulation::trap(); }
inline void __threadfence() { emulation::fence(); }
inline unsigned atomicInc(unsigned* p, unsigned limit) { return emulation::atomic_inc(p, limit); }

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask) {
  uint64_t bits = 0;
  static_assert(sizeof(T) <= 8);
  std::memcpy(&bits, &value, sizeof(T));
  const int lane = static_cast<int>(threadIdx.x) % 32;
  bits = emulation::exchange(mask, bits, lane ^ lane_mask);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

template <class T>
T __ldg(const T* p) {
  return emulation::read(p, emulation::Access::read_only);
}
template <class T>
T __ldcs(const T* p) {
  return emulation::read(p);
}
template <class T>
T __ldcg(const T* p) {
  return emulation::read(p);
}
template <class T>
void __stcs(T* p, T value) {
  emulation::write(p, value);
}
template <class T>
void __stwb(T* p, T value) {
  emulation::write(p, value);
}

template <class To, class From>
To emulated_bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}
inline float __uint_as_float(unsigned x) { return emulated_bits<float>(x); }
inline unsigned __float_as_uint(float x) { return emulated_bits<unsigned>(x); }
inline double __hiloint2double(int high, int low) {
  return emulated_bits<double>(uint64_t{static_cast<uint32_t>(high)} << 32 |
                               static_cast<uint32_t>(low));
}
inline int __double2loint(double x) { return static_cast<int>(emulated_bits<uint64_t>(x)); }
inline int __double2hiint(double x) { return static_cast<int>(emulated_bits<uint64_t>(x) >> 32); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline double __fma_rn(double a, double b, double c) { return std::fma(a, b, c); }
