// The device side of the stand-in: see cuda_runtime_api.h beside this.
#pragma once

#include "cuda_runtime_api.h"

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

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

extern dim3 threadIdx, blockIdx, blockDim, gridDim;  // of the fiber that runs

namespace emulation {

cudaError_t run(dim3 grid, dim3 threads, const std::function<void()>& kernel);
void block_barrier();
// Waits for the lanes of `mask` in the caller's warp; each gives 8 bytes and reads `source`'s.
uint64_t exchange(unsigned mask, uint64_t value, int source);
// Notes it as an error and ends the thread.
void trap();
// Whether an access is to memory that the test has declared; notes the first that is not.
bool check(const void* p, size_t bytes, bool write);

template <class T>
T read(const T* p) {
  T value{};
  if (check(p, sizeof(T), false)) std::memcpy(&value, p, sizeof(T));
  return value;
}

template <class T>
void write(T* p, const T& value) {
  if (check(p, sizeof(T), true)) std::memcpy(p, &value, sizeof(T));
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

inline void __syncthreads() { emulation::block_barrier(); }
inline void __trap() { emulation::trap(); }

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
  return emulation::read(p);
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
