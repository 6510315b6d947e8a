// GroupNorm and SiLU in one pass, forward and backward, of contiguous and of channels-last maps.
//
// Three launches each: sums of every channel of a sample, the statistics of each group, and the
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

// A thread reads this many neighbours at once, 16 bytes: positions of a map, or channels of a
// position. If a row of them is not a whole number of 16 bytes, it reads them one by one.
template <class F>
constexpr int kNeighbours = 16 / F::bytes;

// How maps are cut, by the sizes alone: into parts of `length` positions. If a map's positions are
// neighbours in memory, a warp takes a part; else a block takes it, for `lanes` times `neighbours`
// channels.
struct Cuts {
  int neighbours, lanes;  // lanes: threads of one position; the block's others have other ones
  int64_t parts, length, tasks, blocks;

  template <class Args>
  explicit Cuts(const Args& args) {
    neighbours = static_cast<int>(16 / size_of(args.dtype));
    if ((args.channels_last ? args.channels : args.inner) % neighbours != 0) neighbours = 1;
    lanes = kWarp;
    if (args.channels_last && neighbours > 1) {
      while (lanes > 1 && lanes / 2 * neighbours >= args.channels) lanes /= 2;
    }
    const int64_t width = int64_t{lanes} * neighbours;
    const int64_t least = args.channels_last ? 8192 / width : 1024;
    parts = (args.inner + least - 1) / least;
    if (parts > kMostCuts) parts = kMostCuts;
    length = parts == 0 ? 0 : (args.inner + parts - 1) / parts;
    if (!args.channels_last) length = (length + neighbours - 1) / neighbours * neighbours;
    if (length > 0) parts = (args.inner + length - 1) / length;
    const int64_t bundles = (args.channels + width - 1) / width;
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

// The index of an element by sample, channel and position.
template <class Args>
VF_DEVICE int64_t element_of(const Args& args, int64_t row, int64_t channel, int64_t place) {
  return args.channels_last ? (row * args.inner + place) * args.channels + channel
                            : (row * args.channels + channel) * args.inner + place;
}

// Forward's sums are of distances from this, a group's first element, so that little cancels.
template <class F>
VF_DEVICE double shift_of(const GroupNorm& args, int64_t row, int64_t group) {
  const int64_t first = group * (args.channels / args.groups);
  return static_cast<double>(load_one<F>(args.x, element_of(args, row, first, 0)));
}

// --- neighbours ----------------------------------------------------------------------------------

// The bits of V neighbours from element i on. Alignment changes how they are read, and nothing
// else.
template <class F, int V>
struct Some {
  uint32_t words[V == 1 ? 2 : 4];

  VF_DEVICE void request(const void* base, int64_t i, bool aligned) {
    const char* bytes = static_cast<const char*>(base) + i * F::bytes;
    if constexpr (V == 1) {
      const uint64_t bits = load_bits<F::bytes>(bytes);
      words[0] = static_cast<uint32_t>(bits), words[1] = static_cast<uint32_t>(bits >> 32);
    } else {
      if (aligned) return load_words<Reuse::soon, 4>(bytes, words);
#pragma unroll
      for (int w = 0; w < 4; ++w) words[w] = 0;
#pragma unroll
      for (int k = 0; k < V; ++k) {
        const uint64_t bits = load_bits<F::bytes>(bytes + k * F::bytes);
        words[k * F::bytes / 4] |= static_cast<uint32_t>(bits) << (8 * (k * F::bytes % 4));
        if constexpr (F::bytes == 8) words[2 * k + 1] = static_cast<uint32_t>(bits >> 32);
      }
    }
  }
  VF_DEVICE typename F::C operator[](int k) const { return F::decode(words, k); }
};

template <class F, int V>
VF_DEVICE void store_some(void* base, int64_t i, bool aligned, const typename F::C (&x)[V]) {
  if constexpr (V == 1) {
    store_one<F>(base, i, x[0]);
  } else {
    char* bytes = static_cast<char*>(base) + i * F::bytes;
    uint32_t words[4];
#pragma unroll
    for (int k = 0; k < V; k += 2) F::encode(words, k, x[k], x[k + 1]);
    if (aligned) return store_16(bytes, {words[0], words[1], words[2], words[3]}, false);
#pragma unroll
    for (int k = 0; k < V; ++k) store_bits<F::bytes>(bytes + k * F::bytes, words, k);
  }
}

// The constants of the channels of a thread's neighbours: N in channels-last, one for a map.
template <bool LAST, int V>
constexpr int kOwn = LAST ? V : 1;

// The constants of an element's gradient: its group's and its channel's.
template <class F>
struct Channel {
  using C = typename F::C;
  C mean, rstd, weight, bias;

  template <class Args>
  VF_DEVICE void read(const Args& args, int64_t row, int64_t channel) {
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

// The terms of forward's two sums: of distances and of their squares.
template <class F, int N>
struct Distances {
  using C = typename F::C;
  static constexpr bool kBackward = false;
  C shift[N];

  VF_DEVICE Distances(const GroupNorm& args, int64_t row, int64_t channel) {
    const int64_t deep = args.channels / args.groups;
#pragma unroll
    for (int n = 0; n < N; ++n) {
      shift[n] = static_cast<C>(shift_of<F>(args, row, (channel + n) / deep));
    }
  }
  VF_DEVICE void add(int n, C x, C, C& sum, C& squares) const {
    const C d = x - shift[n];
    sum += d;
    squares += d * d;
  }
};

// Backward's sums: those of dv and of dv times xhat.
template <class F, int N>
struct Gradients {
  using C = typename F::C;
  static constexpr bool kBackward = true;
  Channel<F> channel[N];

  VF_DEVICE Gradients(const GroupNormBackward& args, int64_t row, int64_t first) {
#pragma unroll
    for (int n = 0; n < N; ++n) channel[n].read(args, row, first + n);
  }
  VF_DEVICE void add(int n, C x, C g, C& plain, C& by_xhat) const {
    const C dv = channel[n].grad(x, g);
    plain += dv;
    by_xhat += dv * channel[n].xhat(x);
  }
};

VF_DEVICE const void* second_of(const GroupNorm&) { return nullptr; }
VF_DEVICE const void* second_of(const GroupNormBackward& args) { return args.grad_y; }

// Calls body(i, x, g) for a thread's share: V neighbours from each of the elements at, at + step,
// ... below end. Several are requested before the first is used. g is read from `second`, if that
// is given.
template <class F, int V, bool LAST, class Body>
VF_DEVICE void for_each_some(const void* x, const void* second, int64_t at, int64_t step,
                             int64_t end, bool aligned, const Body& body) {
  constexpr int U = LAST && V > 4 ? 2 : 4;
  for (int64_t i = at; i < end; i += U * step) {
    Some<F, V> of_x[U], of_second[U];
#pragma unroll
    for (int u = 0; u < U; ++u) {
      if (i + u * step >= end) break;
      of_x[u].request(x, i + u * step, aligned);
      if (second != nullptr) of_second[u].request(second, i + u * step, aligned);
    }
#pragma unroll
    for (int u = 0; u < U; ++u) {
      if (i + u * step >= end) break;
      body(i + u * step, of_x[u], of_second[u]);
    }
  }
}

// Gives the parts of maps to threads. body(row, channel, at, step, end) is a thread's share:
// neighbours from each of the elements at, at + step, ... below end. They belong to `channel`, or
// in channels-last to the channels from it on; lanes beyond the channels have none. Then all
// threads of a block (channels-last, whose channels begin with `first`) or of a warp call
// after(row, part, first), in which they may synchronise.
template <int V, bool LAST, class Args, class Body, class After>
VF_DEVICE void for_each_part(const Args& args, const Cuts& cuts, const Body& body,
                             const After& after) {
  const auto end_of = [&](int64_t begin) {
    return begin + cuts.length < args.inner ? begin + cuts.length : args.inner;
  };
  if constexpr (!LAST) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    const int warp = static_cast<int>(threadIdx.x) / kWarp;
    const int64_t step = int64_t{gridDim.x} * kWarps;
    for (int64_t task = int64_t{blockIdx.x} * kWarps + warp; task < cuts.tasks; task += step) {
      const int64_t map = task / cuts.parts, part = task - map * cuts.parts;
      const int64_t row = map / args.channels, channel = map - row * args.channels;
      const int64_t begin = part * cuts.length, first = map * args.inner;
      body(row, channel, first + begin + lane * V, int64_t{kWarp} * V, first + end_of(begin));
      after(row, part, channel);
    }
  } else {
    const int lane = static_cast<int>(threadIdx.x) & (cuts.lanes - 1);  // a power of two
    const int slot = static_cast<int>(threadIdx.x) / cuts.lanes, slots = kThreads / cuts.lanes;
    const int64_t width = int64_t{cuts.lanes} * V, bundles = (args.channels + width - 1) / width;
    for (int64_t task = blockIdx.x; task < cuts.tasks; task += gridDim.x) {
      const int64_t bundle = task % bundles, part = task / bundles % cuts.parts;
      const int64_t row = task / bundles / cuts.parts, channel = bundle * width + lane * V;
      const int64_t begin = part * cuts.length;
      if (channel < args.channels) {
        body(row, channel, element_of(args, row, channel, begin + slot), slots * args.channels,
             element_of(args, row, channel, end_of(begin)));
      }
      after(row, part, bundle * width);
    }
  }
}

// --- sums ----------------------------------------------------------------------------------------

// Two sums over each part of a sample's channel, to partials[2 * ((row * channels + channel) *
// parts + part)] and the double after it.
template <class F, int V, bool LAST, template <class, int> class Terms, class Args>
__global__ void __launch_bounds__(kThreads, kResident)
    channel_sums_kernel(const Args args, const Cuts cuts, double* partials, const bool aligned) {
  using C = typename F::C;
  constexpr int N = kOwn<LAST, V>;
  __shared__ double sums[LAST ? kThreads * N : 1];
  const int thread = static_cast<int>(threadIdx.x);
  double a[N] = {}, b[N] = {};
  for_each_part<V, LAST>(
      args, cuts,
      [&](int64_t row, int64_t channel, int64_t at, int64_t step, int64_t end) {
        const Terms<F, N> terms(args, row, channel);
        for_each_some<F, V, LAST>(args.x, second_of(args), at, step, end, aligned,
                                  [&](int64_t, const Some<F, V>& x, const Some<F, V>& g) {
                                    C plain[N] = {}, other[N] = {};
#pragma unroll
                                    for (int k = 0; k < V; ++k) {
                                      const C second = Terms<F, N>::kBackward ? g[k] : C(0);
                                      terms.add(k % N, x[k], second, plain[k % N], other[k % N]);
                                    }
#pragma unroll
                                    for (int n = 0; n < N; ++n) {
                                      a[n] += static_cast<double>(plain[n]);
                                      b[n] += static_cast<double>(other[n]);
                                    }
                                  });
      },
      [&](int64_t row, int64_t part, int64_t first) {
        const auto out = [&](int64_t channel) {
          return partials + 2 * ((row * args.channels + channel) * cuts.parts + part);
        };
        if constexpr (!LAST) {
          const int lane = thread % kWarp;
          const double sum = team_sum(a[0], kWarp), other = team_sum(b[0], kWarp);
          if (lane < 2) put(out(first) + lane, lane == 0 ? sum : other);
        } else {
          const int lanes = cuts.lanes, slots = kThreads / lanes;
#pragma unroll
          for (int which = 0; which < 2; ++which) {
#pragma unroll
            for (int n = 0; n < N; ++n) sums[thread * N + n] = which == 0 ? a[n] : b[n];
            __syncthreads();
            if (thread < lanes * V && first + thread < args.channels) {
              double sum = 0.0;
              for (int slot = 0; slot < slots; ++slot) sum += sums[slot * lanes * V + thread];
              put(out(first + thread) + which, sum);
            }
            __syncthreads();  // what follows writes sums again
          }
        }
#pragma unroll
        for (int n = 0; n < N; ++n) a[n] = b[n] = 0.0;
      });
}

// Mean and 1 / deviation of each group, a warp's work.
template <class F>
__global__ void __launch_bounds__(kThreads)
    statistics_kernel(const GroupNorm args, const int64_t parts, const double* partials) {
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
    shares_kernel(const GroupNormBackward args, const int64_t parts, const double* partials,
                  double* shares) {
  using C = typename F::C;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int64_t units = args.rows * args.groups, deep = args.channels / args.groups;
  const int64_t step = int64_t{gridDim.x} * kWarps;
  const int64_t divisor = parts > 0 ? parts : 1;  // maps without positions have no parts
  for (int64_t task = int64_t{blockIdx.x} * kWarps + warp; task < units + args.channels;
       task += step) {
    const bool is_group = task < units;
    const int64_t channel = task - units;
    const int64_t terms = (is_group ? deep : args.rows) * parts;
    double plain = 0.0, by_xhat = 0.0;
    for (int64_t k = lane; k < terms; k += kWarp) {
      const int64_t outer = k / divisor, part = k - outer * parts;
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

template <class F, int V, bool LAST>
__global__ void __launch_bounds__(kThreads, kResident)
    normalize_kernel(const GroupNorm args, const Cuts cuts, const bool aligned) {
  using C = typename F::C;
  constexpr int N = kOwn<LAST, V>;
  for_each_part<V, LAST>(
      args, cuts,
      [&](int64_t row, int64_t channel, int64_t at, int64_t step, int64_t end) {
        Channel<F> c[N];
#pragma unroll
        for (int n = 0; n < N; ++n) {
          c[n].read(args, row, channel + n);
          c[n].rstd *= c[n].weight;
        }
        for_each_some<F, V, LAST>(
            args.x, nullptr, at, step, end, aligned,
            [&](int64_t i, const Some<F, V>& x, const Some<F, V>&) {
              C y[V];
#pragma unroll
              for (int k = 0; k < V; ++k) {
                const Channel<F>& own = c[k % N];
                y[k] = norm::silu<Math<C>>((x[k] - own.mean) * own.rstd + own.bias);
              }
              store_some<F, V>(args.y, i, aligned, y);
            });
      },
      [](int64_t, int64_t, int64_t) {});
}

template <class F, int V, bool LAST>
__global__ void __launch_bounds__(kThreads, kResident)
    gradient_kernel(const GroupNormBackward args, const Cuts cuts, const double* shares,
                    const bool aligned) {
  using C = typename F::C;
  constexpr int N = kOwn<LAST, V>;
  for_each_part<V, LAST>(
      args, cuts,
      [&](int64_t row, int64_t channel, int64_t at, int64_t step, int64_t end) {
        const int64_t deep = args.channels / args.groups;
        Channel<F> c[N];
        C plain[N], slope[N];
#pragma unroll
        for (int n = 0; n < N; ++n) {
          const int64_t unit = row * args.groups + (channel + n) / deep;
          c[n].read(args, row, channel + n);
          plain[n] = C(__ldcg(shares + 2 * unit));
          slope[n] = C(__ldcg(shares + 2 * unit + 1));
        }
        for_each_some<F, V, LAST>(args.x, args.grad_y, at, step, end, aligned,
                                  [&](int64_t i, const Some<F, V>& x, const Some<F, V>& g) {
                                    C grad[V];
#pragma unroll
                                    for (int k = 0; k < V; ++k) {
                                      const int n = k % N;
                                      grad[k] = c[n].rstd * c[n].weight * c[n].grad(x[k], g[k]) -
                                                (plain[n] + (x[k] - c[n].mean) * slope[n]);
                                    }
                                    store_some<F, V>(args.grad_x, i, aligned, grad);
                                  });
      },
      [](int64_t, int64_t, int64_t) {});
}

// Calls f with the format, the neighbours of a thread and the layout, as constants.
template <class Args, class F>
cudaError_t with_layout(const Args& args, const Cuts& cuts, const F& f) {
  return with_format(args.dtype, [&](auto format) {
    constexpr int V = kNeighbours<decltype(format)>;
    const auto of = [&](auto neighbours) {
      return args.channels_last ? f(format, neighbours, std::true_type())
                                : f(format, neighbours, std::false_type());
    };
    return cuts.neighbours == 1 ? of(std::integral_constant<int, 1>())
                                : of(std::integral_constant<int, V>());
  });
}

int64_t warps_as_blocks(int64_t warps) {
  const int64_t blocks = (warps + kWarps - 1) / kWarps;
  return blocks < kMaxBlocks ? blocks : kMaxBlocks;
}

}  // namespace

size_t group_norm_workspace(const GroupNorm& args) { return partial_sums(args) * sizeof(double); }
size_t group_norm_backward_workspace(const GroupNormBackward& args) {
  return (partial_sums(args) + static_cast<size_t>(2 * args.rows * args.groups)) * sizeof(double);
}

cudaError_t group_norm(const GroupNorm& args, void* workspace, cudaStream_t stream) {
  const int64_t units = args.rows * args.groups, n = args.rows * args.channels * args.inner;
  if (units == 0) return cudaSuccess;
  const Cuts cuts(args);
  double* partials = static_cast<double*>(workspace);
  const bool aligned = is_aligned(args.x, 16) && is_aligned(args.y, 16);
  return with_layout(args, cuts, [&](auto format, auto neighbours, auto last) {
    using F = decltype(format);
    constexpr int V = decltype(neighbours)::value;
    constexpr bool LAST = decltype(last)::value;
    cudaError_t error = cudaSuccess;
    if (n > 0) {
      error = launch(channel_sums_kernel<F, V, LAST, Distances, GroupNorm>, cuts.blocks, kThreads,
                     stream, args, cuts, partials, aligned);
    }
    if (error == cudaSuccess) {
      error = launch(statistics_kernel<F>, warps_as_blocks(units), kThreads, stream, args,
                     cuts.parts, partials);
    }
    if (error != cudaSuccess || n == 0) return error;
    return launch(normalize_kernel<F, V, LAST>, cuts.blocks, kThreads, stream, args, cuts, aligned);
  });
}

cudaError_t group_norm_backward(const GroupNormBackward& args, void* workspace,
                                cudaStream_t stream) {
  const int64_t units = args.rows * args.groups, n = args.rows * args.channels * args.inner;
  const Cuts cuts(args);
  double* partials = static_cast<double*>(workspace);
  double* shares = partials + partial_sums(args);
  const bool aligned =
      is_aligned(args.x, 16) && is_aligned(args.grad_y, 16) && is_aligned(args.grad_x, 16);
  return with_layout(args, cuts, [&](auto format, auto neighbours, auto last) {
    using F = decltype(format);
    constexpr int V = decltype(neighbours)::value;
    constexpr bool LAST = decltype(last)::value;
    cudaError_t error = cudaSuccess;
    if (n > 0) {
      error = launch(channel_sums_kernel<F, V, LAST, Gradients, GroupNormBackward>, cuts.blocks,
                     kThreads, stream, args, cuts, partials, aligned);
    }
    if (error == cudaSuccess) {
      error = launch(shares_kernel<F>, warps_as_blocks(units + args.channels), kThreads, stream,
                     args, cuts.parts, partials, shares);
    }
    if (error != cudaSuccess || n == 0) return error;
    return launch(gradient_kernel<F, V, LAST>, cuts.blocks, kThreads, stream, args, cuts, shares,
                  aligned);
  });
}

}  // namespace vae_fast::cuda
