// The CPU drivers of GroupNorm and SiLU, a table for each SIMD level. Like the training step, they
// are compiled apart from the levels' other drivers, which take minutes.
#pragma once

#include "cpu/drivers.h"
#include "math/macros.h"
#include "norm/args.h"

namespace vae_fast::norm {

// The threads to work on, and their number. It changes which thread does what, and no bit.
struct Workers {
  const cpu::Threads& threads;
  int count;
};

struct Drivers {
  void (*forward)(const GroupNorm&, const Workers&);
  void (*backward)(const GroupNormBackward&, const Workers&);
};

extern const Drivers kFloat64;  // scalar code, whatever the level
extern const Drivers kGeneric;
#if defined(__x86_64__)
extern const Drivers kAvx2;
extern const Drivers kAvx512;
#endif

// The drivers of the level in use, and those for float64.
VF_FN const Drivers& drivers(DType dtype) {
  if (dtype == DType::f64) return kFloat64;
#if defined(__x86_64__)
  if (&cpu::level() == &cpu::kAvx512) return kAvx512;
  if (&cpu::level() == &cpu::kAvx2) return kAvx2;
#endif
  return kGeneric;
}

}  // namespace vae_fast::norm
