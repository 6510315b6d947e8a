// A math policy of N vectors side by side: every operation is done on the one, then on the next.
//
// A long formula is a long chain, in which each operation waits for the one before. A processor
// does not look far enough ahead in its instructions to reach the next vector. Vectors side by side
// fill the gaps.
#pragma once

#include "cpu/prelude.h"

namespace vae_fast::cpu {

template <class M, int N, class = std::make_index_sequence<N>>
struct Several;

template <class M, int N, size_t... K>
struct Several<M, N, std::index_sequence<K...>> {
  using Element = typename M::Element;
  using V = typename M::T;
  static constexpr int width = N * M::width;

  struct I {  // a condition
    typename M::I v[N];
  };
  struct T {
    V v[N];

#define VF_OP(op, Result)                                                               \
  friend VF_FN Result operator op(T x, T y) { return {{(x.v[K] op y.v[K])...}}; }        \
  friend VF_FN Result operator op(T x, Element y) { return {{(x.v[K] op y)...}}; }       \
  friend VF_FN Result operator op(Element x, T y) { return {{(x op y.v[K])...}}; }
    VF_OP(+, T)
    VF_OP(-, T)
    VF_OP(*, T)
    VF_OP(==, I)
    VF_OP(<, I)
    VF_OP(>, I)
    VF_OP(<=, I)
    VF_OP(>=, I)
#undef VF_OP
    friend VF_FN T operator-(T x) { return {{-x.v[K]...}}; }
    friend VF_FN T operator*(T x, V y) { return {{(x.v[K] * y)...}}; }
  };

  static VF_FN T splat(Element x) { return {{(static_cast<void>(K), M::splat(x))...}}; }
  static VF_FN Element constant(double x) { return M::constant(x); }
  template <class A, class B>
  static VF_FN T select(I c, A x, B y) {
    return {{M::select(c.v[K], part<K>(x), part<K>(y))...}};
  }
  template <class S>
  static VF_FN T load(const S* p) {
    return {{M::load(p + K * M::width)...}};
  }
  template <class S>
  static VF_FN void store(T x, S* p) {
    (M::store(x.v[K], p + K * M::width), ...);
  }
  // body(vector) for each of them.
  template <class Body>
  static VF_FN void each(T x, Body&& body) {
    (body(x.v[K]), ...);
  }

  static VF_FN T abs(T x) { return {{M::abs(x.v[K])...}}; }
  static VF_FN T at_least(T x, Element low) { return {{M::at_least(x.v[K], low)...}}; }
  static VF_FN T divide(T x, T y) { return {{M::divide(x.v[K], y.v[K])...}}; }
  static VF_FN T divide_unit(T x, T y) { return {{M::divide_unit(x.v[K], y.v[K])...}}; }
  static VF_FN T exp(T x) { return {{M::exp(x.v[K])...}}; }
  static VF_FN T exp_nonpositive(T x) { return {{M::exp_nonpositive(x.v[K])...}}; }
  static VF_FN T exp_nonpositive(T x, T& less_one) {
    return {{M::exp_nonpositive(x.v[K], less_one.v[K])...}};
  }
  static VF_FN T log(T x) { return {{M::log(x.v[K])...}}; }
  static VF_FN T log_near(T u, T less_one) { return {{M::log_near(u.v[K], less_one.v[K])...}}; }
  static VF_FN void log1p_excess(T w, T reciprocal, T& log1p, T& excess) {
    (M::log1p_excess(w.v[K], reciprocal.v[K], log1p.v[K], excess.v[K]), ...);
  }

 private:
  template <size_t I_>
  static VF_FN V part(T x) {
    return x.v[I_];
  }
  template <size_t I_>
  static VF_FN Element part(Element x) {
    return x;
  }
};

}  // namespace vae_fast::cpu
