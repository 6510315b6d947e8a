// A loss's upstream gradient, read on the device.
#pragma once

#include "cuda/launch.cuh"
#include "ops/args.h"

namespace vae_fast::cuda {

// The upstream gradient of a part of sample `row`, as args.h defines it. Acc is the accumulator
// type.
template <class Acc>
VF_DEVICE Acc coefficient(const Upstream& up, int64_t row) {
  double weight = up.weight;
  if (up.weight_tensor != nullptr) weight *= __ldg(up.weight_tensor);
  if (up.loss == nullptr && up.part == nullptr) return static_cast<Acc>(up.scale * weight);
  const int64_t r = up.per_row ? row : 0;
  double sum = 0.0;
  if (up.loss != nullptr) sum += weight * __ldg(static_cast<const Acc*>(up.loss) + r);
  if (up.part != nullptr) sum += __ldg(static_cast<const Acc*>(up.part) + r);
  return static_cast<Acc>(up.scale * sum);
}

}  // namespace vae_fast::cuda
