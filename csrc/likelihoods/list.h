// The likelihoods: the op's name, and the struct that has its formulas. Everything else is made from
// these two lists: schemas, registrations, the drivers' tables.
#pragma once

#include "likelihoods/bernoulli.h"
#include "likelihoods/categorical.h"
#include "likelihoods/continuous_bernoulli.h"
#include "likelihoods/discretized_logistic.h"
#include "likelihoods/discretized_logistic_mixture.h"
#include "likelihoods/gaussian.h"
#include "likelihoods/laplace.h"
#include "likelihoods/negative_binomial.h"
#include "likelihoods/poisson.h"
#include "likelihoods/student_t.h"
#include "likelihoods/zero_inflated_negative_binomial.h"

// One parameter or a few for each element.
#define VF_LIKELIHOODS(X)                                              \
  X(bernoulli, Bernoulli)                                              \
  X(bernoulli_probs, BernoulliProbs)                                   \
  X(continuous_bernoulli, ContinuousBernoulli)                         \
  X(gaussian, Gaussian)                                                \
  X(gaussian_scale, GaussianScale)                                     \
  X(laplace, Laplace)                                                  \
  X(laplace_scale, LaplaceScale)                                       \
  X(student_t, StudentT)                                               \
  X(student_t_scale, StudentTScale)                                    \
  X(discretized_logistic, DiscretizedLogistic)                         \
  X(poisson, Poisson)                                                  \
  X(poisson_log, PoissonLog)                                           \
  X(negative_binomial, NegativeBinomial)                               \
  X(negative_binomial_log, NegativeBinomialLog)                        \
  X(zero_inflated_negative_binomial, ZeroInflatedNegativeBinomial)     \
  X(zero_inflated_negative_binomial_log, ZeroInflatedNegativeBinomialLog)

// Any number of parameter planes for each position.
#define VF_PLANE_LIKELIHOODS(X)  \
  X(categorical, Categorical)    \
  X(discretized_logistic_mixture, DiscretizedLogisticMixture)
