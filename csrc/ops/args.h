// The plain arguments of every op: what the torch bindings pass to a driver, on either device.
//
// No torch header and no CUDA header: the drivers in cpu/ and cuda/ are built from these alone.
// "Rows" are samples and "cols" the features of one sample. Tensors are contiguous, except a
// likelihood's parameters, which have strides.
#pragma once

#include <cstdint>

namespace vae_fast {

enum class DType : int { f32, f64, bf16, f16, u8, boolean, i8, i16, i32, i64 };

constexpr int64_t size_of(DType dtype) {
  constexpr int64_t sizes[] = {4, 8, 2, 2, 1, 1, 1, 2, 4, 8};
  return sizes[static_cast<int>(dtype)];
}

// The order is vae_fast/types.py's.
enum class Reduction : int { none, sum, batchmean };

// The order is vae_fast/types.py's. bytes: as they are; scale: float32, x / 255 (bool: 0 or 1);
// binarize: bool, Bernoulli(x / 255).
enum class GatherMode : int { bytes, scale, binarize };

// Sums and upstream gradients are double when the inputs are double, else float ("accumulators").

// A loss's upstream gradient. What reaches a part (recon or kl) of sample r is
//   scale * (weight * loss[r] + part[r]),  with r = 0 unless per_row,
// where a null pointer counts as 0, and `weight` is multiplied by *weight_tensor if that is given.
// With neither pointer the gradient is the known constant scale * weight.
struct Upstream {
  const void* loss = nullptr;
  const void* part = nullptr;
  double weight = 1.0;
  const float* weight_tensor = nullptr;
  double scale = 1.0;  // 1 / rows for batchmean
  bool per_row = false;
};

// z = mu + exp(logvar / 2) * eps and KL(N(mu, exp(logvar)) || prior), forward.
struct GaussianForward {
  DType dtype;  // of mu, logvar, the prior and z
  int64_t rows, cols;
  const void* mu;
  const void* logvar;
  const void* prior_mu = nullptr;  // null: the prior is N(0, 1)
  const void* prior_logvar = nullptr;
  const int64_t* key = nullptr;  // 2 elements on the device; null: no sampling
  int64_t num_samples = 1;
  void* z = nullptr;      // (num_samples, rows, cols), element i of it takes the key's normal i
  void* slope = nullptr;  // dz/dlogvar, like z, for a backward pass without noise; CPU only
  void* kl = nullptr;     // accumulator, (1) or (rows); null: no KL
  Reduction reduction = Reduction::sum;
};

struct GaussianBackward {
  DType dtype;
  int64_t rows, cols;
  const void* mu = nullptr;  // may be null when only sampling is differentiated
  const void* logvar;
  const void* prior_mu = nullptr;
  const void* prior_logvar = nullptr;
  const int64_t* key = nullptr;
  int64_t num_samples = 1;
  const void* grad_z = nullptr;  // (num_samples, rows, cols); null: z has no gradient
  const void* slope = nullptr;   // what forward kept of one sample, in place of the key; CPU only
  bool has_kl = false;           // whether kl has a gradient
  Upstream grad_kl;
  void* grad_mu;
  void* grad_logvar;
  void* grad_prior_mu = nullptr;  // both given exactly when the prior is
  void* grad_prior_logvar = nullptr;
};

// Where a parameter or its gradient lies: the element at (row, plane, i) of a problem is
// data[row * row_stride + plane * plane_stride + i * step]. A stride of 0 means that the rows (or
// the planes, or the elements) share one value.
struct Operand {
  void* data = nullptr;  // null for a gradient that is not wanted
  int64_t row = 0, plane = 0, step = 0;
};

constexpr int kMaxParams = 3;

// -log p(target | parameters) of one of the likelihoods: its value, its gradients, or both.
//
// The problem is rows of planes of `inner` elements; without a parameter per plane there is one
// plane. Row r's target is row r % target_rows: K sample sets have one target between them.
// A likelihood over planes has all planes of its one parameter at params[0] (`planes` of them), and
// its target is (target_rows, its number of targets, inner).
struct Likelihood {
  int id;       // its number in csrc/likelihoods/list.h
  DType dtype;  // of the parameters and their gradients
  DType target_dtype;
  int64_t rows, planes, inner;
  int64_t target_rows;
  Operand params[kMaxParams];
  Operand grads[kMaxParams];
  const void* target;
  void* nll = nullptr;  // accumulator, (1) or (rows); null: gradients only
  Reduction reduction = Reduction::sum;
  Upstream grad_nll;
};

// A likelihood + beta * KL to a standard normal, both in one pass.
struct Elbo {
  Likelihood recon;
  DType kl_dtype;  // of mu, logvar and their gradients
  int64_t kl_cols;
  const void* mu;
  const void* logvar;
  double beta = 1.0;
  const float* beta_tensor = nullptr;
  void* kl = nullptr;       // accumulators like recon.nll, all three null for gradients only
  void* loss = nullptr;     // accumulator dtype: recon's
  void* grad_mu = nullptr;  // gradients of the KL term alone; null: value only
  void* grad_logvar = nullptr;
  Upstream grad_kl;
};

// Rows of a data set of bytes by their index.
struct Gather {
  DType dtype;  // of data: u8 or boolean
  GatherMode mode;
  int64_t samples;     // rows of data
  int64_t rows, cols;  // of the batch
  const void* data;
  const int64_t* index;  // (rows), in [0, samples): the bindings check it where they can
  void* out;             // (rows, cols): data's bytes, float or bool
  // binarize: pixel i of the batch, in memory's order, takes the key's word first_row * cols + i.
  const int64_t* key = nullptr;
  int64_t first_row = 0;
  const int64_t* first_row_tensor = nullptr;  // added to it, if given: 1 element on the device
};

// The Euclidean norm of n float32 numbers. CPU only.
struct Norm {
  int64_t n;
  const float* x;
  float* out;
};

}  // namespace vae_fast
