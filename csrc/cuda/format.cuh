// Storage formats: how an element lies in memory, and how it becomes a number to compute with.
//
// A format has the compute type C, its size in bytes, the bits of its 1, and conversions in both
// directions between numbers and 32-bit words, as 16-byte accesses bring them.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <type_traits>

#include "cuda/launch.cuh"
#include "math/macros.h"
#include "ops/args.h"

namespace vae_fast::cuda {

struct F32 {
  using C = float;
  static constexpr int bytes = 4;
  static constexpr uint64_t one = 0x3f800000u;
  static VF_DEVICE C decode(const uint32_t* words, int k) { return __uint_as_float(words[k]); }
  // Elements k and k + 1, k even: a pair fills whole words in every format.
  static VF_DEVICE void encode(uint32_t* words, int k, C a, C b) {
    words[k] = __float_as_uint(a);
    words[k + 1] = __float_as_uint(b);
  }
};

struct F64 {
  using C = double;
  static constexpr int bytes = 8;
  static constexpr uint64_t one = 0x3ff0000000000000u;
  static VF_DEVICE C decode(const uint32_t* words, int k) {
    return __hiloint2double(static_cast<int>(words[2 * k + 1]), static_cast<int>(words[2 * k]));
  }
  static VF_DEVICE void encode(uint32_t* words, int k, C a, C b) {
    words[2 * k] = static_cast<uint32_t>(__double2loint(a));
    words[2 * k + 1] = static_cast<uint32_t>(__double2hiint(a));
    words[2 * k + 2] = static_cast<uint32_t>(__double2loint(b));
    words[2 * k + 3] = static_cast<uint32_t>(__double2hiint(b));
  }
};

struct BF16 {
  using C = float;
  static constexpr int bytes = 2;
  static constexpr uint64_t one = 0x3f80u;
  static VF_DEVICE C decode(const uint32_t* words, int k) {
    const uint32_t pair = words[k / 2];
    return __uint_as_float(k % 2 == 0 ? pair << 16 : pair & 0xffff0000u);
  }
  static VF_DEVICE void encode(uint32_t* words, int k, C a, C b) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(a, b);
    words[k / 2] = __bfloat16_as_ushort(__low2bfloat16(pair)) |
                   uint32_t{__bfloat16_as_ushort(__high2bfloat16(pair))} << 16;
  }
};

struct F16 {
  using C = float;
  static constexpr int bytes = 2;
  static constexpr uint64_t one = 0x3c00u;
  static VF_DEVICE C decode(const uint32_t* words, int k) {
    const uint32_t pair = words[k / 2];
    const uint32_t bits = k % 2 == 0 ? pair & 0xffffu : pair >> 16;
    return __half2float(__ushort_as_half(static_cast<unsigned short>(bits)));
  }
  static VF_DEVICE void encode(uint32_t* words, int k, C a, C b) {
    const __half2 pair = __floats2half2_rn(a, b);
    words[k / 2] =
        __half_as_ushort(__low2half(pair)) | uint32_t{__half_as_ushort(__high2half(pair))} << 16;
  }
};

// uint8 and bool: whole numbers, which their reader divides by 255 or by 1. Only read.
struct Byte {
  using C = float;
  static constexpr int bytes = 1;
  static constexpr uint64_t one = 1;
  static VF_DEVICE C decode(const uint32_t* words, int k) {
    return static_cast<float>((words[k / 4] >> (8 * (k % 4))) & 0xffu);
  }
};

// Calls f with the format of a floating dtype.
template <class F>
cudaError_t with_format(DType dtype, F&& f) {
  switch (dtype) {
    case DType::f32: return f(F32{});
    case DType::f64: return f(F64{});
    case DType::bf16: return f(BF16{});
    case DType::f16: return f(F16{});
    default: return cudaErrorInvalidValue;
  }
}

VF_FN constexpr int bytes_of(DType dtype) {
  switch (dtype) {
    case DType::f64: return 8;
    case DType::f32: return 4;
    case DType::bf16:
    case DType::f16: return 2;
    default: return 1;
  }
}

}  // namespace vae_fast::cuda
