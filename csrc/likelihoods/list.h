// The likelihoods: the op's name, and the struct that has its formulas. Everything else is made from
// these two lists: schemas, registrations, the drivers' tables.
#pragma once

#include "likelihoods/gaussian.h"
#include "likelihoods/laplace.h"

// One parameter or a few for each element.
#define VF_LIKELIHOODS(X)           \
  X(gaussian, Gaussian)             \
  X(gaussian_scale, GaussianScale)  \
  X(laplace, Laplace)               \
  X(laplace_scale, LaplaceScale)

// Any number of parameter planes for each position.
#define VF_PLANE_LIKELIHOODS(X)
