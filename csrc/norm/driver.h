// GroupNorm and SiLU on the CPU, forward and backward, of contiguous and of channels-last maps.
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
#include "norm/drivers.h"
#include "norm/formulas.h"

namespace vae_fast::norm {

using cpu::kBlock;
using cpu::kChunk;
using cpu::load_tail;
using cpu::store_tail;
using cpu::walk;

constexpr int64_t kNormPiece = 1 << 15;  // elements of a piece
constexpr int64_t kNormRows = 256;       // the most rows of a piece

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

template <class M, class S>
VF_FN Moments moments(const S* x, int64_t n) {
  using T = typename M::T;
  const auto sum_of = [&](int64_t begin, int64_t end, T shift, double& sum, double& squares) {
    T s[4] = {}, q[4] = {};
    walk<M>(
        begin, end,
        [&](int64_t i, int lane) __attribute__((always_inline)) {
          const T d = M::load(x + i) - shift;
          s[lane & 3] += d;
          q[lane & 3] += d * d;
        },
        [&](int64_t i, int64_t count) {
          const T d = M::first(count, load_tail<M>(x + i, count) - shift);
          s[0] += d;
          q[0] += d * d;
        });
    typename M::Sum sums, squared;
    sums.add((s[0] + s[1]) + (s[2] + s[3]));
    squared.add((q[0] + q[1]) + (q[2] + q[3]));
    sum += sums.total();
    squares += squared.total();
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
  typename M::T mean, rstd, weight, bias, scale;

  template <class Args>
  VF_FN Channel(const Args& args, int64_t group, int64_t channel) {
    using Acc = typename M::Element;
    const Acc r = static_cast<const Acc*>(args.rstd)[group];
    const Acc w = affine<M>(args.weight, channel, 1.0f);
    mean = M::splat(static_cast<const Acc*>(args.mean)[group]);
    rstd = M::splat(r);
    weight = M::splat(w);
    bias = M::splat(affine<M>(args.bias, channel, 0.0f));
    scale = M::splat(r * w);
  }
};

template <class M, class S>
VF_FN void normalize_run(const S* x, S* y, int64_t n, const Channel<M>& c) {
  using T = typename M::T;
  const auto value = [&](T v) __attribute__((always_inline)) {
    return silu<M>((v - c.mean) * c.scale + c.bias);
  };
  walk<M>(
      0, n,
      [&](int64_t i, int)
          __attribute__((always_inline)) { M::store(value(M::load(x + i)), y + i); },
      [&](int64_t i, int64_t count) {
        store_tail<M>(value(load_tail<M>(x + i, count)), y + i, count);
      });
}

template <class M, class S>
void group_norm_planes(const GroupNormSilu& args, const Workers& workers) {
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
        normalize_run<M>(x + at, y + at, left < kNormPiece ? left : kNormPiece,
                         Channel<M>(args, unit, channel));
      });
}

// The sums over a run of dv and dv xhat, where dv = grad silu'(v).
template <class M, class S>
VF_FN void gradient_sums(const S* x, const S* grad, int64_t n, const Channel<M>& c, double* sums) {
  using T = typename M::T;
  typename M::Sum plain, by_xhat;
  for (int64_t block = 0; block < n; block += kBlock<M>) {
    T s[4] = {}, q[4] = {};
    const auto add = [&](T value, T g, int lane) __attribute__((always_inline)) {
      const T xhat = (value - c.mean) * c.rstd;
      const T dv = g * silu_grad<M>(xhat * c.weight + c.bias);
      s[lane & 3] += dv;
      q[lane & 3] += dv * xhat;
    };
    walk<M>(
        block, block + kBlock<M> < n ? block + kBlock<M> : n,
        [&](int64_t i, int lane)
            __attribute__((always_inline)) { add(M::load(x + i), M::load(grad + i), lane); },
        [&](int64_t i, int64_t count) {  // beyond the end grad is 0, and xhat finite
          const T value = M::first(count, load_tail<M>(x + i, count) - c.mean) + c.mean;
          add(value, load_tail<M>(grad + i, count), 0);
        });
    plain.add((s[0] + s[1]) + (s[2] + s[3]));
    by_xhat.add((q[0] + q[1]) + (q[2] + q[3]));
  }
  sums[0] = plain.total();
  sums[1] = by_xhat.total();
}

template <class M, class S>
VF_FN void gradient_run(const S* x, const S* grad, S* out, int64_t n, const Channel<M>& c,
                        const GroupGradient& group) {
  using T = typename M::T;
  const T plain = M::splat(typename M::Element(group.plain));
  const T slope = M::splat(typename M::Element(group.slope));
  const auto value = [&](T v, T g) __attribute__((always_inline)) {
    const T d = v - c.mean;
    const T dv = g * silu_grad<M>(d * c.rstd * c.weight + c.bias);
    return c.scale * dv - (plain + d * slope);
  };
  walk<M>(
      0, n,
      [&](int64_t i, int) __attribute__((always_inline)) {
        M::store(value(M::load(x + i), M::load(grad + i)), out + i);
      },
      [&](int64_t i, int64_t count) {
        store_tail<M>(value(load_tail<M>(x + i, count), load_tail<M>(grad + i, count)), out + i,
                      count);
      });
}

// grad_weight and grad_bias from each sample's sums, two for a channel.
template <class M>
void sum_over_samples(const GroupNormSiluBackward& args, const double* sums) {
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
VF_FN GroupGradient group_gradient(const GroupNormSiluBackward& args, int64_t group,
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

template <class M, class S>
void group_norm_planes_backward(const GroupNormSiluBackward& args, const Workers& workers) {
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
          gradient_sums<M>(x + at, grad + at, n, c, parts + 2 * (unit * pieces + piece));
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
          gradient_run<M>(x + at, grad + at, out + at, n, c, group);
        });
      });
  sum_over_samples<M>(args, sums);
}

// --- channels-last: a unit is a sample -----------------------------------------------------------

// A sample is cut into rows of `width` elements: as many whole positions as fill vectors, if these
// are not too many. Element l of each row belongs to channel l % channels. The channels' constants
// are laid out once for a row.
template <class M>
struct Rows {
  int64_t channels, deep, width, padded, piece;  // piece: elements of a piece

  template <class Args>
  VF_FN explicit Rows(const Args& args)
      : channels(args.channels), deep(args.channels / args.groups), width(args.channels) {
    int64_t whole = channels;  // a common multiple of channels and the vector's width
    while (whole % M::width != 0) whole *= 2;
    if (whole <= 2048) width = whole;
    const int64_t wanted = 8 * M::width;  // sums of fewer vectors would wait for one another
    if (width < wanted) width *= (wanted + width - 1) / width;
    padded = (width + M::width - 1) / M::width * M::width;
    const int64_t rows = kNormPiece / width < 1 ? 1 : kNormPiece / width;
    piece = width * (rows < kNormRows ? rows : kNormRows);
  }

  // step(i, l) for every whole vector of [begin, end), tail(i, l, count) for the rest of a row. i
  // is the element's index in the sample, l in its row.
  template <class Step, class Tail>
  VF_FN void walk(int64_t begin, int64_t end, Step&& step, Tail&& tail) const {
    for (int64_t row = begin; row < end; row += width) {
      const int64_t n = row + width < end ? width : end - row;
      int64_t l = 0;
      for (; l + M::width <= n; l += M::width) step(row + l, l);
      if (l < n) tail(row + l, l, n - l);
    }
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

// Calls body(begin, end) for each such run of [0, n), and then adds sums[i] to totals[i], i <
// count.
template <class M, class Body>
VF_FN void in_folds(const Rows<M>& rows, int64_t n, typename M::Element* sums,
                    typename M::Element* totals, int64_t count, Body&& body) {
  const int64_t run = kFold<M> * rows.width;
  for (int64_t begin = 0; begin < n; begin += run) {
    body(begin, begin + run < n ? begin + run : n);
    for (int64_t i = 0; i < count; ++i) {
      totals[i] += sums[i];
      sums[i] = 0;
    }
  }
}

// How many of a piece's `n` elements are at position l of a row.
VF_FN int64_t count_at(int64_t n, int64_t width, int64_t l) {
  return n / width + (l < n % width ? 1 : 0);
}

// The moments of each group in a piece of a sample.
template <class M, class S>
VF_FN void group_moments(const Rows<M>& rows, const S* x, int64_t n, Moments* out, int64_t groups) {
  using T = typename M::T;
  using Acc = typename M::Element;
  const int64_t padded = rows.padded;
  Local<Acc, 1024> scratch(5 * padded);
  Acc *shift = scratch, *partial = shift + padded, *of_squares = partial + padded,
      *sum = of_squares + padded, *squares = sum + padded;
  std::memset(shift, 0, size_t(5 * padded) * sizeof(Acc));
  // Roughly the mean, as for contiguous runs: that of 16 rows, for 256 rows.
  const int64_t some = n < 16 * rows.width ? n : 16 * rows.width;
  rows.walk(
      0, some,
      [&](int64_t i, int64_t l) __attribute__((always_inline)) {
        M::store(M::load(shift + l) + M::load(x + i), shift + l);
      },
      [&](int64_t i, int64_t l, int64_t count) {
        M::store(M::load(shift + l) + load_tail<M>(x + i, count), shift + l);
      });
  for (int64_t l = 0; l < rows.width; ++l) {
    const int64_t count = count_at(some, rows.width, l);
    shift[l] /= Acc(count < 1 ? 1 : count);
  }
  const auto add = [&](T d, int64_t l) __attribute__((always_inline)) {
    M::store(M::load(partial + l) + d, partial + l);
    M::store(M::load(of_squares + l) + d * d, of_squares + l);
  };
  in_folds<M>(rows, n, partial, sum, 2 * padded, [&](int64_t begin, int64_t end) {
    rows.walk(
        begin, end,
        [&](int64_t i, int64_t l)
            __attribute__((always_inline)) { add(M::load(x + i) - M::load(shift + l), l); },
        [&](int64_t i, int64_t l, int64_t count) {
          add(M::first(count, load_tail<M>(x + i, count) - M::load(shift + l)), l);
        });
  });
  // The positions of a group: first their mean, and then distances from it.
  for (int64_t g = 0; g < groups; ++g) out[g] = Moments();
  rows.each([&](int64_t l, int64_t g, int64_t) {
    const double count = double(count_at(n, rows.width, l));
    out[g].count += count;
    out[g].mean += count * double(shift[l]) + double(sum[l]);
  });
  for (int64_t g = 0; g < groups; ++g) {
    if (out[g].count > 0.0) out[g].mean /= out[g].count;
  }
  rows.each([&](int64_t l, int64_t g, int64_t) {
    const double count = double(count_at(n, rows.width, l));
    const Moments own =
        Moments::shifted(count, double(shift[l]), double(sum[l]), double(squares[l]));
    const double distance = own.mean - out[g].mean;
    if (count > 0.0) out[g].m2 += own.m2 + count * distance * distance;
  });
}

template <class M, class S>
void group_norm_rows(const GroupNormSilu& args, const Workers& workers) {
  using T = typename M::T;
  using Acc = typename M::Element;
  const Rows<M> rows(args);
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
        group_moments<M>(rows, x + unit * size + piece * rows.piece, length(piece),
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
        const int64_t padded = rows.padded;
        Local<Acc, 1024> scratch(3 * padded);
        Acc *mean = scratch, *scale = mean + padded, *bias = scale + padded;
        std::memset(mean, 0, size_t(3 * padded) * sizeof(Acc));
        rows.each([&](int64_t l, int64_t g, int64_t c) {
          mean[l] = static_cast<const Acc*>(args.mean)[unit * groups + g];
          scale[l] = static_cast<const Acc*>(args.rstd)[unit * groups + g] *
                     affine<M>(args.weight, c, 1.0f);
          bias[l] = affine<M>(args.bias, c, 0.0f);
        });
        const int64_t begin = unit * size + piece * rows.piece;
        const S* from = x + begin;
        S* to = y + begin;
        const auto value = [&](T v, int64_t l) __attribute__((always_inline)) {
          return silu<M>((v - M::load(mean + l)) * M::load(scale + l) + M::load(bias + l));
        };
        rows.walk(
            0, length(piece),
            [&](int64_t i, int64_t l)
                __attribute__((always_inline)) { M::store(value(M::load(from + i), l), to + i); },
            [&](int64_t i, int64_t l, int64_t count) {
              store_tail<M>(value(load_tail<M>(from + i, count), l), to + i, count);
            });
      });
}

template <class M, class S>
void group_norm_rows_backward(const GroupNormSiluBackward& args, const Workers& workers) {
  using T = typename M::T;
  using Acc = typename M::Element;
  const Rows<M> rows(args);
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
  const auto lay_out = [&](int64_t unit, Acc* mean, Acc* rstd, Acc* weight, Acc* bias) {
    rows.each([&](int64_t l, int64_t g, int64_t c) {
      mean[l] = static_cast<const Acc*>(args.mean)[unit * groups + g];
      rstd[l] = static_cast<const Acc*>(args.rstd)[unit * groups + g];
      weight[l] = affine<M>(args.weight, c, 1.0f);
      bias[l] = affine<M>(args.bias, c, 0.0f);
    });
  };
  in_two_passes(
      workers, args.rows, pieces, pieces, size,
      [&](int64_t unit, int64_t piece) {
        Local<Acc, 1024> scratch(8 * padded);
        Acc *mean = scratch, *rstd = mean + padded, *weight = rstd + padded,
            *bias = weight + padded, *partial = bias + padded, *of_xhat = partial + padded,
            *plain = of_xhat + padded, *by_xhat = plain + padded;
        std::memset(mean, 0, size_t(8 * padded) * sizeof(Acc));
        lay_out(unit, mean, rstd, weight, bias);
        const int64_t begin = unit * size + piece * rows.piece, n = length(piece);
        const auto add = [&](T value, T g, int64_t l) __attribute__((always_inline)) {
          const T xhat = (value - M::load(mean + l)) * M::load(rstd + l);
          const T dv = g * silu_grad<M>(xhat * M::load(weight + l) + M::load(bias + l));
          M::store(M::load(partial + l) + dv, partial + l);
          M::store(M::load(of_xhat + l) + dv * xhat, of_xhat + l);
        };
        in_folds<M>(rows, n, partial, plain, 2 * padded, [&](int64_t from, int64_t to) {
          rows.walk(
              from, to,
              [&](int64_t i, int64_t l) __attribute__((always_inline)) {
                add(M::load(x + begin + i), M::load(grad + begin + i), l);
              },
              [&](int64_t i, int64_t l, int64_t count) {
                const T m = M::load(mean + l);  // beyond the end grad is 0, and xhat finite
                add(M::first(count, load_tail<M>(x + begin + i, count) - m) + m,
                    load_tail<M>(grad + begin + i, count), l);
              });
        });
        double* own = parts + 2 * (unit * pieces + piece) * channels;
        for (int64_t i = 0; i < 2 * channels; ++i) own[i] = 0.0;
        rows.each([&](int64_t l, int64_t, int64_t c) {
          own[2 * c] += double(plain[l]);
          own[2 * c + 1] += double(by_xhat[l]);
        });
      },
      [&](int64_t unit) {
        double* own = sums + 2 * unit * channels;
        for (int64_t i = 0; i < 2 * channels; ++i) own[i] = 0.0;
        for (int64_t p = 0; p < pieces; ++p) {
          const double* part = parts + 2 * (unit * pieces + p) * channels;
          for (int64_t i = 0; i < 2 * channels; ++i) own[i] += part[i];
        }
      },
      [&](int64_t unit, int64_t piece) {
        Local<Acc, 1024> scratch(6 * padded);
        Acc *mean = scratch, *rstd = mean + padded, *weight = rstd + padded,
            *bias = weight + padded, *plain = bias + padded, *slope = plain + padded;
        std::memset(mean, 0, size_t(6 * padded) * sizeof(Acc));
        lay_out(unit, mean, rstd, weight, bias);
        for (int64_t g = 0; g < groups; ++g) {
          const GroupGradient group = group_gradient<M>(
              args, unit * groups + g, sums + 2 * (unit * channels + g * rows.deep));
          for (int64_t base = 0; base < rows.width; base += channels) {
            for (int64_t d = 0; d < rows.deep; ++d) {
              plain[base + g * rows.deep + d] = Acc(group.plain);
              slope[base + g * rows.deep + d] = Acc(group.slope);
            }
          }
        }
        const int64_t begin = unit * size + piece * rows.piece;
        const auto value = [&](T v, T g, int64_t l) __attribute__((always_inline)) {
          const T d = v - M::load(mean + l), scale = M::load(rstd + l) * M::load(weight + l);
          const T dv = g * silu_grad<M>(d * scale + M::load(bias + l));
          return scale * dv - (M::load(plain + l) + d * M::load(slope + l));
        };
        rows.walk(
            0, length(piece),
            [&](int64_t i, int64_t l) __attribute__((always_inline)) {
              const int64_t at = begin + i;
              M::store(value(M::load(x + at), M::load(grad + at), l), out + at);
            },
            [&](int64_t i, int64_t l, int64_t count) {
              const int64_t at = begin + i;
              store_tail<M>(value(load_tail<M>(x + at, count), load_tail<M>(grad + at, count), l),
                            out + at, count);
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

template <class M>
void group_norm_driver(const GroupNormSilu& args, const Workers& workers) {
  with_norm_storage<M>(args.dtype, [&](auto storage) {
    using S = typename decltype(storage)::type;
    if (args.channels_last) return group_norm_rows<M, S>(args, workers);
    group_norm_planes<M, S>(args, workers);
  });
}

template <class M>
void group_norm_backward_driver(const GroupNormSiluBackward& args, const Workers& workers) {
  with_norm_storage<M>(args.dtype, [&](auto storage) {
    using S = typename decltype(storage)::type;
    if (args.channels_last) return group_norm_rows_backward<M, S>(args, workers);
    group_norm_planes_backward<M, S>(args, workers);
  });
}

template <class M>
constexpr Drivers drivers_of() {
  return {group_norm_driver<M>, group_norm_backward_driver<M>};
}

}  // namespace vae_fast::norm
