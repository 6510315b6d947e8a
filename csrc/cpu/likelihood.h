// One likelihood's work on the CPU: the sum of a span's terms, and their gradients.
//
// `span` walks [begin, end) in blocks. The kernel of a block reads dense arrays of the policy's own
// type: the operands in place if they have that form, else copies of their elements (staging.h),
// which stay in the first-level cache. Likelihoods that say so read half precision and bytes
// directly (`reads_halves`).
#pragma once

#include "cpu/driver.h"
#include "cpu/several.h"
#include "cpu/staging.h"
#include "likelihoods/list.h"

namespace vae_fast::cpu {

// What a likelihood may have besides `term`; see likelihoods/target.h.
template <class L>
constexpr bool kReadsHalves = requires { L::reads_halves; };
template <class L>
constexpr bool kHasNonzeroPart = likelihoods::HasNonzeroPart<L>::value;
template <class L, class M>
constexpr bool kHasParts = requires(typename M::T t, typename M::T (&p)[L::params]) {
  L::template parts<M, true, true>(p, t, t, t, p);
};

// Vectors that are taken side by side: several of counts, whose formulas are the longest.
template <class L, class M>
constexpr int kAbreast = kHasNonzeroPart<L> && M::width > 1 ? 4 : 1;

// Sums of double precision for every shared parameter, one set for each piece of a problem. Null
// where a parameter is not shared.
struct SharedSums {
  double* of[kMaxParams] = {};
};

// The sum of the terms of elements [begin, end); gradients are multiplied by `factor`.
using Span = double (*)(const Likelihood& args, int64_t begin, int64_t end, double factor,
                        const SharedSums& shared);

// Prefetches the line 512 elements ahead: the processor's own prefetcher stops at every page. It
// saves 15% at 2^20 elements on Zen 4. `lane` is the loop's, so that a line of small elements is
// fetched once. (Loops that make noise, or read more streams, gain nothing from it.)
template <class M, class S>
VF_FN void prefetch(const S* p, int lane) {
  if (lane * M::width * int(sizeof(S)) % 64 == 0) __builtin_prefetch(p + 512);
}

// float32 gradients of this many bytes are written past the caches, which could not hold them anyway.
// A line that is written whole without being read first saves a quarter of the memory traffic.
constexpr int64_t kStreamedBytes = int64_t{1} << 25;

// A byte that is a truth value: any but 0 is true.
struct Boolean {
  uint8_t byte;
};

template <class M, class S>
VF_FN typename M::T load_target(const S* p) {
  using T = typename M::T;
  if constexpr (std::is_same_v<S, Boolean>) {
    const T x = M::load(reinterpret_cast<const uint8_t*>(p));
    return M::at_most(x, 1.0f);
  } else if constexpr (std::is_same_v<S, uint8_t>) {
    return ByteScale{}(M::load(p));
  } else {
    return M::load(p);
  }
}

template <class M, class S>
VF_FN typename M::T load_target_tail(const S* p, int64_t count) {
  S buffer[M::width] = {};
  std::memcpy(buffer, p, count * sizeof(S));
  return load_target<M>(buffer);
}

// The running sum of a span.
template <class L, class M, bool VALUE>
struct Sums {
  static constexpr bool kLogSum = VALUE && kHasParts<L, M>;
  typename M::Sum sum;
  typename M::LogSum log_sum;
  int64_t since_fold = 0;

  VF_FN void begin_block() {
    if (kLogSum && (since_fold += kBlock<M>) > M::LogSum::capacity) {
      log_sum.fold();
      since_fold = kBlock<M>;
    }
  }
  VF_FN double total() {
    if constexpr (kLogSum) return sum.total() + log_sum.total();
    return VALUE ? sum.total() : 0.0;
  }
};

// Adds the terms that only nonzero targets have. Nonzero targets are packed into whole vectors: most
// counts are 0, and computing their log-gamma functions would be wasted.
template <class L, class M, bool VALUE, bool GRAD>
VF_FN void add_nonzero(const typename M::Element* const (&p)[kMaxParams],
                       const typename M::Element* target,
                       typename M::Element* const (&g)[kMaxParams], int64_t n, typename M::T scale,
                       typename M::T& sum) {
  using T = typename M::T;
  using E = typename M::Element;
  E packed[L::params + 1][kBlock<M> + M::width];
  uint32_t lanes[kBlock<M> / M::width];
  int64_t count = 0;
  const auto pack = [&](T t, int64_t i, auto&& param) __attribute__((always_inline)) {
    const uint32_t mask = lanes[i / M::width] = M::nonzero(t);
    if (mask == 0) return;
    for (int j = 0; j < L::params; ++j) M::pack(param(j), mask, packed[j] + count);
    M::pack(t, mask, packed[L::params] + count);
    count += __builtin_popcount(mask);
  };
  int64_t i = 0;
  for (; i + M::width <= n; i += M::width) {
    pack(M::load(target + i), i, [&](int j) { return M::load(p[j] + i); });
  }
  if (i < n) {
    pack(load_tail<M>(target + i, n - i), i, [&](int j) { return load_tail<M>(p[j] + i, n - i); });
  }
  if (count == 0) return;
  // Harmless values for the lanes that are not used.
  for (int j = 0; j <= L::params; ++j) M::store(M::splat(E(1)), packed[j] + count);
  for (int64_t i = 0; i < count; i += M::width) {
    T x[L::params], nll{}, grad[L::params] = {};
    for (int j = 0; j < L::params; ++j) x[j] = M::load(packed[j] + i);
    L::template add_nonzero<M, VALUE, GRAD>(x, M::load(packed[L::params] + i), nll, grad);
    if constexpr (VALUE) sum += count - i < M::width ? M::first(count - i, nll) : nll;
    if constexpr (GRAD) {
      for (int j = 0; j < L::params; ++j) M::store(grad[j] * scale, packed[j] + i);
    }
  }
  if constexpr (GRAD) {
    int64_t from = 0;
    for (i = 0; i < n; i += M::width) {
      const uint32_t mask = lanes[i / M::width];
      if (mask == 0) continue;
      for (int j = 0; j < L::params; ++j) {
        const T more = M::unpack(packed[j] + from, mask);
        if (i + M::width <= n) {
          M::store(M::load(g[j] + i) + more, g[j] + i);
        } else {
          store_tail<M>(load_tail<M>(g[j] + i, n - i) + more, g[j] + i, n - i);
        }
      }
      from += __builtin_popcount(mask);
    }
  }
}

// The kernel: one block of n elements, at most kBlock. STREAM writes gradients past the caches, and
// needs them aligned to a vector.
template <class L, class M, bool VALUE, bool GRAD, bool STREAM, class X, class Y>
VF_FN void block(const X* const (&p)[kMaxParams], const Y* target, X* const (&g)[kMaxParams],
                 int64_t n, typename M::T scale, Sums<L, M, VALUE>& sums) {
  using T = typename M::T;
  constexpr int kParams = L::params;
  constexpr bool kLogSum = Sums<L, M, VALUE>::kLogSum;
  T partial[4] = {}, pending[2] = {};
  // The gradients of `count` elements; their value goes to the sums.
  const auto term = [&](const T(&x)[kParams], T t, T(&grad)[kParams], int lane,
                        int64_t count) __attribute__((always_inline)) {
    T nll{}, e{};
    if constexpr (kHasParts<L, M>) {
      L::template parts<M, VALUE, GRAD>(x, t, nll, e, grad);
    } else {
      L::template term<M, VALUE, GRAD>(x, t, nll, grad);
    }
    const bool whole = count == M::width;
    if constexpr (VALUE) partial[lane & 3] += whole ? nll : M::first(count, nll);
    if constexpr (kLogSum) {
      // (1 + a)(1 + b) - 1 = a + b + ab has only positive terms and keeps its digits in float:
      // four vectors become one before they are widened.
      const auto both = [](T a, T b) __attribute__((always_inline)) { return a * b + (a + b); };
      if (lane == kAlone) {
        sums.log_sum.add(whole ? e : M::first(count, e));
      } else if (lane == 0 || lane == 2) {
        pending[lane / 2] = e;
      } else if (lane == 1) {
        pending[0] = both(pending[0], e);
      } else {
        sums.log_sum.add(both(pending[0], both(pending[1], e)));
      }
    }
    if constexpr (GRAD) {
      for (int j = 0; j < kParams; ++j) grad[j] = grad[j] * scale;
    }
  };
  int64_t begin = 0;
  if constexpr (kAbreast<L, M> > 1) {
    using S = Several<M, kAbreast<L, M>>;
    typename S::T all = S::splat(0.0f);
    for (; begin + S::width <= n; begin += S::width) {
      typename S::T x[kParams], grad[kParams], nll;
      for (int j = 0; j < kParams; ++j) x[j] = S::load(p[j] + begin);
      L::template term<S, VALUE, GRAD>(x, S::load(target + begin), nll, grad);
      if constexpr (VALUE) all = all + nll;
      if constexpr (GRAD) {
        for (int j = 0; j < kParams; ++j) S::store(grad[j] * scale, g[j] + begin);
      }
    }
    if constexpr (VALUE) {
      int k = 0;
      S::each(all, [&](T sum) { partial[k++ & 3] = sum; });
    }
  }
  walk<M>(
      begin, n,
      [&](int64_t i, int lane) __attribute__((always_inline)) {
        if constexpr (kParams == 1) {
          prefetch<M>(p[0] + i, lane);
          prefetch<M>(target + i, lane);
        }
        T x[kParams], grad[kParams] = {};
        for (int j = 0; j < kParams; ++j) x[j] = M::load(p[j] + i);
        term(x, load_target<M>(target + i), grad, lane, M::width);
        for (int j = 0; j < kParams; ++j) {
          if constexpr (STREAM) {
            M::stream(grad[j], g[j] + i);
          } else if constexpr (GRAD) {
            M::store(grad[j], g[j] + i);
          }
        }
      },
      [&](int64_t i, int64_t count) {
        T x[kParams], grad[kParams] = {};
        for (int j = 0; j < kParams; ++j) x[j] = load_tail<M>(p[j] + i, count);
        term(x, load_target_tail<M>(target + i, count), grad, kAlone, count);
        if constexpr (GRAD) {
          for (int j = 0; j < kParams; ++j) store_tail<M>(grad[j], g[j] + i, count);
        }
      });
  T sum = (partial[0] + partial[1]) + (partial[2] + partial[3]);
  if constexpr (kHasNonzeroPart<L>) add_nonzero<L, M, VALUE, GRAD>(p, target, g, n, scale, sum);
  if constexpr (VALUE) sums.sum.add(sum);
}

// A span whose operands and target are all dense, of the storage types X and Y.
template <class L, class M, bool VALUE, bool GRAD, bool STREAM, class X, class Y>
double flat_span(const Likelihood& args, int64_t begin, int64_t end, double factor) {
  const typename M::T scale = M::splat(typename M::Element(factor));
  Sums<L, M, VALUE> sums;
  // One row has one target: spans don't cross from the last row of a target to its first.
  const int64_t targets = args.target_rows * args.planes * args.inner;
  const Y* target = static_cast<const Y*>(args.target) + begin % targets;
  for (int64_t at = begin; at < end; at += kBlock<M>) {
    const X* p[kMaxParams] = {};
    X* g[kMaxParams] = {};
    for (int j = 0; j < L::params; ++j) {
      p[j] = static_cast<const X*>(args.params[j].data) + at;
      if (GRAD) g[j] = static_cast<X*>(args.grads[j].data) + at;
    }
    sums.begin_block();
    block<L, M, VALUE, GRAD, STREAM>(p, target + (at - begin), g,
                                     end - at < kBlock<M> ? end - at : kBlock<M>, scale, sums);
  }
  if constexpr (STREAM) M::end_stream();
  return sums.total();
}

// A span of any operands.
template <class L, class M, bool VALUE, bool GRAD>
double staged_span(const Likelihood& args, int64_t begin, int64_t end, double factor,
                   const SharedSums& shared) {
  using E = typename M::Element;
  constexpr DType kOwn = M::width == 1 ? DType::f64 : DType::f32;
  constexpr bool kScaled =
      L::target == likelihoods::Target::unit || L::target == likelihoods::Target::real;
  const Extent extent{args.planes, args.inner};
  const int64_t targets = args.target_rows * extent.cols();
  const typename M::T scale = M::splat(E(factor));
  Sums<L, M, VALUE> sums;
  E values[L::params][kBlock<M>], grads[L::params][kBlock<M>], target_values[kBlock<M>];
  bool flat[L::params], all_flat = true;
  for (int j = 0; j < L::params; ++j) {
    flat[j] = extent.is_flat(args.params[j], args.rows);
    all_flat = all_flat && flat[j];
  }

  for (int64_t at = begin; at < end;) {
    int64_t stop = end - at < kBlock<M> ? end : at + kBlock<M>;
    // Blocks end where a line ends if lines are long: then fewer blocks have to be copied.
    const int64_t line = args.inner - at % args.inner;
    if (!all_flat && args.inner >= 256 && stop - at > line) stop = at + line;
    const int64_t n = stop - at;

    const E* p[kMaxParams] = {};
    E* g[kMaxParams] = {};
    for (int j = 0; j < L::params; ++j) {
      const Operand& o = args.params[j];
      int64_t offset = at;
      const bool dense = flat[j] || extent.is_one_run(o, at, stop, offset);
      if (dense && args.dtype == kOwn) {
        p[j] = static_cast<const E*>(o.data) + offset;
      } else if (dense) {
        read<M>(args.dtype, o.data, offset, n, false, values[j]);
        p[j] = values[j];
      } else {
        extent.runs(o, at, stop, [&](int64_t from, int64_t first, int64_t count, int64_t step) {
          read<M>(args.dtype, o.data, from, step == 1 ? count : 1, false, values[j] + first);
          for (int64_t i = 1; step != 1 && i < count; ++i) values[j][first + i] = values[j][first];
        });
        p[j] = values[j];
      }
      if constexpr (GRAD) {
        g[j] = grads[j];
        const Operand& to = args.grads[j];
        if (args.dtype == kOwn && to.data != nullptr && shared.of[j] == nullptr &&
            extent.is_one_run(to, at, stop, offset)) {
          g[j] = static_cast<E*>(to.data) + offset;
        }
      }
    }
    const E* target = target_values;
    const int64_t of_target = at % targets;
    if (args.target_dtype == kOwn && of_target + n <= targets) {
      target = static_cast<const E*>(args.target) + of_target;
    } else {
      for (int64_t done = 0; done < n;) {  // the target's rows repeat
        const int64_t from = (at + done) % targets;
        const int64_t count = n - done < targets - from ? n - done : targets - from;
        read<M>(args.target_dtype, args.target, from, count, kScaled, target_values + done);
        done += count;
      }
    }
    sums.begin_block();
    block<L, M, VALUE, GRAD, false>(p, target, g, n, scale, sums);
    if constexpr (GRAD) {
      for (int j = 0; j < L::params; ++j) {
        if (g[j] != grads[j] || args.grads[j].data == nullptr) continue;
        const Operand& o = args.grads[j];
        extent.runs(o, at, stop, [&](int64_t to, int64_t first, int64_t count, int64_t step) {
          const E* from = grads[j] + first;
          double* sum = shared.of[j];
          if (sum == nullptr) {
            write<M>(args.dtype, o.data, to, count, from);
          } else if (step == 0) {
            double total = 0.0;
            for (int64_t i = 0; i < count; ++i) total += from[i];
            sum[to] += total;
          } else {
            for (int64_t i = 0; i < count; ++i) sum[to + i] += from[i];
          }
        });
      }
    }
    at = stop;
  }
  return sums.total();
}

// Picks the kernel for a problem. `value` and `grad` say which results are wanted.
template <class L, class M, bool VALUE, bool GRAD>
double any_span(const Likelihood& args, int64_t begin, int64_t end, double factor,
                const SharedSums& shared) {
  if (begin >= end) return 0.0;
  const Extent extent{args.planes, args.inner};
  bool flat = true;
  for (int j = 0; j < L::params; ++j) {
    flat = flat && extent.is_flat(args.params[j], args.rows) &&
           (!GRAD || (args.grads[j].data != nullptr && shared.of[j] == nullptr &&
                      extent.is_flat(args.grads[j], args.rows)));
  }
  const int64_t targets = args.target_rows * extent.cols();
  flat = flat && begin % targets + (end - begin) <= targets;
  if (!flat) return staged_span<L, M, VALUE, GRAD>(args, begin, end, factor, shared);
  const auto run = [&](auto stream, auto x, auto y) {
    return flat_span<L, M, VALUE, GRAD, decltype(stream)::value, typename decltype(x)::type,
                     typename decltype(y)::type>(args, begin, end, factor);
  };
  if constexpr (M::width == 1) {
    if (args.target_dtype == DType::f64)
      return run(std::false_type{}, Storage<double>{}, Storage<double>{});
  } else {
    const auto run_float = [&](auto y) {
      if constexpr (GRAD && !kHasNonzeroPart<L>) {
        bool stream = args.rows * extent.cols() * int64_t(sizeof(float)) >= kStreamedBytes;
        for (int j = 0; j < L::params; ++j) {
          const float* g = static_cast<const float*>(args.grads[j].data) + begin;
          stream = stream && reinterpret_cast<uintptr_t>(g) % (sizeof(float) * M::width) == 0;
        }
        if (stream) return run(std::true_type{}, Storage<float>{}, y);
      }
      return run(std::false_type{}, Storage<float>{}, y);
    };
    if constexpr (kReadsHalves<L>) {
      static_assert(L::target == likelihoods::Target::unit, "bytes are read as x / 255");
      const auto with_target = [&](auto&& body) {
        if (args.target_dtype == DType::u8) return body(Storage<uint8_t>{});
        if (args.target_dtype == DType::boolean) return body(Storage<Boolean>{});
        if (args.target_dtype == DType::bf16) return body(Storage<bf16>{});
        if (args.target_dtype == DType::f16) return body(Storage<f16>{});
        if (args.target_dtype == DType::f32) return body(Storage<float>{});
        return staged_span<L, M, VALUE, GRAD>(args, begin, end, factor, shared);
      };
      return with_target([&](auto y) {
        using Y = typename decltype(y)::type;
        constexpr bool kHalf = std::is_same_v<Y, bf16> || std::is_same_v<Y, f16>;
        if constexpr (!std::is_same_v<Y, f16>) {
          if (args.dtype == DType::bf16) return run(std::false_type{}, Storage<bf16>{}, y);
        }
        if constexpr (!std::is_same_v<Y, bf16>) {
          if (args.dtype == DType::f16) return run(std::false_type{}, Storage<f16>{}, y);
        }
        if constexpr (kHalf) {
          return staged_span<L, M, VALUE, GRAD>(args, begin, end, factor, shared);
        } else {
          return run_float(y);
        }
      });
    }
    if (args.dtype == DType::f32 && args.target_dtype == DType::f32)
      return run_float(Storage<float>{});
  }
  return staged_span<L, M, VALUE, GRAD>(args, begin, end, factor, shared);
}

struct Spans {
  Span value, gradient, both;

  VF_FN Span operator()(bool wants_value, bool wants_grad) const {
    return !wants_grad ? value : wants_value ? both : gradient;
  }
};

template <class L, class M>
constexpr Spans kSpans = {any_span<L, M, true, false>, any_span<L, M, false, true>,
                          any_span<L, M, true, true>};

}  // namespace vae_fast::cpu
