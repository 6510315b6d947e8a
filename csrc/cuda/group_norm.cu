// GroupNorm and SiLU in one pass, forward and backward, of contiguous and of channels-last maps.
//
// Three launches each: sums of every channel of a sample, what follows from them for a group, and the
// elements. Bytes per element in float32: forward, 8 read and 4 written; backward, 16 read and 4
// written. A problem is cut by its size alone, and sums are in double and in order.
#include "cuda/drivers.h"
#include "cuda/finish.cuh"
#include "cuda/math.cuh"
#include "norm/formulas.h"

namespace vae_fast::cuda {
namespace {

template <class F>
VF_DEVICE typename F::C load_one(const void* base, int64_t i) {
  const uint64_t bits = load_bits<F::bytes>(static_cast<const char*>(base) + i * F::bytes);
  const uint32_t words[2] = {static_cast<uint32_t>(bits), static_cast<uint32_t>(bits >> 32)};
  return F::decode(words, 0);
}

template <class F>
VF_DEVICE void store_one(void* base, int64_t i, typename F::C x) {
  uint32_t words[4] = {};  // of a pair
  F::encode(words, 0, x, typename F::C(0));
  store_bits<F::bytes>(static_cast<char*>(base) + i * F::bytes, words, 0);
}

constexpr int64_t kMostCuts = 64;  // of a map
constexpr int kWarps = kThreads / kWarp;

// How maps are cut for the sums: parts of `length` places, taken by a warp each where a map's places
// are neighbours, else by a block for 32 channels at once.
struct Cuts {
  int64_t parts, length, tasks, blocks;

  template <class Args>
  explicit Cuts(const Args& args) {
    const int64_t least = args.channels_last ? 256 : 1024;
    parts = (args.inner + least - 1) / least;
    if (parts > kMostCuts) parts = kMostCuts;
    length = parts == 0 ? 0 : (args.inner + parts - 1) / parts;
    if (length > 0) parts = (args.inner + length - 1) / length;
    const int64_t bundles = (args.channels + kWarp - 1) / kWarp;
    tasks = args.rows * parts * (args.channels_last ? bundles : args.channels);
    const int64_t needed = args.channels_last ? tasks : (tasks + kWarps - 1) / kWarps;
    blocks = needed < kMaxBlocks ? needed : kMaxBlocks;
  }
};

template <class Args>
size_t partial_sums(const Args& args) {
  return static_cast<size_t>(2 * args.rows * args.channels * Cuts(args).parts);
}

template <class F, class Args>
VF_DEVICE typename F::C affine(const Args&, const void* p, int64_t channel, float otherwise) {
  return p == nullptr ? typename F::C(otherwise)
                      : __ldg(static_cast<const typename F::C*>(p) + channel);
}

// The place of an element by sample, channel and place.
template <class Args>
VF_DEVICE int64_t element_of(const Args& args, int64_t row, int64_t channel, int64_t place) {
  return args.channels_last ? (row * args.inner + place) * args.channels + channel
                            : (row * args.channels + channel) * args.inner + place;
}

// What distances in forward's sums are from: a group's first element, so that little cancels.
template <class F>
VF_DEVICE double shift_of(const GroupNormSilu& args, int64_t row, int64_t group) {
  const int64_t first = group * (args.channels / args.groups);
  return static_cast<double>(load_one<F>(args.x, element_of(args, row, first, 0)));
}

template <class F>
struct Distances {
  const void* x;
  double shift;

  VF_DEVICE Distances(const GroupNormSilu& args, int64_t row, int64_t channel)
      : x(args.x), shift(shift_of<F>(args, row, channel / (args.channels / args.groups))) {}
  VF_DEVICE void add(int64_t i, double& sum, double& squares) const {
    const double d = static_cast<double>(load_one<F>(x, i)) - shift;
    sum += d;
    squares += d * d;
  }
};

// What an element's gradient takes of its group and its channel.
template <class F>
struct Channel {
  using C = typename F::C;
  C mean, rstd, weight, bias;

  template <class Args>
  VF_DEVICE Channel(const Args& args, int64_t row, int64_t channel) {
    const int64_t group = row * args.groups + channel / (args.channels / args.groups);
    mean = __ldcg(static_cast<const C*>(args.mean) + group);
    rstd = __ldcg(static_cast<const C*>(args.rstd) + group);
    weight = affine<F>(args, args.weight, channel, 1.0f);
    bias = affine<F>(args, args.bias, channel, 0.0f);
  }
  VF_DEVICE C xhat(C x) const { return (x - mean) * rstd; }
  VF_DEVICE C grad(C x, C g) const {  // dv
    return g * norm::silu_grad<Math<C>>(xhat(x) * weight + bias);
  }
};

template <class F>
struct Gradients {
  const void *x, *grad;
  Channel<F> channel;

  VF_DEVICE Gradients(const GroupNormSiluBackward& args, int64_t row, int64_t channel)
      : x(args.x), grad(args.grad_y), channel(args, row, channel) {}
  VF_DEVICE void add(int64_t i, double& plain, double& by_xhat) const {
    const auto value = load_one<F>(x, i);
    const double dv = static_cast<double>(channel.grad(value, load_one<F>(grad, i)));
    plain += dv;
    by_xhat += dv * static_cast<double>(channel.xhat(value));
  }
};

// Gives the parts of maps to threads. body(row, channel, at, step, end) is a thread's share:
// elements at, at + step, ... below end, all of one channel; they are none for lanes beyond the
// channels. after(row, part, channel) follows it, for all threads of a block (channels-last) or of a
// warp alike, which may meet there.
template <class Args, class Body, class After>
VF_DEVICE void for_each_part(const Args& args, const Cuts& cuts, const Body& body,
                             const After& after) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const auto end_of = [&](int64_t begin) {
    return begin + cuts.length < args.inner ? begin + cuts.length : args.inner;
  };
  if (!args.channels_last) {
    const int64_t step = int64_t{gridDim.x} * kWarps;
    for (int64_t task = int64_t{blockIdx.x} * kWarps + warp; task < cuts.tasks; task += step) {
      const int64_t map = task / cuts.parts, part = task - map * cuts.parts;
      const int64_t row = map / args.channels, channel = map - row * args.channels;
      const int64_t begin = part * cuts.length, first = map * args.inner;
      body(row, channel, first + begin + lane, kWarp, first + end_of(begin));
      after(row, part, channel);
    }
    return;
  }
  const int64_t bundles = (args.channels + kWarp - 1) / kWarp;
  for (int64_t task = blockIdx.x; task < cuts.tasks; task += gridDim.x) {
    const int64_t bundle = task % bundles, part = task / bundles % cuts.parts;
    const int64_t row = task / bundles / cuts.parts, channel = bundle * kWarp + lane;
    const int64_t begin = part * cuts.length;
    if (channel < args.channels) {
      body(row, channel, element_of(args, row, channel, begin + warp), kWarps * args.channels,
           element_of(args, row, channel, end_of(begin)));
    }
    after(row, part, channel);
  }
}

// Two sums over each part of a sample's channel, to partials[2 * ((row * channels + channel) * parts
// + part)] and the double behind it.
template <class Terms, class Args>
__global__ void __launch_bounds__(kThreads, kResident)
    channel_sums_kernel(const Args args, const Cuts cuts, double* partials) {
  __shared__ double sums[2][kWarps][kWarp];
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  double a = 0.0, b = 0.0;
  for_each_part(
      args, cuts,
      [&](int64_t row, int64_t channel, int64_t at, int64_t step, int64_t end) {
        const Terms terms(args, row, channel);
#pragma unroll 4
        for (int64_t i = at; i < end; i += step) terms.add(i, a, b);
      },
      [&](int64_t row, int64_t part, int64_t channel) {
        double* out = partials + 2 * ((row * args.channels + channel) * cuts.parts + part);
        if (!args.channels_last) {
          a = team_sum(a, kWarp);
          b = team_sum(b, kWarp);
          if (lane < 2) __stwb(out + lane, lane == 0 ? a : b);
        } else {
          sums[0][warp][lane] = a;
          sums[1][warp][lane] = b;
          __syncthreads();
          if (warp < 2 && channel < args.channels) {
            double sum = 0.0;
            for (int w = 0; w < kWarps; ++w) sum += sums[warp][w][lane];
            __stwb(out + warp, sum);
          }
          __syncthreads();  // the next part writes sums again
        }
        a = b = 0.0;
      });
}

// Mean and 1 / deviation of each group, a warp's work.
template <class F>
__global__ void __launch_bounds__(kThreads)
    statistics_kernel(const GroupNormSilu args, const int64_t parts, const double* partials) {
  using C = typename F::C;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int64_t units = args.rows * args.groups, deep = args.channels / args.groups;
  const int64_t step = int64_t{gridDim.x} * kWarps;
  for (int64_t unit = int64_t{blockIdx.x} * kWarps + warp; unit < units; unit += step) {
    const double* own = partials + 2 * unit * deep * parts;
    double sum = 0.0, squares = 0.0;
    for (int64_t k = lane; k < deep * parts; k += kWarp) {
      sum += __ldcg(own + 2 * k);
      squares += __ldcg(own + 2 * k + 1);
    }
    sum = team_sum(sum, kWarp);
    squares = team_sum(squares, kWarp);
    if (lane == 0) {
      const double shift =
          args.inner == 0 ? 0.0 : shift_of<F>(args, unit / args.groups, unit % args.groups);
      const double count = static_cast<double>(deep) * static_cast<double>(args.inner);
      const norm::Moments m = norm::Moments::shifted(count, shift, sum, squares);
      __stwb(static_cast<C*>(args.mean) + unit, C(m.mean));
      __stwb(static_cast<C*>(args.rstd) + unit, C(m.rstd(args.eps)));
    }
  }
}

// Each group's share of its elements' gradients, two doubles, and the channels' gradients.
template <class F>
__global__ void __launch_bounds__(kThreads)
    shares_kernel(const GroupNormSiluBackward args, const int64_t parts, const double* partials,
                  double* shares) {
  using C = typename F::C;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int64_t units = args.rows * args.groups, deep = args.channels / args.groups;
  const int64_t step = int64_t{gridDim.x} * kWarps;
  for (int64_t task = int64_t{blockIdx.x} * kWarps + warp; task < units + args.channels;
       task += step) {
    const bool is_group = task < units;
    const int64_t channel = task - units;
    const int64_t terms = (is_group ? deep : args.rows) * parts;
    double plain = 0.0, by_xhat = 0.0;
    for (int64_t k = lane; k < terms; k += kWarp) {
      const int64_t outer = k / parts, part = k - outer * parts;
      const int64_t map = is_group ? task * deep + outer : outer * args.channels + channel;
      const double weight =
          is_group ? static_cast<double>(affine<F>(args, args.weight, map % args.channels, 1.0f))
                   : 1.0;
      plain += weight * __ldcg(partials + 2 * (map * parts + part));
      by_xhat += weight * __ldcg(partials + 2 * (map * parts + part) + 1);
    }
    plain = team_sum(plain, kWarp);
    by_xhat = team_sum(by_xhat, kWarp);
    if (lane != 0) continue;
    if (is_group) {
      const double rstd = static_cast<double>(__ldg(static_cast<const C*>(args.rstd) + task));
      const double count = static_cast<double>(deep) * static_cast<double>(args.inner);
      const norm::GroupGradient group(plain, by_xhat, rstd, count);
      __stwb(shares + 2 * task, group.plain);
      __stwb(shares + 2 * task + 1, group.slope);
    } else {
      __stwb(static_cast<C*>(args.grad_bias) + channel, C(plain));
      __stwb(static_cast<C*>(args.grad_weight) + channel, C(by_xhat));
    }
  }
}

// --- elements ------------------------------------------------------------------------------------

template <class F>
__global__ void __launch_bounds__(kThreads, kResident)
    normalize_kernel(const GroupNormSilu args, const Cuts cuts) {
  using C = typename F::C;
  for_each_part(
      args, cuts,
      [&](int64_t row, int64_t channel, int64_t at, int64_t step, int64_t end) {
        const Channel<F> c(args, row, channel);
        const C scale = c.rstd * c.weight;
#pragma unroll 4
        for (int64_t i = at; i < end; i += step) {
          store_one<F>(args.y, i,
                       norm::silu<Math<C>>((load_one<F>(args.x, i) - c.mean) * scale + c.bias));
        }
      },
      [](int64_t, int64_t, int64_t) {});
}

template <class F>
__global__ void __launch_bounds__(kThreads, kResident)
    gradient_kernel(const GroupNormSiluBackward args, const Cuts cuts, const double* shares) {
  using C = typename F::C;
  for_each_part(
      args, cuts,
      [&](int64_t row, int64_t channel, int64_t at, int64_t step, int64_t end) {
        const Channel<F> c(args, row, channel);
        const int64_t unit = row * args.groups + channel / (args.channels / args.groups);
        const C plain = C(__ldcg(shares + 2 * unit)), slope = C(__ldcg(shares + 2 * unit + 1));
        const C scale = c.rstd * c.weight;
#pragma unroll 4
        for (int64_t i = at; i < end; i += step) {
          const C x = load_one<F>(args.x, i);
          store_one<F>(args.grad_x, i,
                       scale * c.grad(x, load_one<F>(args.grad_y, i)) -
                           (plain + (x - c.mean) * slope));
        }
      },
      [](int64_t, int64_t, int64_t) {});
}

int64_t warps_as_blocks(int64_t warps) {
  const int64_t blocks = (warps + kWarps - 1) / kWarps;
  return blocks < kMaxBlocks ? blocks : kMaxBlocks;
}

}  // namespace

size_t group_norm_workspace(const GroupNormSilu& args) {
  return partial_sums(args) * sizeof(double);
}
size_t group_norm_backward_workspace(const GroupNormSiluBackward& args) {
  return (partial_sums(args) + static_cast<size_t>(2 * args.rows * args.groups)) * sizeof(double);
}

cudaError_t group_norm(const GroupNormSilu& args, void* workspace, cudaStream_t stream) {
  const int64_t units = args.rows * args.groups, n = args.rows * args.channels * args.inner;
  if (units == 0) return cudaSuccess;
  const Cuts cuts(args);
  double* partials = static_cast<double*>(workspace);
  return with_format(args.dtype, [&](auto format) {
    using F = decltype(format);
    cudaError_t error = cudaSuccess;
    if (n > 0) {
      error = launch(channel_sums_kernel<Distances<F>, GroupNormSilu>, cuts.blocks, kThreads,
                     stream, args, cuts, partials);
    }
    if (error == cudaSuccess) {
      error = launch(statistics_kernel<F>, warps_as_blocks(units), kThreads, stream, args,
                     cuts.parts, partials);
    }
    if (error != cudaSuccess || n == 0) return error;
    return launch(normalize_kernel<F>, cuts.blocks, kThreads, stream, args, cuts);
  });
}

cudaError_t group_norm_backward(const GroupNormSiluBackward& args, void* workspace,
                                cudaStream_t stream) {
  const int64_t units = args.rows * args.groups, n = args.rows * args.channels * args.inner;
  const Cuts cuts(args);
  double* partials = static_cast<double*>(workspace);
  double* shares = partials + partial_sums(args);
  return with_format(args.dtype, [&](auto format) {
    using F = decltype(format);
    cudaError_t error = cudaSuccess;
    if (n > 0) {
      error = launch(channel_sums_kernel<Gradients<F>, GroupNormSiluBackward>, cuts.blocks,
                     kThreads, stream, args, cuts, partials);
    }
    if (error == cudaSuccess) {
      error = launch(shares_kernel<F>, warps_as_blocks(units + args.channels), kThreads, stream,
                     args, cuts.parts, partials, shares);
    }
    if (error != cudaSuccess || n == 0) return error;
    return launch(gradient_kernel<F>, cuts.blocks, kThreads, stream, args, cuts, shares);
  });
}

}  // namespace vae_fast::cuda
