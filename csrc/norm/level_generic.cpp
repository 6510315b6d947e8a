// GroupNorm and SiLU, at this level: the level that every machine runs: 16-byte vectors (SSE2 on x86-64, NEON on 64-bit Arm).
#include "cpu/prelude.h"

#define VF_LEVEL generic
#define VF_TABLE kGeneric
#define VF_BYTES 16
#include "cpu/simd.h"
#include "norm/driver.h"
namespace vae_fast::norm {
const Drivers VF_TABLE = drivers_of<VF_LEVEL::Simd>();
}
