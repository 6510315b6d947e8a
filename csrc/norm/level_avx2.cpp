// GroupNorm and SiLU, at this level: the level of AVX2 with FMA and F16C: 32-byte vectors.
#include "cpu/prelude.h"

#if defined(VF_X86)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif

#define VF_LEVEL avx2
#define VF_TABLE kAvx2
#define VF_BYTES 32
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
