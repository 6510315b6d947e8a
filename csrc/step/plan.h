// The training step of an MLP around a Gaussian latent, as plain arguments: no torch, no vectors.
//
// Weights, moments and gradients are in torch's own layout, (out, in) in one flat buffer, which is
// authoritative between two steps. Each layer also keeps a copy of its weights in panels,
// [out / panel][in][panel], which forward reads without packing. Adam writes both. Activations are
// rows of samples, `stride` floats apart.
#pragma once

#include <cstdint>

#include "cpu/rounds.h"
#include "ops/args.h"

namespace vae_fast::step {

constexpr int kMostLayers = 16;
constexpr int kMostParams = 4;
constexpr int64_t kRowBlock = 8;     // samples of a piece that goes through several layers
constexpr int64_t kTileRows = 32;    // samples of a piece of one large layer
constexpr int64_t kSmall = 1 << 16;  // weights of a layer that pieces go through whole

enum class Activation : int { none, relu, silu };

// Rows of samples: `rows` floats of stride `stride`.
struct Matrix {
  float* data = nullptr;
  int64_t stride = 0;
};

// A parameter of the likelihood: the source of a value v, and its transform: a factor times v,
// exp(v) or least + softplus(v - least).
enum class Source : int { network, fixed, learned };
enum class Transform : int { none, exp, floor };

struct Param {
  Source source = Source::fixed;
  Transform transform = Transform::none;
  float factor = 1.0f, least = 0.0f;
  int64_t plane = 0;   // if from the network: which plane, of `columns` features, of its output
  float value = 0.0f;  // if fixed: the transformed value
  // If learned: `count` values in the flat buffers, each for columns / count features.
  int64_t place = 0, count = 0;
  float *values = nullptr, *slopes = nullptr;  // for each feature: transformed, and its derivative
  Matrix grad;                                 // the loss's gradient, for each sample
};

struct Layer {
  int64_t in, out;
  int64_t condition = 0;  // how many of the last inputs are the condition, not a layer's output
  int64_t weight, bias;   // offsets in the flat buffers; bias -1: none
  Activation after = Activation::none;
  float* panels = nullptr;
  float* rows =
      nullptr;  // the weight with its rows `row_stride` apart; null: the flat buffer has it
  int64_t row_stride = 0;
  float* padded_bias = nullptr;
  Matrix input, output;  // output: after the activation
  Matrix before;         // the output before the activation, if its derivative needs it
  Matrix grad;           // the loss's gradient with respect to the output before the activation
};

struct Plan {
  int layer_count = 0, encoder_layers = 0;
  Layer layers[kMostLayers];
  int64_t latent = 0;                       // features of z
  bool sampled = true;                      // the encoder gives mu and logvar; false: z itself
  int64_t columns = 0;                      // features of x
  int64_t condition = 0;                    // features of the condition
  int likelihood = 0;                       // its number in VF_LIKELIHOODS
  int param_count = 0, network_params = 0;  // the likelihood's parameters; those from the network
  Param params[kMostParams];
  bool counts = false;  // x are counts: the encoder takes log(1 + x)
  // Operands of products are rounded to bfloat16, as under autocast; sums are not.
  bool bf16 = false;
  Matrix target;         // x, if it differs from the first layer's input; else without data
  int64_t capacity = 0;  // the most samples that fit, a multiple of kTileRows
  Matrix slope;          // dz / dlogvar
  Matrix grad_z;
  // Partial sums: of the likelihood, of the KL, of squares of the gradient.
  double *recon = nullptr, *kl = nullptr, *squares = nullptr;
};

// The arguments of one call, which differ from step to step.
struct Call {
  int64_t samples;
  // x: rows `index` of data, or rows 0, 1, ... if index is null.
  const void* data;
  DType dtype;  // f32, u8 (x / 255) or boolean; counts may be of any
  const int64_t* index = nullptr;
  const int64_t* binary_key = nullptr;  // pixels are drawn, as gather_batch does
  int64_t first_row = 0;
  const float* condition = nullptr;  // (samples, condition)
  int64_t key[2];                    // of eps
  double beta, scale;                // the loss is scale * (recon + beta * kl), of sums
  float* weights;
  float* gradients;
  float* first;
  float* second;
  float* average = nullptr;
  double average_weight = 0.0;
  double lr, beta1, beta2, eps, weight_decay, bias1, bias2;  // bias: 1 - beta^t
  bool decoupled = false, maximize = false;
  double clip = 0.0;   // 0: none
  double limit;        // a larger norm is skipped
  bool update = true;  // false: gradients only
};

struct Result {
  double recon, kl;  // means over the samples
  double loss;
  double norm;
  bool skipped;
};

// The step of one SIMD level.
struct Kernels {
  int64_t panel;  // features of a panel
  void (*take)(Plan&, const Call&, Result&, cpu::RunRounds);
  // Computes everything that is derived from the weights, after other code has changed them.
  void (*pack)(Plan&, const Call&, cpu::RunRounds);
};
extern const Kernels kGeneric;
#if defined(__x86_64__)
extern const Kernels kAvx2;
extern const Kernels kAvx512;
#endif

}  // namespace vae_fast::step
