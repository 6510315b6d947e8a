// The CPU drivers of one level, as a table of functions, and the thread pool that they run on.
#pragma once

#include <cstdint>

#include "ops/args.h"
#include "pairwise/args.h"
#include "step/plan.h"

namespace vae_fast::cpu {

// Runs body(context, begin, end) over [begin, end) in pieces, on the caller's thread pool.
struct Threads {
  using Body = void (*)(int64_t begin, int64_t end, void* context);
  void (*run)(int64_t begin, int64_t end, int64_t grain, Body body, void* context);
};

struct Pairwise {
  void (*density)(const PairDensity&, const Threads&);
  void (*density_backward)(const PairDensityBackward&, const Threads&);
  void (*mmd)(const Mmd&, const Threads&);
  void (*nearest_code)(const NearestCode&, const Threads&);
};

struct Level {
  const char* name;
  void (*gaussian_forward)(const GaussianForward&, const Threads&);
  void (*gaussian_backward)(const GaussianBackward&, const Threads&);
  void (*nll)(const Likelihood&, const Threads&);
  void (*elbo)(const Elbo&, const Threads&);
  void (*gather)(const Gather&, const Threads&);
  void (*norm)(const Norm&, const Threads&);
  // For tests: the Philox words of consecutive counters (block, block + 1, ...), 4 each.
  void (*random_words)(const int64_t key[2], uint64_t block, int64_t blocks, uint32_t* words);
  Pairwise pairwise;
  const step::Kernels* step;  // the training step
};

// float64 has one level on every machine. The float64 entries of the other levels point to it.
extern const Level kGeneric;
#if defined(__x86_64__)
extern const Level kAvx2;
extern const Level kAvx512;
#endif

// The level in use: the best this machine runs, unless VAE_FAST_CPU_CAPABILITY names one. Throws
// std::runtime_error listing the levels if it names one that is unknown or not supported here.
const Level& level();
// Makes `name` the level in use; throws as `level` does. For tests and benchmarks.
void use_level(const char* name);
// The levels that this machine runs, best last; a null name ends the list.
const char* const* supported_levels();

// float64 drivers: scalar code, whatever the level.
extern const Pairwise kPairwiseF64;
void gaussian_forward_f64(const GaussianForward&, const Threads&);
void gaussian_backward_f64(const GaussianBackward&, const Threads&);
void nll_f64(const Likelihood&, const Threads&);
void elbo_f64(const Elbo&, const Threads&);

}  // namespace vae_fast::cpu
