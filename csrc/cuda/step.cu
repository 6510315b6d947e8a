// The parts of a training step of an MLP VAE other than its matrix products, in four launches: the
// sample, its gradient, all sums with the decision that follows from them, and the optimizer.
//
// Bytes in float32: a sample, 8 read and 4 written; its gradient, 12 and 8; sums, 4 read for a
// weight's gradient and 4 for each row of a bias's; the optimizer, 16 read and 12 written for a
// weight, 20 and 16 with a moving average. Sums are cut by the sizes alone, and in double.
#include "cuda/drivers.h"
#include "cuda/finish.cuh"
#include "cuda/noise.cuh"
#include "ops/gaussian.h"

namespace vae_fast::cuda {
namespace {

using M = Math<float>;

constexpr int kFour = 4;  // elements of a thread: a counter of the noise, or 16 bytes
constexpr int kWarps = kThreads / kWarp;

// --- the sample ----------------------------------------------------------------------------------

// body(k, i, h) for each of four elements i of (rows, latent) from `first` on. h is the index of
// its mu in the heads; its logvar is at h + latent.
template <class Body>
VF_DEVICE void for_four(int64_t rows, int64_t latent, int64_t first, const Body& body) {
  int64_t row = first / latent, column = first - row * latent;
#pragma unroll
  for (int k = 0; k < kFour; ++k) {
    if (row >= rows) return;
    body(k, first + k, 2 * row * latent + column);
    if (++column == latent) ++row, column = 0;
  }
}

VF_DEVICE int64_t first_of_thread() {
  return kFour * (int64_t{blockIdx.x} * blockDim.x + threadIdx.x);
}

VF_DEVICE void normals_from(const int64_t* key, int64_t first, float (&eps)[kFour]) {
  uint32_t words[4];
  words_of(Key(key), static_cast<uint64_t>(first) / kFour, words);
  four_normals(words, eps);
}

__global__ void __launch_bounds__(kThreads) sample_kernel(const StepSample args) {
  const int64_t first = first_of_thread();
  if (first >= args.rows * args.latent) return;
  float eps[kFour];
  normals_from(args.key, first, eps);
  for_four(args.rows, args.latent, first, [&](int k, int64_t i, int64_t h) {
    const float sigma = gaussian::standard_deviation<M>(__ldg(args.heads + h + args.latent));
    put(args.z + i, gaussian::sample<M>(__ldg(args.heads + h), sigma, eps[k]));
  });
}

__global__ void __launch_bounds__(kThreads) sample_backward_kernel(const StepSampleBackward args) {
  const int64_t first = first_of_thread();
  if (first >= args.rows * args.latent) return;
  const float factor = static_cast<float>(args.scale * static_cast<double>(__ldg(args.beta)));
  float eps[kFour];
  normals_from(args.key, first, eps);
  for_four(args.rows, args.latent, first, [&](int k, int64_t i, int64_t h) {
    const float mu = __ldg(args.heads + h), logvar = __ldg(args.heads + h + args.latent);
    const float grad = __ldg(args.grad_z + i);
    const float sigma = gaussian::standard_deviation<M>(logvar);
    put(args.grad_heads + h, grad + mu * factor);
    put(args.grad_heads + h + args.latent,
        gaussian::sample_grad_logvar<M>(sigma, grad * eps[k]) +
            gaussian::kl_standard_grad_logvar<M>(M::exp(logvar)) * factor);
  });
}

// --- sums, and whether the step is taken ---------------------------------------------------------

constexpr int64_t kPlain = kThreads * 4 * kFour;  // gradients of a task
constexpr int64_t kColumns = kWarp;               // sums over rows of a task
constexpr int64_t kLatents = kThreads * kFour;    // elements of a task of the KL

VF_FN int64_t tasks_for(int64_t count, int64_t each) { return (count + each - 1) / each; }
VF_FN int64_t tasks_of(const StepPart& part) {
  return tasks_for(part.count, part.columns == nullptr ? kPlain : kColumns);
}

struct Tasks {
  int64_t gradients = 0, all;

  explicit Tasks(const StepDecide& args) {
    for (int p = 0; p < args.parts; ++p) gradients += tasks_of(args.part[p]);
    all = gradients;
    if (args.heads != nullptr) all += tasks_for(args.rows * args.latent, kLatents);
  }
};

// A thread's share of the sum of squares of `count` gradients. The kernel writes other gradients of
// the same buffer.
VF_DEVICE double squares_of(const float* x, int64_t count, bool aligned) {
  float square[4 * kFour];
#pragma unroll
  for (int u = 0; u < 4; ++u) {
    const int64_t i = kFour * (static_cast<int64_t>(threadIdx.x) + u * kThreads);
    float* own = square + kFour * u;
    if (aligned && i + kFour <= count) {
      const uint4 four = __ldcs(reinterpret_cast<const uint4*>(x + i));
      own[0] = __uint_as_float(four.x), own[1] = __uint_as_float(four.y);
      own[2] = __uint_as_float(four.z), own[3] = __uint_as_float(four.w);
    } else {
#pragma unroll
      for (int k = 0; k < kFour; ++k) own[k] = i + k < count ? __ldcs(x + i + k) : 0.0f;
    }
  }
#pragma unroll
  for (int k = 0; k < 4 * kFour; ++k) square[k] *= square[k];
  return static_cast<double>(tree_sum(square));
}

// Adds up 32 columns from `first` on over the rows. The sums are gradients; the first warp's lanes
// return their squares.
VF_DEVICE double add_up_columns(const StepDecide& args, const StepPart& part, int64_t first) {
  __shared__ double sums[kWarps][kWarp];
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int64_t column = first + lane;
  double sum = 0.0;
  if (column < part.count) {
#pragma unroll 4
    for (int64_t row = warp; row < args.rows; row += kWarps) {
      sum += static_cast<double>(__ldg(part.columns + row * part.count + column));
    }
  }
  sums[warp][lane] = sum;
  __syncthreads();
  float gradient = 0.0f;
  if (warp == 0) {
    double total = 0.0;
    for (int w = 0; w < kWarps; ++w) total += sums[w][lane];
    gradient = static_cast<float>(total);
    if (column < part.count) put(args.gradients + part.begin + column, gradient);
  }
  __syncthreads();  // the next task writes sums again
  return static_cast<double>(gradient * gradient);
}

VF_DEVICE double kl_of(const StepDecide& args, int64_t first) {
  double sum = 0.0;
  first += kFour * static_cast<int64_t>(threadIdx.x);
  for_four(args.rows, args.latent, first, [&](int, int64_t, int64_t h) {
    const float mu = __ldg(args.heads + h), logvar = __ldg(args.heads + h + args.latent);
    sum += static_cast<double>(gaussian::kl_standard<M>(mu, logvar, M::exp(logvar)));
  });
  return sum;
}

VF_DEVICE double share_of_task(const StepDecide& args, int64_t task, bool aligned) {
  int p = 0;
  while (p < args.parts && task >= tasks_of(args.part[p])) task -= tasks_of(args.part[p++]);
  if (p == args.parts) return kl_of(args, task * kLatents);
  const StepPart& part = args.part[p];
  if (part.columns != nullptr) return add_up_columns(args, part, task * kColumns);
  const int64_t left = part.count - task * kPlain;
  return squares_of(args.gradients + part.begin + task * kPlain, left < kPlain ? left : kPlain,
                    aligned);
}

VF_DEVICE float powers_rest(double beta, float steps) {  // 1 - beta^steps
  double power = 1.0;
  for (uint32_t n = static_cast<uint32_t>(steps); n != 0; n >>= 1) {
    if ((n & 1) != 0) power *= beta;
    beta *= beta;
  }
  return static_cast<float>(1.0 - power);
}

VF_DEVICE void decide(const StepDecide& args, const double* partials, int64_t gradients,
                      int64_t all) {
  double squares = 0.0, kl = 0.0;
  for (int64_t t = threadIdx.x; t < all; t += blockDim.x) {
    (t < gradients ? squares : kl) += __ldcg(partials + t);
  }
  squares = block_sum(squares);
  kl = block_sum(kl);
  if (threadIdx.x != 0) return;
  kl /= static_cast<double>(args.rows);
  const double recon = static_cast<double>(__ldg(args.recon));
  const double loss = recon + static_cast<double>(__ldg(args.beta)) * kl;
  const float norm = static_cast<float>(loss * 0.0 == 0.0 ? ::sqrt(squares) : loss * 0.0);

  float usual = 0.0f, taken = 0.0f, in_row = 0.0f, limit = 3.402823466e38f;
  if (args.skip_above > 0.0) {
    usual = __ldcg(args.usual), taken = __ldcg(args.usual + 1), in_row = __ldcg(args.usual + 2);
    if (taken >= static_cast<float>(args.settling) && in_row < static_cast<float>(args.patience)) {
      limit = static_cast<float>(args.skip_above) * usual;
    }
  }
  const bool skipped = !(norm <= limit);
  if (args.skip_above > 0.0) {
    if (!skipped) {
      taken += 1.0f;
      const float plain = 1.0f / taken;
      const float least = static_cast<float>(args.followed);
      usual += (plain > least ? plain : least) * (norm - usual);
    }
    put(args.usual, usual);
    put(args.usual + 1, taken);
    put(args.usual + 2, skipped ? in_row + 1.0f : 0.0f);
  }
  const float steps = __ldcg(args.steps) + (skipped ? 0.0f : 1.0f);
  put(args.steps, steps);
  const double counted[] = {loss, recon, kl, 1.0};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const double before = __ldcg(args.sums + i);
    put(args.sums + i, skipped ? before : before + static_cast<double>(args.rows) * counted[i]);
  }
  const float over = args.clip > 0.0 ? norm / static_cast<float>(args.clip) : 1.0f;
  put(args.outcome, norm);
  put(args.outcome + 1, skipped ? 1.0f : 0.0f);
  put(args.outcome + 2, over > 1.0f ? over : 1.0f);
  put(args.outcome + 3, powers_rest(args.beta1, steps));
  put(args.outcome + 4, powers_rest(args.beta2, steps));
}

__global__ void __launch_bounds__(kThreads)
    decide_kernel(const StepDecide args, const int64_t gradients, const int64_t all,
                  double* partials, unsigned* counter, const bool aligned) {
  for (int64_t task = blockIdx.x; task < all; task += gridDim.x) {
    const double sum = block_sum(share_of_task(args, task, aligned));
    if (threadIdx.x == 0) put(partials + task, sum);
  }
  if (counter != nullptr && is_last_block(counter)) decide(args, partials, gradients, all);
}

__global__ void __launch_bounds__(kThreads)
    decide_alone_kernel(const StepDecide args, const int64_t gradients, const int64_t all,
                        const double* partials) {
  decide(args, partials, gradients, all);
}

// --- the optimizer -------------------------------------------------------------------------------

VF_DEVICE void load_four(const float* p, int64_t i, int64_t n, bool whole, float (&x)[kFour]) {
  if (whole) {
    const uint4 four = __ldcs(reinterpret_cast<const uint4*>(p + i));
    x[0] = __uint_as_float(four.x), x[1] = __uint_as_float(four.y);
    x[2] = __uint_as_float(four.z), x[3] = __uint_as_float(four.w);
  } else {
#pragma unroll
    for (int k = 0; k < kFour; ++k) x[k] = i + k < n ? __ldcs(p + i + k) : 0.0f;
  }
}

VF_DEVICE void store_four(float* p, int64_t i, int64_t n, bool whole, const float (&x)[kFour]) {
  if (whole) {
    put(reinterpret_cast<uint4*>(p + i), uint4{__float_as_uint(x[0]), __float_as_uint(x[1]),
                                               __float_as_uint(x[2]), __float_as_uint(x[3])});
  } else {
#pragma unroll
    for (int k = 0; k < kFour; ++k) {
      if (i + k < n) put(p + i + k, x[k]);
    }
  }
}

__global__ void __launch_bounds__(kThreads)
    update_kernel(const StepUpdate args, const bool aligned) {
  const int64_t i = first_of_thread(), n = args.n;
  if (i >= n) return;
  const bool whole = aligned && i + kFour <= n, skipped = __ldg(args.outcome + 1) != 0.0f;
  float weight[kFour], average[kFour];
  load_four(args.weights, i, n, whole, weight);
  if (args.average != nullptr) load_four(args.average, i, n, whole, average);
  if (!skipped) {
    float gradient[kFour], first[kFour], second[kFour];
    load_four(args.gradients, i, n, whole, gradient);
    load_four(args.first, i, n, whole, first);
    load_four(args.second, i, n, whole, second);
    const float divisor = __ldg(args.outcome + 2), lr = __ldg(args.lr);
    const float step = lr / __ldg(args.outcome + 3), root = sqrtf(__ldg(args.outcome + 4));
    const float beta2 = static_cast<float>(args.beta2), eps = static_cast<float>(args.eps);
    const float of_first = static_cast<float>(1.0 - args.beta1);
    const float of_second = static_cast<float>(1.0 - args.beta2);
    const float decay = static_cast<float>(args.weight_decay);
#pragma unroll
    for (int k = 0; k < kFour; ++k) {
      float g = gradient[k] / divisor;
      if (args.maximize) g = -g;
      if (args.decoupled)
        weight[k] -= lr * decay * weight[k];
      else
        g += decay * weight[k];
      first[k] += of_first * (g - first[k]);
      second[k] = beta2 * second[k] + of_second * g * g;
      weight[k] -= step * first[k] / (sqrtf(second[k]) / root + eps);
    }
    store_four(args.weights, i, n, whole, weight);
    store_four(args.first, i, n, whole, first);
    store_four(args.second, i, n, whole, second);
  }
  if (args.average == nullptr) return;
  const float part = __ldg(args.average_weight);
#pragma unroll
  for (int k = 0; k < kFour; ++k) {
    const float way = weight[k] - average[k];
    average[k] = part < 0.5f ? average[k] + part * way : weight[k] - way * (1.0f - part);
  }
  store_four(args.average, i, n, whole, average);
}

int64_t blocks_for(int64_t elements, int threads) {
  return tasks_for(elements, int64_t{kFour} * threads);
}

}  // namespace

cudaError_t step_sample(const StepSample& args, cudaStream_t stream) {
  const int64_t n = args.rows * args.latent;
  if (n == 0) return cudaSuccess;
  return launch(sample_kernel, blocks_for(n, kSmallThreads), kSmallThreads, stream, args);
}

cudaError_t step_sample_backward(const StepSampleBackward& args, cudaStream_t stream) {
  const int64_t n = args.rows * args.latent;
  if (n == 0) return cudaSuccess;
  return launch(sample_backward_kernel, blocks_for(n, kSmallThreads), kSmallThreads, stream, args);
}

size_t step_decide_workspace(const StepDecide& args) {
  return static_cast<size_t>(Tasks(args).all) * sizeof(double);
}

cudaError_t step_decide(const StepDecide& args, void* workspace, cudaStream_t stream) {
  const Tasks tasks(args);
  if (args.parts > kMaxStepParts || args.rows < 1 || tasks.all == 0) return cudaErrorInvalidValue;
  double* partials = static_cast<double*>(workspace);
  bool aligned = is_aligned(args.gradients, 16);
  for (int p = 0; p < args.parts; ++p) aligned = aligned && args.part[p].begin % kFour == 0;
  unsigned* counter = take_counter(stream);
  const int64_t blocks = tasks.all < kMaxBlocks ? tasks.all : kMaxBlocks;
  const cudaError_t error = launch(decide_kernel, blocks, kThreads, stream, args, tasks.gradients,
                                   tasks.all, partials, counter, aligned);
  if (error != cudaSuccess || counter != nullptr) return error;
  return launch(decide_alone_kernel, 1, kThreads, stream, args, tasks.gradients, tasks.all,
                partials);
}

cudaError_t step_update(const StepUpdate& args, cudaStream_t stream) {
  if (args.n == 0) return cudaSuccess;
  bool aligned = is_aligned(args.average, 16);
  for (const float* p :
       {static_cast<const float*>(args.weights), args.gradients,
        static_cast<const float*>(args.first), static_cast<const float*>(args.second)}) {
    aligned = aligned && is_aligned(p, 16);
  }
  return launch(update_kernel, blocks_for(args.n, kThreads), kThreads, stream, args, aligned);
}

}  // namespace vae_fast::cuda
