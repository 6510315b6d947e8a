// The fields of the structs in args.h, in order, for tools outside of C++ that need their layout. Struct
// by struct: BEGIN(struct), FIELD(struct, field)..., END(struct).
#pragma once

#include "norm/args.h"
#include "ops/args.h"
#include "ops/step.h"

#define VF_ARGS(BEGIN, FIELD, END)                                                               \
  BEGIN(Upstream)                                                                                \
  FIELD(Upstream, loss) FIELD(Upstream, part) FIELD(Upstream, weight)                            \
  FIELD(Upstream, weight_tensor) FIELD(Upstream, scale) FIELD(Upstream, per_row)                 \
  END(Upstream)                                                                                  \
  BEGIN(GaussianForward)                                                                         \
  FIELD(GaussianForward, dtype) FIELD(GaussianForward, rows) FIELD(GaussianForward, cols)        \
  FIELD(GaussianForward, mu) FIELD(GaussianForward, logvar) FIELD(GaussianForward, prior_mu)     \
  FIELD(GaussianForward, prior_logvar) FIELD(GaussianForward, key)                               \
  FIELD(GaussianForward, num_samples) FIELD(GaussianForward, z) FIELD(GaussianForward, slope)    \
  FIELD(GaussianForward, kl) FIELD(GaussianForward, reduction)                                   \
  END(GaussianForward)                                                                           \
  BEGIN(GaussianBackward)                                                                        \
  FIELD(GaussianBackward, dtype) FIELD(GaussianBackward, rows) FIELD(GaussianBackward, cols)     \
  FIELD(GaussianBackward, mu) FIELD(GaussianBackward, logvar) FIELD(GaussianBackward, prior_mu)  \
  FIELD(GaussianBackward, prior_logvar) FIELD(GaussianBackward, key)                             \
  FIELD(GaussianBackward, num_samples) FIELD(GaussianBackward, grad_z)                           \
  FIELD(GaussianBackward, slope) FIELD(GaussianBackward, has_kl)                                 \
  FIELD(GaussianBackward, grad_kl)                                                               \
  FIELD(GaussianBackward, grad_mu) FIELD(GaussianBackward, grad_logvar)                          \
  FIELD(GaussianBackward, grad_prior_mu) FIELD(GaussianBackward, grad_prior_logvar)              \
  END(GaussianBackward)                                                                          \
  BEGIN(Operand)                                                                                 \
  FIELD(Operand, data) FIELD(Operand, row) FIELD(Operand, plane) FIELD(Operand, step)            \
  END(Operand)                                                                                   \
  BEGIN(Likelihood)                                                                              \
  FIELD(Likelihood, id) FIELD(Likelihood, dtype) FIELD(Likelihood, target_dtype)                 \
  FIELD(Likelihood, rows) FIELD(Likelihood, planes) FIELD(Likelihood, inner)                     \
  FIELD(Likelihood, target_rows) FIELD(Likelihood, params) FIELD(Likelihood, grads)              \
  FIELD(Likelihood, target) FIELD(Likelihood, nll) FIELD(Likelihood, reduction)                  \
  FIELD(Likelihood, grad_nll)                                                                    \
  END(Likelihood)                                                                                \
  BEGIN(Elbo)                                                                                    \
  FIELD(Elbo, recon) FIELD(Elbo, kl_dtype) FIELD(Elbo, kl_cols) FIELD(Elbo, mu)                  \
  FIELD(Elbo, logvar) FIELD(Elbo, beta) FIELD(Elbo, beta_tensor) FIELD(Elbo, kl)                 \
  FIELD(Elbo, loss) FIELD(Elbo, grad_mu) FIELD(Elbo, grad_logvar) FIELD(Elbo, grad_kl)           \
  END(Elbo)                                                                                      \
  BEGIN(Gather)                                                                                  \
  FIELD(Gather, dtype) FIELD(Gather, mode) FIELD(Gather, samples) FIELD(Gather, rows)            \
  FIELD(Gather, cols) FIELD(Gather, data) FIELD(Gather, index) FIELD(Gather, out)                \
  FIELD(Gather, key) FIELD(Gather, first_row) FIELD(Gather, first_row_tensor)                    \
  END(Gather)                                                                                    \
  BEGIN(GroupNorm)                                                                               \
  FIELD(GroupNorm, dtype) FIELD(GroupNorm, channels_last) FIELD(GroupNorm, silu)                 \
  FIELD(GroupNorm, rows)                                                                         \
  FIELD(GroupNorm, channels) FIELD(GroupNorm, groups) FIELD(GroupNorm, inner)                    \
  FIELD(GroupNorm, eps) FIELD(GroupNorm, x) FIELD(GroupNorm, weight)                             \
  FIELD(GroupNorm, bias) FIELD(GroupNorm, y) FIELD(GroupNorm, mean)                              \
  FIELD(GroupNorm, rstd)                                                                         \
  END(GroupNorm)                                                                                 \
  BEGIN(GroupNormBackward)                                                                       \
  FIELD(GroupNormBackward, dtype) FIELD(GroupNormBackward, channels_last)                        \
  FIELD(GroupNormBackward, silu)                                                                 \
  FIELD(GroupNormBackward, rows) FIELD(GroupNormBackward, channels)                              \
  FIELD(GroupNormBackward, groups) FIELD(GroupNormBackward, inner)                               \
  FIELD(GroupNormBackward, x) FIELD(GroupNormBackward, weight)                                   \
  FIELD(GroupNormBackward, bias) FIELD(GroupNormBackward, mean)                                  \
  FIELD(GroupNormBackward, rstd) FIELD(GroupNormBackward, grad_y)                                \
  FIELD(GroupNormBackward, grad_x) FIELD(GroupNormBackward, grad_weight)                         \
  FIELD(GroupNormBackward, grad_bias)                                                            \
  END(GroupNormBackward)                                                                         \
  BEGIN(StepSample)                                                                              \
  FIELD(StepSample, rows) FIELD(StepSample, latent) FIELD(StepSample, heads)                     \
  FIELD(StepSample, key) FIELD(StepSample, z)                                                    \
  END(StepSample)                                                                                \
  BEGIN(StepSampleBackward)                                                                      \
  FIELD(StepSampleBackward, rows) FIELD(StepSampleBackward, latent)                              \
  FIELD(StepSampleBackward, heads) FIELD(StepSampleBackward, key)                                \
  FIELD(StepSampleBackward, grad_z) FIELD(StepSampleBackward, beta)                              \
  FIELD(StepSampleBackward, scale) FIELD(StepSampleBackward, grad_heads)                         \
  END(StepSampleBackward)                                                                        \
  BEGIN(StepPart)                                                                                \
  FIELD(StepPart, begin) FIELD(StepPart, count) FIELD(StepPart, columns)                         \
  END(StepPart)                                                                                  \
  BEGIN(StepDecide)                                                                              \
  FIELD(StepDecide, rows) FIELD(StepDecide, latent) FIELD(StepDecide, parts)                     \
  FIELD(StepDecide, part) FIELD(StepDecide, gradients) FIELD(StepDecide, recon)                  \
  FIELD(StepDecide, heads) FIELD(StepDecide, beta) FIELD(StepDecide, clip)                       \
  FIELD(StepDecide, skip_above) FIELD(StepDecide, patience) FIELD(StepDecide, settling)          \
  FIELD(StepDecide, followed) FIELD(StepDecide, beta1) FIELD(StepDecide, beta2)                  \
  FIELD(StepDecide, usual) FIELD(StepDecide, steps) FIELD(StepDecide, sums)                      \
  FIELD(StepDecide, outcome)                                                                     \
  END(StepDecide)                                                                                \
  BEGIN(StepUpdate)                                                                              \
  FIELD(StepUpdate, n) FIELD(StepUpdate, weights) FIELD(StepUpdate, gradients)                   \
  FIELD(StepUpdate, first) FIELD(StepUpdate, second) FIELD(StepUpdate, average)                  \
  FIELD(StepUpdate, outcome) FIELD(StepUpdate, lr) FIELD(StepUpdate, average_weight)             \
  FIELD(StepUpdate, beta1) FIELD(StepUpdate, beta2) FIELD(StepUpdate, eps)                       \
  FIELD(StepUpdate, weight_decay) FIELD(StepUpdate, decoupled) FIELD(StepUpdate, maximize)       \
  END(StepUpdate)
