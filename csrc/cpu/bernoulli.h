// The Bernoulli loss on the CPU: value, gradient, or both in one pass over logits and target.
//
// Bytes per element, float32 logits and uint8 target: 5 read, and 4 written for the gradient.
#pragma once

#include "cpu/driver.h"
#include "ops/bernoulli.h"

namespace vae_fast::cpu {

// A byte target's value: x / 255, correctly rounded for all 256 of them without a division (1/255
// in two parts, the first short enough for its product to be exact), or x itself for bool.
struct ByteScale {
  float high, low;

  VF_FN explicit ByteScale(DType target)
      : high(target == DType::u8 ? 0x1.0100p-8f : 1.0f),
        low(target == DType::u8 ? 0x1.01010p-24f : 0.0f) {}
  template <class T>
  VF_FN T operator()(T x) const {
    return x * high + x * low;
  }
  VF_FN double operator()(double x) const { return low == 0.0f ? x : x / 255.0; }
};

// Asks for the line that the walk reaches in 512 elements, where the processor's own prefetching
// stops at every page: 15% at 2^20 elements on Zen 4. `lane` is the step's, so that a line of small
// elements is asked for once. (Loops that make noise, or read more streams, gain nothing from it.)
template <class M, class S>
VF_FN void prefetch(const S* p, int lane) {
  if (lane * M::width * int(sizeof(S)) % 64 == 0) __builtin_prefetch(p + 512);
}

// float32 gradients of so many bytes go past the caches, where nobody would find them afterwards
// anyway: a line that is not read before it is written whole is a quarter less to move.
constexpr int64_t kStreamedBytes = int64_t{1} << 25;

// Sums the terms of n elements, in a fixed order, and writes their gradients times `factor`; past the
// caches with STREAM, which wants `grad` at the beginning of a vector.
template <class M, bool FROM_LOGITS, bool VALUE, bool GRAD, bool STREAM, class X, class Y>
VF_FN double bernoulli_span(const X* logits, const Y* target, X* grad, int64_t n,
                            ByteScale byte_scale, double factor) {
  using T = typename M::T;
  constexpr bool kLogSum = VALUE && FROM_LOGITS;
  const T scale = M::splat(typename M::Element(factor));
  typename M::Sum sum;
  typename M::LogSum log_sum;
  int64_t since_fold = 0;
  for (int64_t block = 0; block < n; block += kBlock<M>) {
    if (kLogSum && (since_fold += kBlock<M>) > M::LogSum::capacity) {
      log_sum.fold();
      since_fold = kBlock<M>;
    }
    T partial[4] = {}, pending[2] = {};
    // The gradient of `count` elements; their value goes to the sums.
    const auto term = [&](T x, T t, int lane, int64_t count) __attribute__((always_inline)) {
      T nll{}, e{}, g{};
      if constexpr (std::is_same_v<Y, uint8_t>) t = byte_scale(t);
      if constexpr (FROM_LOGITS) {
        bernoulli::from_logits_parts<M, VALUE, GRAD>(x, t, nll, e, g);
      } else {
        bernoulli::from_probabilities<M, VALUE, GRAD>(x, t, nll, g);
      }
      const bool whole = count == M::width;
      if constexpr (VALUE) partial[lane & 3] += whole ? nll : M::first(count, nll);
      if constexpr (kLogSum) {
        // (1 + a)(1 + b) - 1 = a + b + ab has only positive terms and keeps its digits in float:
        // four vectors become one before they are widened.
        const auto both = [](T a, T b) __attribute__((always_inline)) { return a * b + (a + b); };
        if (lane == kAlone) {
          log_sum.add(whole ? e : M::first(count, e));
        } else if (lane == 0 || lane == 2) {
          pending[lane / 2] = e;
        } else if (lane == 1) {
          pending[0] = both(pending[0], e);
        } else {
          log_sum.add(both(pending[0], both(pending[1], e)));
        }
      }
      return g * scale;
    };
    walk<M>(
        block, block + kBlock<M> < n ? block + kBlock<M> : n,
        [&](int64_t i, int lane) __attribute__((always_inline)) {
          prefetch<M>(logits + i, lane);
          prefetch<M>(target + i, lane);
          const T g = term(M::load(logits + i), M::load(target + i), lane, M::width);
          if constexpr (STREAM) {
            M::stream(g, grad + i);
          } else if constexpr (GRAD) {
            M::store(g, grad + i);
          }
        },
        [&](int64_t i, int64_t count) {
          const T g =
              term(load_tail<M>(logits + i, count), load_tail<M>(target + i, count), kAlone, count);
          if constexpr (GRAD) store_tail<M>(g, grad + i, count);
        });
    if constexpr (VALUE) sum.add((partial[0] + partial[1]) + (partial[2] + partial[3]));
  }
  if constexpr (STREAM) M::end_stream();
  if constexpr (kLogSum) return sum.total() + log_sum.total();
  return VALUE ? sum.total() : 0.0;
}

// Calls body(x, y) with null pointers of the storage types of logits and target.
template <class M, class Body>
void with_bernoulli_storage(const Bernoulli& args, Body&& body) {
  const bool bytes = args.target_dtype == DType::u8 || args.target_dtype == DType::boolean;
  if constexpr (M::width == 1) {
    bytes ? body(Storage<double>{}, Storage<uint8_t>{}) : body(Storage<double>{}, Storage<double>{});
  } else {
    with_storage(args.dtype, [&](auto x) {
      if (bytes) return body(x, Storage<uint8_t>{});
      if (args.target_dtype == DType::f32) return body(x, Storage<float>{});
      return body(x, x);
    });
  }
}

// Calls body(value, grad) with the pair as compile-time constants.
template <class Body>
void with_outputs(bool value, bool grad, Body&& body) {
  if (value && grad) return body(std::true_type{}, std::true_type{});
  if (value) return body(std::true_type{}, std::false_type{});
  return body(std::false_type{}, std::true_type{});
}

// One op's work, typed: terms of [begin, end) as one sum, gradients scaled by `factor`.
template <class M, class X, class Y, bool VALUE, bool GRAD>
struct BernoulliSpan {
  const Bernoulli& args;
  const ByteScale byte_scale{args.target_dtype};

  double operator()(int64_t begin, int64_t end, double factor) const {
    const X* x = static_cast<const X*>(args.logits) + begin;
    const Y* t = static_cast<const Y*>(args.target) + begin;
    X* g = GRAD ? static_cast<X*>(args.grad) + begin : nullptr;
    const auto run = [&](auto from_logits, auto stream) {
      return bernoulli_span<M, decltype(from_logits)::value, VALUE, GRAD, decltype(stream)::value>(
          x, t, g, end - begin, byte_scale, factor);
    };
    if (!args.from_logits) return run(std::false_type{}, std::false_type{});
    if constexpr (GRAD && std::is_same_v<X, float>) {
      const bool large = args.rows * args.cols * int64_t(sizeof(X)) >= kStreamedBytes;
      if (large && reinterpret_cast<uintptr_t>(g) % (sizeof(X) * M::width) == 0)
        return run(std::true_type{}, std::true_type{});
    }
    return run(std::true_type{}, std::false_type{});
  }
};

template <class M>
void bernoulli_driver(const Bernoulli& args, const Threads& threads) {
  using Acc = typename M::Element;
  const int64_t n = args.rows * args.cols;
  with_bernoulli_storage<M>(args, [&](auto x, auto y) {
    with_outputs(args.nll != nullptr, args.grad != nullptr, [&](auto value, auto grad) {
      using X = typename decltype(x)::type;
      using Y = typename decltype(y)::type;
      constexpr bool kGrad = decltype(grad)::value;
      const BernoulliSpan<M, X, Y, decltype(value)::value, kGrad> span{args};
      const auto factor = [&](int64_t row) {
        return kGrad ? coefficient<Acc>(args.grad_nll, row) : 0.0;
      };
      Acc* nll = static_cast<Acc*>(args.nll);
      if (args.grad_nll.per_row || args.reduction == Reduction::none) {
        parallel(threads, args.rows, args.cols, [&](int64_t row) {
          const double sum = span(row * args.cols, (row + 1) * args.cols, factor(row));
          if (nll != nullptr) nll[row] = Acc(sum);
        });
        return;
      }
      const int64_t chunks = chunks_of(n);
      const double whole = factor(0);
      Partials partials(chunks);
      parallel(threads, chunks, kChunk, [&](int64_t c) {
        partials[c] = span(c * kChunk, (c + 1) * kChunk < n ? (c + 1) * kChunk : n, whole);
      });
      if (nll != nullptr) nll[0] = Acc(partials.sum() * mean_scale(args.reduction, args.rows));
    });
  });
}

}  // namespace vae_fast::cpu
