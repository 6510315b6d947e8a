// What every SIMD level needs, included before its `#pragma GCC target`: functions of the standard
// headers must not be compiled for an instruction set that the machine may lack, since the linker
// keeps one copy for all.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <new>
#include <type_traits>
#include <utility>

#if defined(__x86_64__) || defined(_M_X64)
#define VF_X86 1
#include <immintrin.h>
#endif

#include "cpu/drivers.h"
#include "math/macros.h"
#include "ops/args.h"

namespace vae_fast {

struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

}  // namespace vae_fast
