// Sums over all pairs of rows on the CPU, in memory of the rows' size.
//
// Lanes are dimensions. A few rows of z meet a tile of 16 rows of mu at a time; where a sum over
// dimensions is wanted, a tree of shuffles turns the tile's 16 vectors into vectors whose lanes are
// pairs. Rows of z are independent in forward. In backward they are cut into slabs, each with sums
// of its own for what belongs to mu, and the slabs are added in order: the cuts depend on the sizes
// alone, so every number of threads gives the same bits.
#pragma once

#include "cpu/driver.h"
#include "cpu/pool.h"
#include "pairwise/gaussian.h"
#include "pairwise/kernels.h"

namespace vae_fast::cpu {

constexpr int kTile = 16;  // rows of mu at a time: a multiple of every width

// Rows of z at a time: as many as the registers hold.
template <class M>
constexpr int kRowsAtOnce = M::width == 1 ? 1 : (M::width >= 16 ? 4 : 2);

VF_FN int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

VF_FN int64_t smaller_of(int64_t a, int64_t b) { return a < b ? a : b; }
VF_FN int64_t larger_of(int64_t a, int64_t b) { return a < b ? b : a; }
VF_FN double larger_of(double a, double b) { return a < b ? b : a; }

template <class E>
VF_FN void fill(E* p, int64_t count, E value) {
  for (int64_t i = 0; i < count; ++i) p[i] = value;
}

// Memory for the duration of a call, from the pool if it is large.
template <class E>
class Scratch {
 public:
  VF_FN explicit Scratch(int64_t count)
      : bytes_(size_t(round_up(count > 0 ? count : 1, 64)) * sizeof(E)),
        data_(static_cast<E*>(bytes_ < kPooledBytes ? ::operator new(bytes_, kAligned)
                                                    : take_buffer(bytes_))) {}
  VF_FN ~Scratch() {
    if (bytes_ < kPooledBytes) {
      ::operator delete(data_, kAligned);
    } else {
      return_buffer(data_, bytes_);
    }
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  VF_FN operator E*() const { return data_; }

 private:
  static constexpr std::align_val_t kAligned{64};
  size_t bytes_;
  E* data_;
};

// During its lifetime, subnormal results and operands are 0. Pairs that are far apart have shares of
// all sizes down to 0, and x86 takes a hundred cycles for arithmetic on subnormal numbers. (float64
// keeps them.)
template <class M>
class FlushTiny {
 public:
#if defined(VF_X86)
  VF_FN FlushTiny() : before_(_mm_getcsr()) {
    if constexpr (M::width > 1) _mm_setcsr(before_ | 0x8040u);
  }
  VF_FN ~FlushTiny() { _mm_setcsr(before_); }

 private:
  unsigned before_;
#else
  VF_FN FlushTiny() {}
  VF_FN ~FlushTiny() {}
#endif
};

// --- rows in and out -----------------------------------------------------------------------------

// Calls body(Storage<S>{}) for the dtype's storage under the policy M.
template <class M, class Body>
VF_FN void with_storage_of(DType dtype, Body&& body) {
  if constexpr (M::width == 1) {
    body(Storage<double>{});
  } else {
    with_storage(dtype, body);
  }
}

// `count` elements from p on, widened, and zeros up to a whole vector.
template <class M, class S>
VF_FN void read_row(const S* p, int64_t count, typename M::Element* out) {
  int64_t i = 0;
  for (; i + M::width <= count; i += M::width) M::store(M::load(p + i), out + i);
  if (i < count) M::store(load_tail<M>(p + i, count - i), out + i);
}

template <class M, class S>
VF_FN void write_row(const typename M::Element* row, int64_t count, S* p) {
  int64_t i = 0;
  for (; i + M::width <= count; i += M::width) M::store(M::load(row + i), p + i);
  if (i < count) store_tail<M>(M::load(row + i), p + i, count - i);
}

// Not inlined, like the loops over pairs below: inlining three storage types at each call would take
// the compiler minutes. Templates over the policy are compiled once for each level all the same.
template <class M>
__attribute__((noinline)) void read_any(DType dtype, const void* p, int64_t row, int64_t count,
                                        typename M::Element* out) {
  with_storage_of<M>(dtype, [&](auto storage) {
    using S = typename decltype(storage)::type;
    read_row<M>(static_cast<const S*>(p) + row * count, count, out);
  });
}

template <class M>
__attribute__((noinline)) void write_any(DType dtype, const typename M::Element* values,
                                         int64_t row, int64_t count, void* p) {
  with_storage_of<M>(dtype, [&](auto storage) {
    using S = typename decltype(storage)::type;
    write_row<M>(values, count, static_cast<S*>(p) + row * count);
  });
}

// Adds a vector to sums kept in double.
template <class M>
VF_FN void add_wide(typename M::T x, double* sums) {
  typename M::Element lanes[M::width];
  M::store(x, lanes);
  for (int i = 0; i < M::width; ++i) sums[i] += double(lanes[i]);
}

// Lane k of the result is the sum of the lanes of v[k], for k < N: even vectors go to even lanes.
template <class M, int N, int STRIDE>
VF_FN typename M::T tree(const typename M::T* v) {
  if constexpr (N == 1) {
    return v[0];
  } else {
    const auto even = tree<M, N / 2, 2 * STRIDE>(v);
    const auto odd = tree<M, N / 2, 2 * STRIDE>(v + STRIDE);
    return M::template zip<false>(even, odd) + M::template zip<true>(even, odd);
  }
}

template <class M>
VF_FN typename M::T larger(typename M::T a, typename M::T b) {
  return M::select(a > b, a, b);
}

// --- Gaussian densities --------------------------------------------------------------------------

// The terms' parameters, padded to whole tiles and vectors: a padded dimension adds 0 to a sum over
// dimensions, and a padded term's levels and log-weight are -infinity. Levels are kept relative to the
// largest of their dimension, so that what is exponentiated is at most 0.
template <class M>
struct Terms {
  using T = typename M::T;
  using E = typename M::Element;
  using G = pairwise::Gaussian<M>;

  int64_t count, dims, padded, width;
  Scratch<E> mu, scale, level, top, log_weight;
  double top_sum = 0.0;
  double own, next;

  Terms(const PairDensity& args, const Threads& threads)
      : count(args.terms), dims(args.dims), padded(round_up(count, kTile)),
        width(round_up(dims, M::width)), mu(padded * width), scale(padded * width),
        level(padded * width), top(width), log_weight(padded), own(args.own), next(args.next) {
    parallel(threads, padded, 8 * width, [&](int64_t j) {
      E *m = mu + j * width, *s = scale + j * width, *l = level + j * width;
      if (j >= count) {
        fill(m, width, E(0));
        fill(s, width, E(0));
        fill(l, width, -std::numeric_limits<E>::infinity());
        return;
      }
      read_any<M>(args.dtype, args.mu, j, dims, m);
      read_any<M>(args.dtype, args.logvar, j, dims, l);
      for (int64_t d = 0; d < width; d += M::width) {
        const T logvar = M::load(l + d);
        M::store(G::scale(logvar), s + d);
        M::store(G::level(logvar), l + d);
      }
      for (int64_t d = dims; d < width; ++d) s[d] = l[d] = E(0);
    });
    for (int64_t d = 0; d < width; d += M::width) {
      T most = M::splat(std::numeric_limits<E>::lowest());
      for (int64_t j = 0; j < count; ++j) most = larger<M>(M::load(level + j * width + d), most);
      M::store(most, top + d);
      for (int64_t j = 0; j < count; ++j) {
        E* l = level + j * width + d;
        M::store(M::load(l) - most, l);
      }
    }
    for (int64_t d = 0; d < dims; ++d) top_sum += double(top[d]);
    if (args.logits != nullptr) {
      Scratch<E> logits(round_up(count, M::width));
      read_any<M>(args.dtype, args.logits, 0, count, logits);
      for (int64_t j = 0; j < count; ++j) log_weight[j] = logits[j] * E(1.0 / pairwise::kLog2);
    } else {
      fill<E>(log_weight, count, E(0));
    }
    fill<E>(log_weight + count, padded - count, -std::numeric_limits<E>::infinity());
  }

  VF_FN ~Terms() {}  // spelt out: an implicit one would not be compiled for this level

  // The factors of the terms from j on, for row i; 0 for padding.
  VF_FN void weights(int64_t i, int64_t j, E* out) const {
    for (int k = 0; k < kTile; ++k) out[k] = j + k < count ? E(1) : E(0);
    if (own == 1.0 && next == 1.0) return;
    const int64_t mine = i - j, after = (i + 1 < count ? i + 1 : 0) - j;
    if (after >= 0 && after < kTile) out[after] *= E(next);
    if (mine >= 0 && mine < kTile && i < count) out[mine] *= E(own);
  }
};

// Sums over terms for rows i to i + R of z, which stand padded in `z`. `wide` takes the sums of each
// dimension, relative to 2^shift where that is given; whole[r] becomes log2 of the sum over all.
template <class M, int R, bool WHOLE, bool PARTS, bool SHIFT>
__attribute__((noinline)) void density_rows(const Terms<M>& terms, int64_t i,
                                            const typename M::Element* z,
                                            const typename M::Element* shift, double* wide,
                                            double* whole) {
  using T = typename M::T;
  using E = typename M::Element;
  constexpr int w = M::width;
  const int64_t width = terms.width;
  T most[R], sum[R];
  for (int r = 0; r < R; ++r) {
    most[r] = M::splat(std::numeric_limits<E>::lowest());
    sum[r] = M::splat(E(0));
  }
  if (PARTS) fill(wide, R * width, 0.0);
  for (int64_t j = 0; j < terms.padded; j += kTile) {
    alignas(64) E weight[R][kTile];
    alignas(64) T log_density[R][kTile];
    for (int r = 0; r < R; ++r) terms.weights(i + r, j, weight[r]);
    for (int64_t d = 0; d < width; d += w) {
      T zs[R], part[R];
      for (int r = 0; r < R; ++r) {
        zs[r] = M::load(z + r * width + d);
        part[r] = M::splat(E(0));
      }
      [[maybe_unused]] T down = M::splat(E(0));
      if constexpr (SHIFT) down = M::load(shift + d);
      for (int k = 0; k < kTile; ++k) {
        const int64_t at = (j + k) * width + d;
        const T mu = M::load(terms.mu + at), scale = M::load(terms.scale + at),
                level = M::load(terms.level + at);
        for (int r = 0; r < R; ++r) {
          T unused;
          T t = Terms<M>::G::term(zs[r], mu, scale, level, unused);
          if constexpr (WHOLE) log_density[r][k] = d == 0 ? t : log_density[r][k] + t;
          if constexpr (SHIFT) t = t - down;
          if constexpr (PARTS) part[r] = M::exp2(t) * weight[r][k] + part[r];
        }
      }
      if constexpr (PARTS) {
        for (int r = 0; r < R; ++r) add_wide<M>(part[r], wide + r * width + d);
      }
    }
    if constexpr (WHOLE) {
      for (int k = 0; k < kTile; k += w) {
        const T log_weight = M::load(terms.log_weight + j + k);
        for (int r = 0; r < R; ++r) {
          const T t = tree<M, w, 1>(&log_density[r][k]) + log_weight;
          const T top = larger<M>(t, most[r]);
          sum[r] = sum[r] * M::exp2(most[r] - top) + M::load(&weight[r][k]) * M::exp2(t - top);
          most[r] = top;
        }
      }
    }
  }
  if constexpr (WHOLE) {
    for (int r = 0; r < R; ++r) {
      E tops[w], sums[w];
      M::store(most[r], tops);
      M::store(sum[r], sums);
      double top = tops[0], total = 0.0;
      for (int l = 1; l < w; ++l) top = larger_of(top, double(tops[l]));
      for (int l = 0; l < w; ++l) total += double(sums[l]) * std::exp2(double(tops[l]) - top);
      whole[r] = std::log2(total) + top;
    }
  }
}

// Writes what density_rows found in the dimensions of row i, and into `state` the same in bits,
// relative to the terms' upper bound. A sum that underflowed, or nearly so, is computed again
// relative to its largest term.
template <class M>
__attribute__((noinline)) void write_parts(const Terms<M>& terms, int64_t i,
                                           const typename M::Element* z, double* wide,
                                           double offset, typename M::Element* parts,
                                           double* state) {
  using T = typename M::T;
  using E = typename M::Element;
  bool small = false;
  for (int64_t d = 0; d < terms.dims; ++d) small = small || wide[d] < 0x1p-90;
  Scratch<E> shift(terms.width);
  fill<E>(shift, terms.width, E(0));
  if (small) {
    for (int64_t d = 0; d < terms.width; d += M::width) {
      T most = M::splat(std::numeric_limits<E>::lowest());
      for (int64_t j = 0; j < terms.count; ++j) {
        const int64_t at = j * terms.width + d;
        T unused;
        most = larger<M>(
            Terms<M>::G::term(M::load(z + d), M::load(terms.mu + at), M::load(terms.scale + at),
                              M::load(terms.level + at), unused),
            most);
      }
      M::store(most, shift + d);
    }
    density_rows<M, 1, false, true, true>(terms, i, z, shift, wide, nullptr);
  }
  for (int64_t d = 0; d < terms.dims; ++d) {
    state[d] = std::log2(wide[d]) + double(shift[d]);
    parts[d] = E((state[d] + double(terms.top[d])) * pairwise::kLog2 + offset);
  }
}

template <class M, int R, bool PARTS>
void density_group(const PairDensity& args, const Terms<M>& terms, int64_t i) {
  using E = typename M::Element;
  Scratch<E> z(R * terms.width);
  Scratch<double> wide(PARTS ? R * terms.width : 0);
  double whole[R];
  for (int r = 0; r < R; ++r)
    read_any<M>(args.dtype, args.z, i + r, args.dims, z + r * terms.width);
  density_rows<M, R, true, PARTS, false>(terms, i, z, nullptr, wide, whole);
  for (int r = 0; r < R; ++r) {
    static_cast<E*>(args.whole)[i + r] =
        E((whole[r] + terms.top_sum) * pairwise::kLog2 + args.offset);
    double* state = args.state + (i + r) * state_size(args.dims, PARTS);
    state[0] = whole[r];
    if constexpr (PARTS) {
      write_parts<M>(terms, i + r, z + r * terms.width, wide + r * terms.width, args.offset,
                     static_cast<E*>(args.parts) + (i + r) * args.dims, state + 1);
    }
  }
}

// Calls body.template operator()<R>(i) for groups of rows [begin, end).
template <class M, class Body>
VF_FN void in_groups(int64_t begin, int64_t end, const Body& body) {
  constexpr int R = kRowsAtOnce<M>;
  int64_t i = begin;
  for (; i + R <= end; i += R) body(std::integral_constant<int, R>{}, i);
  for (; i < end; ++i) body(std::integral_constant<int, 1>{}, i);
}

template <class M>
void density_driver(const PairDensity& args, const Threads& threads) {
  if (args.rows == 0) return;
  const Terms<M> terms(args, threads);
  constexpr int64_t R = kRowsAtOnce<M>;
  const int64_t cost = R * terms.padded * terms.width * (args.parts != nullptr ? 4 : 1);
  parallel(threads, (args.rows + R - 1) / R, cost, [&](int64_t group) {
    const FlushTiny<M> flush;
    const int64_t end = smaller_of(args.rows, (group + 1) * R);
    in_groups<M>(group * R, end, [&](auto rows, int64_t i) {
      if (args.parts != nullptr) {
        density_group<M, rows(), true>(args, terms, i);
      } else {
        density_group<M, rows(), false>(args, terms, i);
      }
    });
  });
}

// --- their gradients -----------------------------------------------------------------------------

// What a slab of rows adds up for the terms: sums of coefficients times r, times r^2, and alone (of
// each dimension's share; of the whole's share in `responsibility`).
template <class M>
struct Slab {
  using E = typename M::Element;
  E *with_r, *with_r2, *alone, *responsibility;

  static VF_FN int64_t size(const Terms<M>& terms) {
    return 3 * terms.padded * terms.width + terms.padded;
  }
  VF_FN Slab(E* memory, const Terms<M>& terms)
      : with_r(memory), with_r2(memory + terms.padded * terms.width),
        alone(memory + 2 * terms.padded * terms.width),
        responsibility(memory + 3 * terms.padded * terms.width) {}
};

template <class M, int R, bool PARTS>
__attribute__((noinline)) void density_backward_rows(const PairDensityBackward& args,
                                                     const Terms<M>& terms, int64_t i,
                                                     const Slab<M>& slab) {
  using T = typename M::T;
  using E = typename M::Element;
  constexpr int w = M::width;
  const int64_t width = terms.width, dims = args.of.dims;
  Scratch<E> rows(3 * R * width);
  E *z = rows, *grad = z + R * width, *log_sum = grad + R * width;  // of each dimension
  Scratch<double> wide(R * width);
  fill<double>(wide, R * width, 0.0);
  // A pair's share is exp2(its level - the sum's level). Sums are in double: as floats they would lose
  // the shares' last digits, and all digits where log-densities pass 10^5 nats. The loops use a sum's
  // nearest float, and the gradient is multiplied by exp2 of the remainder.
  E grad_whole[R], whole[R];
  const auto split = [](double sum, E& nearest) {
    nearest = E(sum);
    return std::isfinite(nearest) ? std::exp2(double(nearest) - sum) : 1.0;
  };
  for (int r = 0; r < R; ++r) {
    read_any<M>(args.of.dtype, args.of.z, i + r, dims, z + r * width);
    const double* state = args.of.state + (i + r) * args.state_row;
    const E of_whole =
        args.grad_whole != nullptr ? static_cast<const E*>(args.grad_whole)[i + r] : E(0);
    grad_whole[r] = E(double(of_whole) * split(state[0], whole[r]));
    for (int64_t d = 0; PARTS && d < width; ++d) {
      E *of_part = grad + r * width + d, *sum = log_sum + r * width + d;
      *of_part = *sum = E(0);
      if (d >= dims) continue;
      const E upstream = static_cast<const E*>(args.grad_parts)[(i + r) * dims + d];
      *of_part = E(double(upstream) * split(state[1 + d], *sum));
    }
  }
  for (int64_t j = 0; j < terms.padded; j += kTile) {
    alignas(64) E weight[R][kTile], share[R][kTile];
    alignas(64) T log_density[R][kTile];
    for (int r = 0; r < R; ++r) terms.weights(i + r, j, weight[r]);
    for (int64_t d = 0; d < width; d += w) {
      T zs[R];
      for (int r = 0; r < R; ++r) zs[r] = M::load(z + r * width + d);
      for (int k = 0; k < kTile; ++k) {
        const int64_t at = (j + k) * width + d;
        const T mu = M::load(terms.mu + at), scale = M::load(terms.scale + at),
                level = M::load(terms.level + at);
        for (int r = 0; r < R; ++r) {
          T unused;
          const T t = Terms<M>::G::term(zs[r], mu, scale, level, unused);
          log_density[r][k] = d == 0 ? t : log_density[r][k] + t;
        }
      }
    }
    for (int k = 0; k < kTile; k += w) {
      T total = M::load(slab.responsibility + j + k);
      for (int r = 0; r < R; ++r) {
        const T t = tree<M, w, 1>(&log_density[r][k]) + M::load(terms.log_weight + j + k);
        const T of_pair = M::exp2(t - whole[r]) * M::load(&weight[r][k]) * grad_whole[r];
        M::store(of_pair, &share[r][k]);
        total = total + of_pair;
      }
      M::store(total, slab.responsibility + j + k);
    }
    for (int64_t d = 0; d < width; d += w) {
      T zs[R], sum[R];
      [[maybe_unused]] T grads[R], down[R];
      for (int r = 0; r < R; ++r) {
        zs[r] = M::load(z + r * width + d);
        sum[r] = M::splat(E(0));
        if constexpr (PARTS) {
          grads[r] = M::load(grad + r * width + d);
          down[r] = M::load(log_sum + r * width + d);
        }
      }
      for (int k = 0; k < kTile; ++k) {
        const int64_t at = (j + k) * width + d;
        const T mu = M::load(terms.mu + at), scale = M::load(terms.scale + at);
        T with_r = M::load(slab.with_r + at), with_r2 = M::load(slab.with_r2 + at);
        [[maybe_unused]] T level = scale, alone = scale;
        if constexpr (PARTS) {
          level = M::load(terms.level + at);
          alone = M::load(slab.alone + at);
        }
        for (int r = 0; r < R; ++r) {
          T a = M::splat(share[r][k]), x;
          const T t = Terms<M>::G::term(zs[r], mu, scale, level, x);
          if constexpr (PARTS) {
            const T part = M::exp2(t - down[r]) * grads[r] * weight[r][k];
            alone = alone + part;
            a = a + part;
          }
          a = a * x;
          sum[r] = a * scale + sum[r];
          with_r = with_r + a;
          with_r2 = a * x + with_r2;
        }
        M::store(with_r, slab.with_r + at);
        M::store(with_r2, slab.with_r2 + at);
        if constexpr (PARTS) M::store(alone, slab.alone + at);
      }
      for (int r = 0; r < R; ++r) add_wide<M>(sum[r], wide + r * width + d);
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int64_t d = 0; d < width; ++d) z[d] = E(-2.0 * pairwise::kLog2 * wide[r * width + d]);
    write_any<M>(args.of.dtype, z, i + r, dims, args.grad_z);
  }
}

template <class M>
void density_backward_driver(const PairDensityBackward& args, const Threads& threads) {
  using E = typename M::Element;
  using G = pairwise::Gaussian<M>;
  const Terms<M> terms(args.of, threads);
  const int64_t rows = args.of.rows, dims = args.of.dims, size = Slab<M>::size(terms);
  // Enough slabs for the threads of a large machine; few where the terms' sums are large.
  constexpr int64_t kSlabRows = 64, kMostSlabs = 16, kMostElements = 1 << 22;
  const int64_t slabs = larger_of(
      int64_t{1},
      smaller_of(smaller_of((rows + kSlabRows - 1) / kSlabRows, kMostSlabs), kMostElements / size));
  const int64_t each = round_up((rows + slabs - 1) / slabs, kRowsAtOnce<M>);
  const Scratch<E> memory(slabs * size);
  const bool parts = args.grad_parts != nullptr;
  parallel(threads, slabs, each * terms.padded * terms.width * (parts ? 6 : 2), [&](int64_t s) {
    const FlushTiny<M> flush;
    const Slab<M> slab(memory + s * size, terms);
    fill<E>(memory + s * size, size, E(0));
    in_groups<M>(smaller_of(rows, s * each), smaller_of(rows, (s + 1) * each),
                 [&](auto count, int64_t i) {
                   if (parts) {
                     density_backward_rows<M, count(), true>(args, terms, i, slab);
                   } else {
                     density_backward_rows<M, count(), false>(args, terms, i, slab);
                   }
                 });
  });
  Scratch<E> of_logits(round_up(terms.count, M::width));
  parallel(threads, terms.count, 4 * slabs * terms.width, [&](int64_t j) {
    Scratch<E> grads(2 * terms.width);
    double share = 0.0;
    for (int64_t s = 0; s < slabs; ++s) {
      share += double(Slab<M>(memory + s * size, terms).responsibility[j]);
    }
    of_logits[j] = E(share);
    for (int64_t d = 0; d < terms.width; ++d) {
      const int64_t at = j * terms.width + d;
      double with_r = 0.0, with_r2 = 0.0, alone = share;
      for (int64_t s = 0; s < slabs; ++s) {
        const Slab<M> slab(memory + s * size, terms);
        with_r += double(slab.with_r[at]);
        with_r2 += double(slab.with_r2[at]);
        if (parts) alone += double(slab.alone[at]);
      }
      grads[d] = E(G::grad_mu(double(terms.scale[at]), with_r));
      grads[terms.width + d] = E(G::grad_logvar(with_r2, alone));
    }
    write_any<M>(args.of.dtype, grads, j, dims, args.grad_mu);
    write_any<M>(args.of.dtype, grads + terms.width, j, dims, args.grad_logvar);
  });
  if (args.grad_logits != nullptr) {
    write_any<M>(args.of.dtype, of_logits, 0, terms.count, args.grad_logits);
  }
}

// --- kernels of a distance -----------------------------------------------------------------------

// sum_j weight * k(a_i, b_j) into sums[i]; `same` leaves out j = i. With grad_a, weight * d/da_i is
// added to row i of that, which is padded to whole vectors.
struct PairKernelSum {
  DType dtype;
  PairKernel kernel;
  int64_t rows, others, dims, count;
  const void *a, *b;
  const double* bandwidths;
  bool same;
  double weight;
  double *sums, *grad_a;
};

template <class M, class Kernel, int R>
__attribute__((noinline)) void kernel_rows(const PairKernelSum& args,
                                           const typename M::Element* others, int64_t width,
                                           int64_t i, double upstream) {
  using T = typename M::T;
  using E = typename M::Element;
  constexpr int w = M::width;
  const int64_t padded = round_up(args.others, kTile);
  Scratch<E> rows(R * width);
  Scratch<double> wide(args.grad_a != nullptr ? R * width : 0);
  if (args.grad_a != nullptr) fill<double>(wide, R * width, 0.0);
  for (int r = 0; r < R; ++r) read_any<M>(args.dtype, args.a, i + r, args.dims, rows + r * width);
  double sums[R][w] = {};
  for (int64_t j = 0; j < padded; j += kTile) {
    alignas(64) T distance[R][kTile];
    alignas(64) E factor[R][kTile];
    for (int64_t d = 0; d < width; d += w) {
      for (int k = 0; k < kTile; ++k) {
        const T other = M::load(others + (j + k) * width + d);
        for (int r = 0; r < R; ++r) {
          const T x = M::load(rows + r * width + d) - other;
          distance[r][k] = d == 0 ? x * x : x * x + distance[r][k];
        }
      }
    }
    for (int r = 0; r < R; ++r) {
      for (int k = 0; k < kTile; ++k) {
        factor[r][k] = j + k < args.others && !(args.same && j + k == i + r) ? E(1) : E(0);
      }
      for (int k = 0; k < kTile; k += w) {
        const T q = tree<M, w, 1>(&distance[r][k]), use = M::load(&factor[r][k]);
        T value = M::splat(E(0)), slope = value;
        for (int64_t h = 0; h < args.count; ++h) {
          T of_one;
          const double inverse = 0.5 / (args.bandwidths[h] * args.bandwidths[h]);
          value = value + Kernel::template value<M>(q, M::splat(E(inverse)), of_one);
          slope = slope + of_one;
        }
        const T nothing = M::splat(E(0));
        add_wide<M>(M::select(use > E(0), value, nothing), sums[r]);
        M::store(M::select(use > E(0), slope, nothing), &factor[r][k]);
      }
    }
    if (args.grad_a == nullptr) continue;
    for (int64_t d = 0; d < width; d += w) {
      T part[R];
      for (int r = 0; r < R; ++r) part[r] = M::splat(E(0));
      for (int k = 0; k < kTile; ++k) {
        const T other = M::load(others + (j + k) * width + d);
        for (int r = 0; r < R; ++r) {
          part[r] = (M::load(rows + r * width + d) - other) * factor[r][k] + part[r];
        }
      }
      for (int r = 0; r < R; ++r) add_wide<M>(part[r], wide + r * width + d);
    }
  }
  const double mean = args.weight / double(args.count);
  for (int r = 0; r < R; ++r) {
    double total = 0.0;
    for (int l = 0; l < w; ++l) total += sums[r][l];
    if (args.sums != nullptr) args.sums[i + r] = total * mean;
    if (args.grad_a == nullptr) continue;
    for (int64_t d = 0; d < width; ++d) {
      args.grad_a[(i + r) * width + d] += 2.0 * mean * upstream * wide[r * width + d];
    }
  }
}

template <class M>
void kernel_sum(const PairKernelSum& args, double upstream, const Threads& threads) {
  using E = typename M::Element;
  const int64_t width = round_up(args.dims, M::width), padded = round_up(args.others, kTile);
  const Scratch<E> others(padded * width);
  fill<E>(others + args.others * width, (padded - args.others) * width, E(0));
  parallel(threads, args.others, width,
           [&](int64_t j) { read_any<M>(args.dtype, args.b, j, args.dims, others + j * width); });
  constexpr int64_t R = kRowsAtOnce<M>;
  parallel(threads, (args.rows + R - 1) / R, R * padded * (width + 8 * args.count), [&](int64_t g) {
    const FlushTiny<M> flush;
    in_groups<M>(g * R, smaller_of(args.rows, (g + 1) * R), [&](auto rows, int64_t i) {
      if (args.kernel == PairKernel::rbf) {
        kernel_rows<M, pairwise::Rbf, rows()>(args, others, width, i, upstream);
      } else {
        kernel_rows<M, pairwise::Imq, rows()>(args, others, width, i, upstream);
      }
    });
  });
}

// MMD^2 of x (rows) and y (others): the means of k over the pairs within each, less twice that
// between them; `unbiased` leaves out the pairs of a row with itself (Gretton et al. 2012, eq. 3, 5).
template <class M>
void mmd_driver(const Mmd& args, const Threads& threads) {
  using E = typename M::Element;
  const double n = double(args.rows), m = double(args.others), less = args.unbiased ? 1.0 : 0.0;
  const int64_t width = round_up(args.dims, M::width);
  PairKernelSum pairs{};
  pairs.dtype = args.dtype;
  pairs.kernel = args.kernel;
  pairs.dims = args.dims;
  pairs.count = args.count;
  pairs.bandwidths = args.bandwidths;
  const bool backward = args.upstream != nullptr;
  const double upstream = backward ? double(*static_cast<const E*>(args.upstream)) : 0.0;
  Scratch<double> sums(larger_of(args.rows, args.others));
  double total = 0.0;
  struct Side {
    const void *a, *b;
    int64_t rows, others;
    double within;
    void* grad;
  };
  const Side sides[2] = {
      {args.x, args.y, args.rows, args.others, n * (n - less), args.grad_x},
      {args.y, args.x, args.others, args.rows, m * (m - less), args.grad_y},
  };
  for (int s = 0; s < 2; ++s) {
    const Side& side = sides[s];
    Scratch<double> grad(backward ? side.rows * width : 0);
    if (backward) fill<double>(grad, side.rows * width, 0.0);
    pairs.a = side.a;
    pairs.rows = side.rows;
    pairs.sums = backward ? nullptr : static_cast<double*>(sums);
    pairs.grad_a = backward ? static_cast<double*>(grad) : nullptr;
    for (int between = 0; between < 2; ++between) {
      if (between && !backward && s == 1) continue;  // the sum over (y, x) is that over (x, y)
      pairs.b = between ? side.b : side.a;
      pairs.others = between ? side.others : side.rows;
      pairs.same = !between && args.unbiased;
      // Within a set each pair moves both its rows: the derivative counts twice.
      pairs.weight = between ? -2.0 / (n * m) : (backward ? 2.0 : 1.0) / side.within;
      kernel_sum<M>(pairs, upstream, threads);
      for (int64_t i = 0; !backward && i < side.rows; ++i) total += sums[i];
    }
    if (!backward || side.grad == nullptr) continue;
    Scratch<E> row(width);
    for (int64_t i = 0; i < side.rows; ++i) {
      for (int64_t d = 0; d < width; ++d) row[d] = E(grad[i * width + d]);
      write_any<M>(args.dtype, row, i, args.dims, side.grad);
    }
  }
  if (!backward) *static_cast<E*>(args.value) = E(total);
}

// --- nearest code --------------------------------------------------------------------------------

// |x - c|^2 = |x|^2 + 2 (|c|^2 / 2 - x c): the bracket, a product, is enough to leave out nearly all
// codes. Codes within its rounding error of the best are measured exactly, in double, from the
// differences; so ties are found, and go to the lowest index.
template <class M>
void nearest_code_driver(const NearestCode& args, const Threads& threads) {
  using T = typename M::T;
  using E = typename M::Element;
  constexpr int w = M::width, vectors = M::width >= 16 ? 4 : 2, R = 4, kBlockRows = 32;
  constexpr int64_t tile = vectors * w;
  const int64_t dims = args.dims, tiles = (args.codes + tile - 1) / tile;
  const int64_t width = round_up(dims, w);
  // Codes in tiles, dimension by dimension; |c|^2 / 2, infinite for padding.
  const Scratch<E> table(tiles * tile * dims), half(tiles * tile);
  const Scratch<double> norms(tiles);
  parallel(threads, tiles, tile * dims, [&](int64_t t) {
    Scratch<E> row(width);
    double most = 0.0;
    for (int64_t k = 0; k < tile; ++k) {
      const bool real = t * tile + k < args.codes;
      if (real) read_any<M>(args.dtype, args.table, t * tile + k, dims, row);
      double norm = 0.0;
      for (int64_t d = 0; d < dims; ++d) {
        const E c = real ? row[d] : E(0);
        table[(t * dims + d) * tile + k] = c;
        norm += double(c) * double(c);
      }
      half[t * tile + k] = real ? E(0.5 * norm) : std::numeric_limits<E>::infinity();
      most = larger_of(most, norm);
    }
    norms[t] = most;
  });
  double largest = 0.0;
  for (int64_t t = 0; t < tiles; ++t) largest = larger_of(largest, norms[t]);

  const int64_t blocks = (args.rows + kBlockRows - 1) / kBlockRows;
  parallel(threads, blocks, kBlockRows * args.codes * dims / 8, [&](int64_t block) {
    Scratch<E> rows(kBlockRows * width);
    double norm[kBlockRows], slack[kBlockRows], best[kBlockRows];
    E limit[kBlockRows];
    int64_t index[kBlockRows];
    const int64_t begin = block * kBlockRows, end = smaller_of(args.rows, begin + kBlockRows);
    fill<E>(rows, kBlockRows * width, E(0));
    for (int64_t i = 0; i < kBlockRows; ++i) {
      norm[i] = 0.0;
      if (begin + i < end) read_any<M>(args.dtype, args.x, begin + i, dims, rows + i * width);
      for (int64_t d = 0; d < dims; ++d)
        norm[i] += double(rows[i * width + d]) * rows[i * width + d];
      // The rounding error of a sum of dims + 1 terms, and of the double arithmetic.
      slack[i] = double(dims + 8) * std::numeric_limits<E>::epsilon() *
                     (std::sqrt(norm[i] * largest) + largest) +
                 1e-15 * double(dims + 8) * (norm[i] + largest);
      best[i] = std::numeric_limits<double>::infinity();
      // Padding rows look at no code.
      limit[i] = begin + i < end ? std::numeric_limits<E>::infinity()
                                 : -std::numeric_limits<E>::infinity();
      index[i] = 0;
    }
    for (int64_t t = 0; t < tiles; ++t) {
      const E* codes = table + t * dims * tile;
      for (int64_t i = 0; i < end - begin; i += R) {
        T score[R][vectors];
        for (int r = 0; r < R; ++r) {
          for (int v = 0; v < vectors; ++v) score[r][v] = M::load(half + t * tile + v * w);
        }
        const E* x = rows + i * width;
        for (int64_t d = 0; d < dims; ++d) {
          T c[vectors];
          for (int v = 0; v < vectors; ++v) c[v] = M::load(codes + d * tile + v * w);
          for (int r = 0; r < R; ++r) {
            const T z = M::splat(x[r * width + d]);
            for (int v = 0; v < vectors; ++v) score[r][v] = score[r][v] - z * c[v];
          }
        }
        for (int r = 0; r < R; ++r) {
          // Start at infinity: a NaN in the first vector would hide the same lanes of the others.
          T least = M::splat(std::numeric_limits<E>::infinity());
          for (int v = 0; v < vectors; ++v) {
            least = M::select(score[r][v] < least, score[r][v], least);
          }
          if (!M::any(least <= M::splat(limit[i + r]))) continue;
          E scores[tile];
          for (int v = 0; v < vectors; ++v) M::store(score[r][v], scores + v * w);
          for (int64_t k = 0; k < tile && t * tile + k < args.codes; ++k) {
            if (!(scores[k] <= limit[i + r])) continue;
            double distance = 0.0;
            for (int64_t d = 0; d < dims; ++d) {
              const double gap = double(x[r * width + d]) - double(codes[d * tile + k]);
              distance += gap * gap;
            }
            if (!(distance < best[i + r])) continue;
            best[i + r] = distance;
            index[i + r] = t * tile + k;
            const double bound = 0.5 * (distance - norm[i + r]) + slack[i + r];
            const E rounded = E(bound);
            limit[i + r] = rounded + std::fabs(rounded) * std::numeric_limits<E>::epsilon();
          }
        }
      }
    }
    for (int64_t i = 0; i < end - begin; ++i) args.index[begin + i] = index[i];
  });
}

template <class M>
constexpr Pairwise pairwise_drivers = {density_driver<M>, density_backward_driver<M>, mmd_driver<M>,
                                       nearest_code_driver<M>};

}  // namespace vae_fast::cpu
