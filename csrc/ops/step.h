// The plain arguments of the kernels that a training step on a GPU needs in addition to its matrix
// products (see ops/args.h): for an MLP with a Gaussian latent, in float32.
#pragma once

#include <cstdint>

namespace vae_fast {

// z = mu + exp(logvar / 2) * eps. A row of `heads` is mu, then logvar, as one product gives both.
struct StepSample {
  int64_t rows, latent;
  const float* heads;  // (rows, 2 * latent)
  const int64_t* key;
  float* z;  // (rows, latent), element i of it takes the key's normal i
};

// The gradient of the heads: the loss's through z, and that of scale * beta * the rows' KL's sum.
struct StepSampleBackward {
  int64_t rows, latent;
  const float* heads;
  const int64_t* key;
  const float* grad_z;
  const float* beta;  // 1 element
  double scale;
  float* grad_heads;
};

constexpr int kMaxStepParts = 64;

// A range of the gradients: `count` of them from `begin` on. They exist already or, for a bias,
// they are the sums over the rows of `columns` (rows, count), which this call writes there.
struct StepPart {
  int64_t begin, count;
  const float* columns;
};

// Gradients of biases, the norm of all gradients, whether the step is taken, and the metrics' sums.
// vae_fast/train/guard.py has the rules by which steps are skipped.
struct StepDecide {
  int64_t rows, latent;
  int parts;
  StepPart part[kMaxStepParts];
  float* gradients;
  const float* recon;            // 1 element
  const float* heads = nullptr;  // null: there is no KL
  const float* beta;             // 1 element
  double clip;                   // larger norms are scaled down to this one; 0: none are
  double skip_above;             // norms above this times the usual one skip the step; 0: none does
  double patience;               // the most steps in a row that are skipped for their norm
  double settling;               // steps taken before the usual norm is trusted
  double followed;               // the least part of the way that the usual norm moves to a new one
  double beta1, beta2;           // of Adam
  float* usual;                  // mean of norms, steps taken, steps skipped in a row; changed
  float* steps;                  // taken by Adam; changed
  double* sums;                  // loss, recon, kl, samples; added to
  // Norm (NaN if the loss is not finite), 1 if skipped, the divisor of the gradients, and Adam's
  // 1 - beta1^steps and 1 - beta2^steps.
  float* outcome;
};

constexpr int kStepOutcomes = 5;

// Adam or AdamW, unless the step is skipped, and the moving average of the weights.
struct StepUpdate {
  int64_t n;
  float* weights;  // changed, like both moments and the average
  const float* gradients;
  float* first;
  float* second;
  float* average = nullptr;  // null: there is none
  const float* outcome;      // of StepDecide
  const float* lr;           // 1 element, as the next
  const float* average_weight;
  double beta1, beta2, eps, weight_decay;
  bool decoupled, maximize;
};

}  // namespace vae_fast
