// Arguments of the pairwise ops: sums over all pairs of a row i of one matrix and a row j of another.
//
// Matrices are contiguous (rows, dims). Sums and their gradients are float32, or float64 if the
// matrices are.
#pragma once

#include "ops/args.h"

namespace vae_fast {

// log sum_j w_ij N(z_i | mu_j, exp(logvar_j)) + offset, over all dimensions together (`whole`) and in
// each (`parts`); null: not wanted. w_ij is exp(logits_j), or 1 without logits, multiplied
// by `own` for j = i and by `next` for j = (i + 1) % terms.
struct PairDensity {
  DType dtype;
  int64_t rows, terms, dims;
  const void *z, *mu, *logvar, *logits;
  double own, next, offset;
  void *whole, *parts;  // (rows,), (rows, dims)
  double* state;        // (rows, state_size), sums for backward
};

// The state of a row: log2 of its sums, whole and parts, relative to the terms' upper bound.
constexpr int64_t state_size(int64_t dims, bool parts) { return 1 + (parts ? dims : 0); }

struct PairDensityBackward {
  PairDensity of;
  int64_t state_row;                    // elements of the state for each row
  const void *grad_whole, *grad_parts;  // null without an upstream gradient
  void *grad_z, *grad_mu, *grad_logvar, *grad_logits;
};

// Kernels of a squared distance, each a mean over `count` bandwidths h.
enum class PairKernel { rbf, imq };

// The squared maximum mean discrepancy of the rows of x and of y. With `upstream`, the gradient of
// that, the gradients of both.
struct Mmd {
  DType dtype;
  PairKernel kernel;
  bool unbiased;
  int64_t rows, others, dims, count;
  const void *x, *y;
  const double* bandwidths;
  void* value;
  const void* upstream;
  void *grad_x, *grad_y;  // null where not wanted
};

// For each row of `x`, the nearest row of `codes`; among equally near ones, the lowest.
struct NearestCode {
  DType dtype;
  int64_t rows, codes, dims;
  const void *x, *table;
  int64_t* index;
};

}  // namespace vae_fast
