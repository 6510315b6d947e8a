// The plain arguments of GroupNorm, with SiLU in the same pass or without it, for either device (see ops/args.h).
#pragma once

#include "ops/args.h"

namespace vae_fast {

// y = silu(GroupNorm(x)), or GroupNorm(x) without silu, for `rows` samples of `channels` maps of `inner`
// positions each. With channels_last the channels of a position are neighbours in memory, else the
// positions of a map.
struct GroupNorm {
  DType dtype;  // of x and y
  bool channels_last, silu;
  int64_t rows, channels, groups, inner;
  double eps;
  const void* x;
  const void* weight = nullptr;  // accumulators, (channels); null: 1
  const void* bias = nullptr;    // null: 0
  void* y;
  void* mean;  // accumulators, (rows, groups)
  void* rstd;  // 1 / sqrt(variance + eps)
};

struct GroupNormBackward {
  DType dtype;  // of x, grad_y and grad_x
  bool channels_last, silu;
  int64_t rows, channels, groups, inner;
  const void* x;
  const void* weight = nullptr;
  const void* bias = nullptr;
  const void* mean;
  const void* rstd;
  const void* grad_y;
  void* grad_x;
  void* grad_weight;  // accumulators, (channels)
  void* grad_bias;
};

}  // namespace vae_fast
