// The step, at this level: The level that every machine runs: 16-byte vectors (SSE2 on x86-64, NEON on 64-bit Arm).
#include "cpu/prelude.h"

#define VF_LEVEL generic
#define VF_TABLE kGeneric
#define VF_BYTES 16
#include "cpu/simd.h"
#include "step/step.h"
namespace vae_fast::step {
const Kernels VF_TABLE = kernels<VF_LEVEL::Simd>();
}
