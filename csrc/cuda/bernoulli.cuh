// The Bernoulli loss over a range: the value's sum, and the gradient times the upstream's.
//
// Bytes per element: logits and target read (4 + 4 in float32, 2 + 1 for bfloat16 logits and uint8
// targets), and the gradient written in the logits' dtype.
#pragma once

#include <type_traits>

#include "cuda/math.cuh"
#include "cuda/split.cuh"
#include "cuda/upstream.cuh"
#include "ops/bernoulli.h"

namespace vae_fast::cuda {

// 16-byte accesses to logits and gradient (two of them to float64), 64 bytes of either in flight.
template <class F>
using BernoulliBatch = Batch<F::bytes == 2 ? 8 : 4, F::bytes == 4 ? 4 : 2>;

// The target in any of its dtypes: the logits' own, float32 beside half precision, or bytes. The
// choice is the same for every thread, and made once a batch.
template <class F, Reuse REUSE, class B, class C>
VF_DEVICE void load_target(const Bernoulli& args, const B& batch, C (&t)[B::size]) {
  if (args.target_dtype == args.dtype) {
    load<F, REUSE>(args.target, batch, C(0), t);
    return;
  }
  if constexpr (F::bytes == 2) {
    if (args.target_dtype == DType::f32) {
      load<F32, REUSE>(args.target, batch, C(0), t);
      return;
    }
  }
  load<Byte, REUSE>(args.target, batch, C(0), t);
  if (args.target_dtype == DType::u8) {
    // x / 255, rounded once: the product with the reciprocal, put right by its remainder.
    constexpr C r = C(1.0 / 255.0);
#pragma unroll
    for (int k = 0; k < B::size; ++k) {
      const C q = t[k] * r;
      t[k] = Math<C>::fma(Math<C>::fma(C(-255), q, t[k]), r, q);
    }
  }
}

template <class F, bool LOGITS, bool VALUE, bool GRAD>
VF_DEVICE double bernoulli_range(const Bernoulli& args, const Range& range, int lane, int lanes,
                                 bool aligned) {
  using C = typename F::C;
  using M = Math<C>;
  using B = BernoulliBatch<F>;
  constexpr Reuse kReuse = GRAD ? Reuse::never : Reuse::soon;
  const bool streamed = args.rows * args.cols * F::bytes > kStreamedBytes;
  const C factor = GRAD ? coefficient<C>(args.grad_nll, range.segment) : C(0);
  double sum = 0.0;
  for (int64_t group = range.begin / B::V + lane; group * B::V < range.end;
       group += int64_t{lanes} * B::U) {
    const B batch(group, lanes, range.begin, range.end, aligned);
    // Where the range ends: logit -1000 or probability 0, target 0, whose terms are exactly 0.
    C x[B::size], t[B::size], nll[B::size];
    load<F, kReuse>(args.logits, batch, LOGITS ? C(-1000) : C(0), x);
    load_target<F, kReuse>(args, batch, t);
#pragma unroll
    for (int k = 0; k < B::size; ++k) {
      C g;
      bernoulli::terms<M, LOGITS, VALUE, GRAD>(x[k], t[k], nll[k], g);
      if constexpr (GRAD) x[k] = g * factor;
    }
    if constexpr (VALUE) sum += static_cast<double>(tree_sum(nll));
    if constexpr (GRAD) {
      if (args.grad != nullptr) store<F>(args.grad, batch, x, streamed);
    }
  }
  return sum;
}

inline bool lies_well(const Bernoulli& args) {
  const int bytes = bytes_of(args.dtype), v = bytes == 2 ? 8 : 4;
  return lies_well(args.logits, v * bytes) && lies_well(args.grad, v * bytes) &&
         lies_well(args.target, v * bytes_of(args.target_dtype));
}

inline bool valid(const Bernoulli& args) {
  const DType x = args.dtype, t = args.target_dtype;
  const bool half = x == DType::bf16 || x == DType::f16;
  return t == DType::u8 || t == DType::boolean || t == x || (half && t == DType::f32);
}

// Calls f(format, logits, value, grad), the last three as compile-time constants. Probabilities
// are for scripts of old: one kernel makes value and gradient, whichever is wanted.
template <class Body>
cudaError_t with_bernoulli(const Bernoulli& args, bool value, bool grad, Body&& body) {
  using std::false_type, std::true_type;
  return with_format(args.dtype, [&](auto format) {
    if (!args.from_logits) return body(format, false_type{}, true_type{}, true_type{});
    if (value && grad) return body(format, true_type{}, true_type{}, true_type{});
    if (value) return body(format, true_type{}, true_type{}, false_type{});
    return body(format, true_type{}, false_type{}, true_type{});
  });
}

}  // namespace vae_fast::cuda
