// Every formula of csrc/likelihoods/list.h over arrays, for test_formulas.py: NAME(n, params, x, nll,
// grads), with arrays of n numbers for each parameter, and for planes NAME(n, planes, params, ...).
// Compiled once for each math policy: -DVF_BYTES=16, 32 or 64 for vectors; without it, over one
// number of type -DVF_SCALAR=float or double.
#include "cpu/prelude.h"

#if VF_BYTES == 32
#pragma GCC target("avx2,fma,f16c")
#elif VF_BYTES == 64
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#endif

#ifdef VF_BYTES
#define VF_LEVEL level
#include "cpu/simd.h"
using M = vae_fast::level::Simd;
#else
#include "math/scalar.h"
using M = vae_fast::Scalar<VF_SCALAR>;
#endif

#include "likelihoods/list.h"

namespace {

using namespace vae_fast::likelihoods;
using T = M::T;
using Element = M::Element;

// A vector of `count` numbers and neutral ones, from p with a stride.
T load(const Element* p, int64_t count) {
  Element lanes[M::width];
  for (int i = 0; i < M::width; ++i) lanes[i] = p[i < count ? i : 0];
  T v;
  std::memcpy(&v, lanes, sizeof v);
  return v;
}
void store(T v, Element* p, int64_t count) {
  Element lanes[M::width];
  std::memcpy(lanes, &v, sizeof v);
  for (int i = 0; i < M::width && i < count; ++i) p[i] = lanes[i];
}

template <class L, bool VALUE, bool GRAD>
void elements(int64_t n, const Element* const* params, const Element* x, Element* nll,
              Element* const* grads) {
  for (int64_t at = 0; at < n; at += M::width) {
    T p[L::params], g[L::params] = {}, value = {};
    for (int j = 0; j < L::params; ++j) p[j] = load(params[j] + at, n - at);
    const T t = load(x + at, n - at);
    L::template term<M, VALUE, GRAD>(p, t, value, g);
    if constexpr (HasNonzeroPart<L>::value) {
      T more = {}, gs[L::params] = {};
      L::template add_nonzero<M, VALUE, GRAD>(p, t, more, gs);
      const auto zero = t == Element(0);
      if constexpr (VALUE) value = M::select(zero, value, value + more);
      for (int j = 0; GRAD && j < L::params; ++j) g[j] = M::select(zero, g[j], g[j] + gs[j]);
    }
    if constexpr (VALUE) store(value, nll + at, n - at);
    for (int j = 0; GRAD && j < L::params; ++j) store(g[j], grads[j] + at, n - at);
  }
}

template <bool READABLE>
struct Planes {
  static constexpr bool readable = READABLE;
  const int count;
  const Element* const* params;
  Element* const* grads;
  int64_t at, left;
  T param(int j) const { return load(params[j] + at, left); }
  void grad(int j, T v) { store(v, grads[j] + at, left); }
  T read(int j) const { return load(grads[j] + at, left); }
};

template <class L, bool VALUE, bool GRAD, bool READABLE>
void positions(int64_t n, int planes, const Element* const* params, const Element* const* x,
               Element* nll, Element* const* grads) {
  for (int64_t at = 0; at < n; at += M::width) {
    Planes<READABLE> io{planes, params, grads, at, n - at};
    T t[L::targets], value = {};
    for (int c = 0; c < L::targets; ++c) t[c] = load(x[c] + at, n - at);
    L::template position<M, VALUE, GRAD>(io, t, value, io);
    if constexpr (VALUE) store(value, nll + at, n - at);
  }
}

}  // namespace

extern "C" {
#define X(name, Likelihood)                                                                     \
  void name(int64_t n, const Element* const* params, const Element* x, Element* nll,            \
            Element* const* grads) {                                                            \
    if (!grads) return elements<Likelihood, true, false>(n, params, x, nll, grads);             \
    if (!nll) return elements<Likelihood, false, true>(n, params, x, nll, grads);               \
    elements<Likelihood, true, true>(n, params, x, nll, grads);                                 \
  }
VF_LIKELIHOODS(X)
#undef X
#define X(name, Likelihood)                                                                     \
  void name(int64_t n, int planes, const Element* const* params, const Element* const* x,       \
            Element* nll, Element* const* grads, bool readable) {                               \
    if (!grads) return positions<Likelihood, true, false, true>(n, planes, params, x, nll, grads); \
    if (readable) return positions<Likelihood, true, true, true>(n, planes, params, x, nll, grads); \
    positions<Likelihood, true, true, false>(n, planes, params, x, nll, grads);                 \
  }
VF_PLANE_LIKELIHOODS(X)
#undef X
}
