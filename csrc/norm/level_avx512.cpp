// GroupNorm and SiLU, at this level: the level of AVX-512 (F, BW, DQ, VL): 64-byte vectors.
#include "cpu/prelude.h"

#if defined(VF_X86)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#endif

#define VF_LEVEL avx512
#define VF_TABLE kAvx512
#define VF_BYTES 64
#include "cpu/simd.h"
#include "norm/driver.h"
namespace vae_fast::norm {
const Drivers VF_TABLE = drivers_of<VF_LEVEL::Simd>();
}

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
