// GroupNorm, with or without SiLU, on the CPU, forward and backward, of contiguous and of
// channels-last maps.
//
// Bytes per element in float32: forward, 8 read (4 of them for the moments) and 4 written;
// backward, 16 read and 8 written. The second read comes from the cache if a group, or a sample of
// channels-last maps, fits it. Backward has the input and each group's mean and 1 / deviation.
//
// A problem consists of units with separate statistics: a group of a sample, or a whole sample of
// channels-last maps. A unit's first pass is cut into pieces by its size alone, and the pieces'
// sums are added in order. If there are fewer units than threads, threads share a unit's pieces.
#pragma once

#include "cpu/driver.h"
#include "norm/activation.h"
#include "norm/drivers.h"
#include "norm/formulas.h"
#include "norm/pair.h"

namespace vae_fast::norm {

using cpu::kBlock;
using cpu::kChunk;

constexpr int64_t kNormPiece = 1 << 16;  // elements of a piece
constexpr int64_t kNormRows = 512;       // the most rows of a piece

VF_FN int64_t pieces_of(int64_t n, int64_t piece) { return (n + piece - 1) / piece; }

// first(unit, piece), then finish(unit), then second(unit, piece); each of a unit's pieces costs as
// many elements.
template <class First, class Finish, class Second>
void in_two_passes(const Workers& workers, int64_t units, int64_t firsts, int64_t seconds,
                   int64_t unit_size, const First& first, const Finish& finish,
                   const Second& second) {
  if (units >= workers.count || units * unit_size < 2 * cpu::kParallel) {
    cpu::parallel(workers.threads, units, unit_size, [&](int64_t unit) {
      for (int64_t p = 0; p < firsts; ++p) first(unit, p);
      finish(unit);
      for (int64_t p = 0; p < seconds; ++p) second(unit, p);
    });
    return;
  }
  const auto share = [&](int64_t pieces) { return pieces > 0 ? unit_size / pieces : 0; };
  cpu::parallel(workers.threads, units * firsts, share(firsts),
                [&](int64_t i) { first(i / firsts, i % firsts); });
  for (int64_t unit = 0; unit < units; ++unit) finish(unit);
  cpu::parallel(workers.threads, units * seconds, share(seconds),
                [&](int64_t i) { second(i / seconds, i % seconds); });
}

// An array, on the stack if it is short.
template <class T, int64_t INLINE>
class Local {
 public:
  VF_FN explicit Local(int64_t count) : data_(count <= INLINE ? inline_ : new T[count]) {}
  VF_FN ~Local() {
    if (data_ != inline_) delete[] data_;
  }
  Local(const Local&) = delete;
  Local& operator=(const Local&) = delete;
  VF_FN operator T*() { return data_; }

 private:
  T inline_[INLINE];
  T* data_;
};

template <class M>
VF_FN typename M::Element affine(const void* p, int64_t channel, float otherwise) {
  return p == nullptr ? typename M::Element(otherwise)
                      : static_cast<const typename M::Element*>(p)[channel];
}

// --- contiguous: a unit is a group of a sample ---------------------------------------------------

// Sums over a run, two of them, of terms(pair of x's vectors) or of what two runs hold.
template <class M>
struct TwoSums {
  using T = typename M::T;
  T one[4] = {}, other[4] = {};  // side by side, so that their latencies overlap

  VF_FN void add(int lane, T a, T b) {
    one[lane] += a;
    other[lane] += b;
  }
  VF_FN void into(typename M::Sum& first, typename M::Sum& second) const {
    first.add((one[0] + one[1]) + (one[2] + one[3]));
    second.add((other[0] + other[1]) + (other[2] + other[3]));
  }
};

template <class M, class S>
VF_FN Moments moments(const S* x, int64_t n) {
  using T = typename M::T;
  const auto sum_of = [&](int64_t begin, int64_t end, T shift, double& sum, double& squares) {
    TwoSums<M> sums;
    const auto add = [&](const Pair<M>& d, int turn) __attribute__((always_inline)) {
      sums.add(2 * turn, d.a, d.a * d.a);
      sums.add(2 * turn + 1, d.b, d.b * d.b);
    };
    walk_pairs<M>(
        begin, end,
        [&](int64_t i, int turn)
            __attribute__((always_inline)) { add(load_pair<M>(x + i) - shift, turn); },
        [&](int64_t i, int64_t count) {
          add(first_of<M, S>(count, load_some<M>(x + i, count) - shift), 0);
        });
    typename M::Sum first, second;
    sums.into(first, second);
    sum += first.total();
    squares += second.total();
  };
  // Distances from roughly the mean lose nothing to cancellation. The mean of the first k elements
  // is good enough if k^2 is not far below n: an outlier among them then shifts it by little more
  // than the deviation.
  double sum = 0.0, squares = 0.0;
  const int64_t some = n < 64 ? n : 64;
  sum_of(0, some, M::splat(0.0f), sum, squares);
  const typename M::Element shift = typename M::Element(some == 0 ? 0.0 : sum / double(some));
  sum = squares = 0.0;
  for (int64_t block = 0; block < n; block += kBlock<M>) {
    sum_of(block, block + kBlock<M> < n ? block + kBlock<M> : n, M::splat(shift), sum, squares);
  }
  return Moments::shifted(double(n), double(shift), sum, squares);
}

// One channel of a sample: v = (x - mean) scale + bias, with scale = rstd weight.
template <class M>
struct Channel {
  typename M::T mean, scale, bias;
  double rstd;

  template <class Args>
  VF_FN Channel(const Args& args, int64_t group, int64_t channel) {
    using Acc = typename M::Element;
    const Acc r = static_cast<const Acc*>(args.rstd)[group];
    mean = M::splat(static_cast<const Acc*>(args.mean)[group]);
    bias = M::splat(affine<M>(args.bias, channel, 0.0f));
    scale = M::splat(r * affine<M>(args.weight, channel, 1.0f));
    rstd = double(r);
  }
};

template <class M, class S, bool SILU>
VF_FN void normalize_run(const S* x, S* y, int64_t n, const Channel<M>& c) {
  using T = typename M::T;
  const auto value = [&](T v) __attribute__((always_inline)) {
    return activation<M, S, SILU>((v - c.mean) * c.scale + c.bias);
  };
  const auto pair = [&](const Pair<M>& v)
                        __attribute__((always_inline)) { return Pair<M>{value(v.a), value(v.b)}; };
  walk_pairs<M>(
      0, n,
      [&](int64_t i, int)
          __attribute__((always_inline)) { store_pair<M>(pair(load_pair<M>(x + i)), y + i); },
      [&](int64_t i, int64_t count) {
        store_some<M>(pair(load_some<M>(x + i, count)), y + i, count);
      });
}

template <class M, class S, bool SILU>
void group_norm_planes(const GroupNorm& args, const Workers& workers) {
  using Acc = typename M::Element;
  const int64_t deep = args.channels / args.groups, inner = args.inner;
  const int64_t size = deep * inner, units = args.rows * args.groups;
  const int64_t firsts = pieces_of(size, kChunk), cuts = pieces_of(inner, kNormPiece);
  const S* x = static_cast<const S*>(args.x);
  S* y = static_cast<S*>(args.y);
  Local<Moments, 64> parts(units * firsts);
  in_two_passes(
      workers, units, firsts, deep * cuts, size,
      [&](int64_t unit, int64_t piece) {
        const int64_t begin = piece * kChunk, left = size - begin;
        parts[unit * firsts + piece] =
            moments<M>(x + unit * size + begin, left < kChunk ? left : kChunk);
      },
      [&](int64_t unit) {
        Moments all;
        for (int64_t p = 0; p < firsts; ++p) all.add(parts[unit * firsts + p]);
        static_cast<Acc*>(args.mean)[unit] = Acc(all.mean);
        static_cast<Acc*>(args.rstd)[unit] = Acc(all.rstd(args.eps));
      },
      [&](int64_t unit, int64_t piece) {
        const int64_t channel = unit % args.groups * deep + piece / cuts;
        const int64_t begin = piece % cuts * kNormPiece, left = inner - begin;
        const int64_t at = unit * size + piece / cuts * inner + begin;
        normalize_run<M, S, SILU>(x + at, y + at, left < kNormPiece ? left : kNormPiece,
                                  Channel<M>(args, unit, channel));
      });
}

// The sums over a run of dv and dv xhat, where dv = grad silu'(v), or grad.
template <class M, class S, bool SILU>
VF_FN void gradient_sums(const S* x, const S* grad, int64_t n, const Channel<M>& c, double* out) {
  using T = typename M::T;
  typename M::Sum plain, by_distance;
  for (int64_t block = 0; block < n; block += kBlock<M>) {
    TwoSums<M> sums;
    const auto add = [&](T d, T g, int lane) __attribute__((always_inline)) {
      const T dv = g * slope<M, S, SILU>(d * c.scale + c.bias);
      sums.add(lane, dv, dv * d);
    };
    walk_pairs<M>(
        block, block + kBlock<M> < n ? block + kBlock<M> : n,
        [&](int64_t i, int turn) __attribute__((always_inline)) {
          const Pair<M> v = load_pair<M>(x + i), g = load_pair<M>(grad + i);
          add(v.a - c.mean, g.a, 2 * turn);
          add(v.b - c.mean, g.b, 2 * turn + 1);
        },
        [&](int64_t i, int64_t count) {  // beyond the end grad is 0, and d finite
          const Pair<M> d = first_of<M, S>(count, load_some<M>(x + i, count) - c.mean);
          const Pair<M> g = load_some<M>(grad + i, count);
          add(d.a, g.a, 0);
          add(d.b, g.b, 1);
        });
    sums.into(plain, by_distance);
  }
  out[0] = plain.total();
  out[1] = by_distance.total() * c.rstd;
}

template <class M, class S, bool SILU>
VF_FN void gradient_run(const S* x, const S* grad, S* out, int64_t n, const Channel<M>& c,
                        const GroupGradient& group) {
  using T = typename M::T;
  const T plain = M::splat(typename M::Element(group.plain));
  const T by_distance = M::splat(typename M::Element(group.slope));
  const auto value = [&](T v, T g) __attribute__((always_inline)) {
    const T d = v - c.mean;
    const T dv = g * slope<M, S, SILU>(d * c.scale + c.bias);
    return c.scale * dv - (plain + d * by_distance);
  };
  const auto pair = [&](const Pair<M>& v, const Pair<M>& g) __attribute__((always_inline)) {
    return Pair<M>{value(v.a, g.a), value(v.b, g.b)};
  };
  walk_pairs<M>(
      0, n,
      [&](int64_t i, int) __attribute__((always_inline)) {
        store_pair<M>(pair(load_pair<M>(x + i), load_pair<M>(grad + i)), out + i);
      },
      [&](int64_t i, int64_t count) {
        store_some<M>(pair(load_some<M>(x + i, count), load_some<M>(grad + i, count)), out + i,
                      count);
      });
}

// grad_weight and grad_bias from each sample's sums, two for a channel.
template <class M>
void sum_over_samples(const GroupNormBackward& args, const double* sums) {
  using Acc = typename M::Element;
  for (int64_t c = 0; c < args.channels; ++c) {
    double plain = 0.0, by_xhat = 0.0;
    for (int64_t n = 0; n < args.rows; ++n) {
      plain += sums[2 * (n * args.channels + c)];
      by_xhat += sums[2 * (n * args.channels + c) + 1];
    }
    static_cast<Acc*>(args.grad_bias)[c] = Acc(plain);
    static_cast<Acc*>(args.grad_weight)[c] = Acc(by_xhat);
  }
}

// A group's share, from the sums of its channels.
template <class M>
VF_FN GroupGradient group_gradient(const GroupNormBackward& args, int64_t group,
                                   const double* sums) {
  const int64_t deep = args.channels / args.groups, first = group % args.groups * deep;
  double plain = 0.0, by_xhat = 0.0;
  for (int64_t d = 0; d < deep; ++d) {
    const double weight = double(affine<M>(args.weight, first + d, 1.0f));
    plain += weight * sums[2 * d];
    by_xhat += weight * sums[2 * d + 1];
  }
  return GroupGradient(plain, by_xhat,
                       double(static_cast<const typename M::Element*>(args.rstd)[group]),
                       double(deep) * double(args.inner));
}

template <class M, class S, bool SILU>
void group_norm_planes_backward(const GroupNormBackward& args, const Workers& workers) {
  const int64_t deep = args.channels / args.groups, inner = args.inner;
  const int64_t size = deep * inner, units = args.rows * args.groups;
  const int64_t cuts = pieces_of(inner, kNormPiece), pieces = deep * cuts;
  const S *x = static_cast<const S*>(args.x), *grad = static_cast<const S*>(args.grad_y);
  S* out = static_cast<S*>(args.grad_x);
  Local<double, 64> parts(2 * units * pieces), sums(2 * units * deep);
  const auto place = [&](int64_t unit, int64_t piece, auto&& body) {
    const int64_t begin = piece % cuts * kNormPiece, left = inner - begin;
    body(unit * size + piece / cuts * inner + begin, left < kNormPiece ? left : kNormPiece,
         Channel<M>(args, unit, unit % args.groups * deep + piece / cuts));
  };
  in_two_passes(
      workers, units, pieces, pieces, size,
      [&](int64_t unit, int64_t piece) {
        place(unit, piece, [&](int64_t at, int64_t n, const Channel<M>& c) {
          gradient_sums<M, S, SILU>(x + at, grad + at, n, c, parts + 2 * (unit * pieces + piece));
        });
      },
      [&](int64_t unit) {
        for (int64_t d = 0; d < deep; ++d) {
          for (int k = 0; k < 2; ++k) {
            double sum = 0.0;
            for (int64_t p = 0; p < cuts; ++p) sum += parts[2 * (unit * pieces + d * cuts + p) + k];
            sums[2 * (unit * deep + d) + k] = sum;
          }
        }
      },
      [&](int64_t unit, int64_t piece) {
        const GroupGradient group = group_gradient<M>(args, unit, sums + 2 * unit * deep);
        place(unit, piece, [&](int64_t at, int64_t n, const Channel<M>& c) {
          gradient_run<M, S, SILU>(x + at, grad + at, out + at, n, c, group);
        });
      });
  sum_over_samples<M>(args, sums);
}

// --- channels-last: a unit is a sample -----------------------------------------------------------

// A sample is cut into rows of `width` elements: as many whole positions as fill pairs of vectors, if
// these are not too many. Element l of each row belongs to channel l % channels. The channels'
// constants are laid out once for a row, in the order in which a pair of S holds its elements.
template <class M, class S>
struct Rows {
  static constexpr int64_t span = 2 * M::width;
  int64_t channels, deep, width, padded, piece;  // piece: elements of a piece

  template <class Args>
  VF_FN explicit Rows(const Args& args)
      : channels(args.channels), deep(args.channels / args.groups), width(args.channels) {
    int64_t whole = channels;  // a common multiple of channels and a pair's width
    while (whole % span != 0) whole *= 2;
    if (whole <= 2048) width = whole;
    const int64_t wanted = 4 * span;
    if (width < wanted) width *= (wanted + width - 1) / width;
    padded = (width + span - 1) / span * span;
    const int64_t rows = kNormPiece / width < 1 ? 1 : kNormPiece / width;
    piece = width * (rows < kNormRows ? rows : kNormRows);
  }

  // Where what belongs to element l of a row is laid out.
  VF_FN int64_t at(int64_t l) const { return l / span * span + place_in_pair<M, S>(l % span); }

  // step(i, l) for every whole pair of [begin, end), tail(i, l, count) for the rest of a row. i is
  // the element's index in the sample, l in its row.
  template <class Step, class Tail>
  VF_FN void walk(int64_t begin, int64_t end, Step&& step, Tail&& tail) const {
    for (int64_t row = begin; row < end; row += width) {
      const int64_t n = row + width < end ? width : end - row;
      int64_t l = 0;
      for (; l + span <= n; l += span) step(row + l, l);
      if (l < n) tail(row + l, l, n - l);
    }
  }

  // The same down the rows of [begin, end), for the pair at l.
  template <class Step, class Tail>
  VF_FN void down(int64_t begin, int64_t end, int64_t l, Step&& step, Tail&& tail) const {
    const int64_t wide = width - l < span ? width - l : span;
    int64_t i = begin + l;
    if (wide == span) {
      for (; i + span <= end; i += width) step(i);
    }
    for (; i < end; i += width) tail(i, end - i < wide ? end - i : wide);
  }

  // body(index, group, channel) for each element of a row.
  template <class Body>
  VF_FN void each(Body&& body) const {
    for (int64_t base = 0; base < width; base += channels) {
      for (int64_t c = 0, group = 0; c < channels; ++group) {
        for (const int64_t end = c + deep; c < end; ++c) body(base + c, group, c);
      }
    }
  }
};

// The number of rows that are added up separately: sums of sums keep more digits than one long sum.
template <class M>
constexpr int64_t kFold = M::width == 1 ? 16 : 64;

// Two sums for each place of a row, of distances d (a pair) from those in `shift`, over a piece of n
// elements: terms(d, i, l, count) gives what each of a pair's elements adds to both. Elements beyond
// `count` have distance 0; count is the pair's width where all are there.
template <class M, class S, class Terms>
VF_FN void sums_down(const Rows<M, S>& rows, const S* x, int64_t n,
                     const typename M::Element* shift, typename M::Element* one,
                     typename M::Element* other, const Terms& terms) {
  constexpr int64_t span = Rows<M, S>::span;
  const int64_t run = kFold<M> * rows.width;
  for (int64_t begin = 0; begin < n; begin += run) {
    const int64_t end = begin + run < n ? begin + run : n;
    for (int64_t l = 0; l < rows.width; l += span) {
      const Pair<M> from = laid_out<M>(shift + l);
      Pair<M> sum{}, second{};
      const auto add = [&](const Pair<M>& d, int64_t i, int64_t count)
                           __attribute__((always_inline)) { terms(d, i, l, count, sum, second); };
      rows.down(
          begin, end, l,
          [&](int64_t i)
              __attribute__((always_inline)) { add(load_pair<M>(x + i) - from, i, span); },
          [&](int64_t i, int64_t count) {
            add(first_of<M, S>(count, load_some<M>(x + i, count) - from), i, count);
          });
      lay_out<M>(laid_out<M>(one + l) + sum, one + l);
      lay_out<M>(laid_out<M>(other + l) + second, other + l);
    }
  }
}

// How many of a piece's `n` elements are at position l of a row.
VF_FN int64_t count_at(int64_t n, int64_t width, int64_t l) {
  return n / width + (l < n % width ? 1 : 0);
}

// The moments of each group in a piece of a sample.
template <class M, class S>
VF_FN void group_moments(const Rows<M, S>& rows, const S* x, int64_t n, Moments* out,
                         int64_t groups) {
  using Acc = typename M::Element;
  const int64_t padded = rows.padded;
  Local<Acc, 1024> scratch(4 * padded);
  Acc *zero = scratch, *shift = zero + padded, *sum = shift + padded, *squares = sum + padded;
  std::memset(zero, 0, size_t(4 * padded) * sizeof(Acc));
  const auto add = [&](const Pair<M>& d, int64_t, int64_t, int64_t, Pair<M>& one, Pair<M>& other)
                       __attribute__((always_inline)) {
                         one.a += d.a, one.b += d.b;
                         other.a += d.a * d.a, other.b += d.b * d.b;
                       };
  // Roughly the mean, as for contiguous runs: that of 24 rows, for 512 rows.
  const int64_t some = n < 24 * rows.width ? n : 24 * rows.width;
  sums_down<M, S>(rows, x, some, zero, shift, squares, add);
  for (int64_t l = 0; l < rows.width; ++l) {
    const int64_t count = count_at(some, rows.width, l);
    shift[rows.at(l)] /= Acc(count < 1 ? 1 : count);
  }
  std::memset(squares, 0, size_t(padded) * sizeof(Acc));
  sums_down<M, S>(rows, x, n, shift, sum, squares, add);
  // The positions of a group: first their mean, and then distances from it.
  for (int64_t g = 0; g < groups; ++g) out[g] = Moments();
  rows.each([&](int64_t l, int64_t g, int64_t) {
    const double count = double(count_at(n, rows.width, l));
    const int64_t at = rows.at(l);
    out[g].count += count;
    out[g].mean += count * double(shift[at]) + double(sum[at]);
  });
  for (int64_t g = 0; g < groups; ++g) {
    if (out[g].count > 0.0) out[g].mean /= out[g].count;
  }
  rows.each([&](int64_t l, int64_t g, int64_t) {
    const double count = double(count_at(n, rows.width, l));
    const int64_t at = rows.at(l);
    const Moments own =
        Moments::shifted(count, double(shift[at]), double(sum[at]), double(squares[at]));
    const double distance = own.mean - out[g].mean;
    if (count > 0.0) out[g].m2 += own.m2 + count * distance * distance;
  });
}

// What a row's elements take of their channels: v = (x - mean) scale + bias.
template <class M, class S>
struct LaidOut {
  using Acc = typename M::Element;
  Acc *mean, *scale, *bias;

  // `memory` has room for three rows.
  template <class Args>
  VF_FN LaidOut(const Args& args, const Rows<M, S>& rows, int64_t unit, Acc* memory)
      : mean(memory), scale(memory + rows.padded), bias(memory + 2 * rows.padded) {
    std::memset(memory, 0, size_t(3 * rows.padded) * sizeof(Acc));
    rows.each([&](int64_t l, int64_t g, int64_t c) {
      const int64_t at = rows.at(l), group = unit * args.groups + g;
      mean[at] = static_cast<const Acc*>(args.mean)[group];
      scale[at] = static_cast<const Acc*>(args.rstd)[group] * affine<M>(args.weight, c, 1.0f);
      bias[at] = affine<M>(args.bias, c, 0.0f);
    });
  }
};

template <class M, class S, bool SILU>
void group_norm_rows(const GroupNorm& args, const Workers& workers) {
  using T = typename M::T;
  using Acc = typename M::Element;
  const Rows<M, S> rows(args);
  const int64_t size = args.channels * args.inner, groups = args.groups;
  const int64_t pieces = pieces_of(size, rows.piece);
  const S* x = static_cast<const S*>(args.x);
  S* y = static_cast<S*>(args.y);
  Local<Moments, 64> parts(args.rows * pieces * groups);
  const auto length = [&](int64_t piece) {
    const int64_t left = size - piece * rows.piece;
    return left < rows.piece ? left : rows.piece;
  };
  in_two_passes(
      workers, args.rows, pieces, pieces, size,
      [&](int64_t unit, int64_t piece) {
        group_moments<M, S>(rows, x + unit * size + piece * rows.piece, length(piece),
                            parts + (unit * pieces + piece) * groups, groups);
      },
      [&](int64_t unit) {
        for (int64_t g = 0; g < groups; ++g) {
          Moments all;
          for (int64_t p = 0; p < pieces; ++p) all.add(parts[(unit * pieces + p) * groups + g]);
          static_cast<Acc*>(args.mean)[unit * groups + g] = Acc(all.mean);
          static_cast<Acc*>(args.rstd)[unit * groups + g] = Acc(all.rstd(args.eps));
        }
      },
      [&](int64_t unit, int64_t piece) {
        Local<Acc, 1024> scratch(3 * rows.padded);
        const LaidOut<M, S> c(args, rows, unit, scratch);
        const int64_t begin = unit * size + piece * rows.piece;
        const S* from = x + begin;
        S* to = y + begin;
        const auto value = [&](T v, int64_t l) __attribute__((always_inline)) {
          return activation<M, S, SILU>((v - M::load(c.mean + l)) * M::load(c.scale + l) +
                                        M::load(c.bias + l));
        };
        const auto pair = [&](const Pair<M>& v, int64_t l) __attribute__((always_inline)) {
          return Pair<M>{value(v.a, l), value(v.b, l + M::width)};
        };
        rows.walk(
            0, length(piece),
            [&](int64_t i, int64_t l) __attribute__((always_inline)) {
              store_pair<M>(pair(load_pair<M>(from + i), l), to + i);
            },
            [&](int64_t i, int64_t l, int64_t count) {
              store_some<M>(pair(load_some<M>(from + i, count), l), to + i, count);
            });
      });
}

template <class M, class S, bool SILU>
void group_norm_rows_backward(const GroupNormBackward& args, const Workers& workers) {
  using T = typename M::T;
  using Acc = typename M::Element;
  const Rows<M, S> rows(args);
  const int64_t size = args.channels * args.inner, groups = args.groups;
  const int64_t channels = args.channels, padded = rows.padded;
  const int64_t pieces = pieces_of(size, rows.piece);
  const S *x = static_cast<const S*>(args.x), *grad = static_cast<const S*>(args.grad_y);
  S* out = static_cast<S*>(args.grad_x);
  Local<double, 64> parts(2 * args.rows * pieces * channels), sums(2 * args.rows * channels);
  const auto length = [&](int64_t piece) {
    const int64_t left = size - piece * rows.piece;
    return left < rows.piece ? left : rows.piece;
  };
  in_two_passes(
      workers, args.rows, pieces, pieces, size,
      [&](int64_t unit, int64_t piece) {
        Local<Acc, 1024> scratch(5 * padded);
        const LaidOut<M, S> c(args, rows, unit, scratch);
        Acc *plain = scratch + 3 * padded, *by_distance = plain + padded;
        std::memset(plain, 0, size_t(2 * padded) * sizeof(Acc));
        const S* upstream = grad + unit * size + piece * rows.piece;
        sums_down<M, S>(
            rows, x + unit * size + piece * rows.piece, length(piece), c.mean, plain, by_distance,
            [&](const Pair<M>& d, int64_t i, int64_t l, int64_t count, Pair<M>& one, Pair<M>& other)
                __attribute__((always_inline)) {
                  const Pair<M> g = count == Rows<M, S>::span ? load_pair<M>(upstream + i)
                                                              : load_some<M>(upstream + i, count);
                  const Pair<M> scale = laid_out<M>(c.scale + l), bias = laid_out<M>(c.bias + l);
                  const T a = g.a * slope<M, S, SILU>(d.a * scale.a + bias.a);
                  const T b = g.b * slope<M, S, SILU>(d.b * scale.b + bias.b);
                  one.a += a, one.b += b;
                  other.a += a * d.a, other.b += b * d.b;
                });
        double* own = parts + 2 * (unit * pieces + piece) * channels;
        for (int64_t i = 0; i < 2 * channels; ++i) own[i] = 0.0;
        rows.each([&](int64_t l, int64_t, int64_t channel) {
          own[2 * channel] += double(plain[rows.at(l)]);
          own[2 * channel + 1] += double(by_distance[rows.at(l)]);
        });
      },
      [&](int64_t unit) {
        double* own = sums + 2 * unit * channels;
        for (int64_t i = 0; i < 2 * channels; ++i) own[i] = 0.0;
        for (int64_t p = 0; p < pieces; ++p) {
          const double* part = parts + 2 * (unit * pieces + p) * channels;
          for (int64_t i = 0; i < 2 * channels; ++i) own[i] += part[i];
        }
        for (int64_t c = 0; c < channels; ++c) {  // of distances, and to be of xhat
          const Acc* rstd = static_cast<const Acc*>(args.rstd) + unit * groups;
          own[2 * c + 1] *= double(rstd[c / rows.deep]);
        }
      },
      [&](int64_t unit, int64_t piece) {
        Local<Acc, 1024> scratch(5 * padded);
        const LaidOut<M, S> c(args, rows, unit, scratch);
        Acc *plain = scratch + 3 * padded, *by_distance = plain + padded;
        std::memset(plain, 0, size_t(2 * padded) * sizeof(Acc));
        for (int64_t g = 0; g < groups; ++g) {
          const GroupGradient group = group_gradient<M>(
              args, unit * groups + g, sums + 2 * (unit * channels + g * rows.deep));
          for (int64_t base = 0; base < rows.width; base += channels) {
            for (int64_t d = 0; d < rows.deep; ++d) {
              const int64_t at = rows.at(base + g * rows.deep + d);
              plain[at] = Acc(group.plain);
              by_distance[at] = Acc(group.slope);
            }
          }
        }
        const int64_t begin = unit * size + piece * rows.piece;
        const auto value = [&](T v, T g, int64_t l) __attribute__((always_inline)) {
          const T d = v - M::load(c.mean + l), scale = M::load(c.scale + l);
          const T dv = g * slope<M, S, SILU>(d * scale + M::load(c.bias + l));
          return scale * dv - (M::load(plain + l) + d * M::load(by_distance + l));
        };
        const auto pair = [&](const Pair<M>& v, const Pair<M>& g, int64_t l)
                              __attribute__((always_inline)) {
                                return Pair<M>{value(v.a, g.a, l), value(v.b, g.b, l + M::width)};
                              };
        rows.walk(
            begin, begin + length(piece),
            [&](int64_t i, int64_t l) __attribute__((always_inline)) {
              store_pair<M>(pair(load_pair<M>(x + i), load_pair<M>(grad + i), l), out + i);
            },
            [&](int64_t i, int64_t l, int64_t count) {
              store_some<M>(pair(load_some<M>(x + i, count), load_some<M>(grad + i, count), l),
                            out + i, count);
            });
      });
  sum_over_samples<M>(args, sums);
}

// --- both ----------------------------------------------------------------------------------------

template <class M, class Body>
void with_norm_storage(DType dtype, Body&& body) {
  if constexpr (M::width == 1) {
    body(cpu::Storage<double>{});
  } else {
    cpu::with_storage(dtype, body);
  }
}

// Calls body(Storage<S>{}, whether SiLU follows, as a constant).
template <class M, class Args, class Body>
void with_kind(const Args& args, Body&& body) {
  with_norm_storage<M>(args.dtype, [&](auto storage) {
    if (args.silu) return body(storage, std::true_type());
    body(storage, std::false_type());
  });
}

template <class M>
void group_norm_driver(const GroupNorm& args, const Workers& workers) {
  with_kind<M>(args, [&](auto storage, auto silu) {
    using S = typename decltype(storage)::type;
    if (args.channels_last) return group_norm_rows<M, S, silu()>(args, workers);
    group_norm_planes<M, S, silu()>(args, workers);
  });
}

template <class M>
void group_norm_backward_driver(const GroupNormBackward& args, const Workers& workers) {
  with_kind<M>(args, [&](auto storage, auto silu) {
    using S = typename decltype(storage)::type;
    if (args.channels_last) return group_norm_rows_backward<M, S, silu()>(args, workers);
    group_norm_planes_backward<M, S, silu()>(args, workers);
  });
}

template <class M>
constexpr Drivers drivers_of() {
  return {group_norm_driver<M>, group_norm_backward_driver<M>};
}

}  // namespace vae_fast::norm
