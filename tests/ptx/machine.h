// PTX instructions as C++ functions, for the kernels that translate.py writes.
//
// op_NAME is the instruction NAME with its modifiers, over its types. Registers are unsigned integers
// of their size. Approximate instructions give the correctly rounded result, or, where the test asks
// for it, one that is off by the error that the ISA allows them.
#pragma once

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "emulation.h"

namespace emulation {

// --- what cudart.cpp has ---

enum Rounding { down, up, toward_zero };
float fma_directed(float a, float b, float c, Rounding rounding);
double fma_directed(double a, double b, double c, Rounding rounding);
float add_directed(float a, float b, Rounding rounding);
// An approximation whose relative error may be `relative`; `bits` are the operand's.
float approximate(double exact, double relative, uint64_t bits);
double gross_reciprocal(double x);
void shared_access(uint64_t at, unsigned bytes, bool write, unsigned limit);
extern char shared_memory[];
extern uint64_t poison_word;

// --- registers ---

using f16 = _Float16;

template <int BITS>
inline auto poison() {
  if constexpr (BITS == 1) return bool(poison_word & 1u);
  if constexpr (BITS == 16) return uint16_t(poison_word);
  if constexpr (BITS == 32) return uint32_t(poison_word);
  if constexpr (BITS == 64) return uint64_t(poison_word);
}

template <class T, class R>
inline T as(R r) {
  if constexpr (std::is_same_v<T, bool>) {
    return r != 0;
  } else if constexpr (sizeof(T) == sizeof(R)) {
    return std::bit_cast<T>(r);
  } else if constexpr (std::is_integral_v<T>) {
    return static_cast<T>(r);
  } else {  // the low bits
    static_assert(sizeof(T) < sizeof(R));
    using U = std::conditional_t<sizeof(T) == 2, uint16_t, uint32_t>;
    return std::bit_cast<T>(static_cast<U>(r));
  }
}

template <class R, class T>
inline void set(R& r, T x) {
  if constexpr (std::is_same_v<R, bool>) {
    static_assert(std::is_same_v<T, bool>);
    r = x;
  } else if constexpr (sizeof(R) == sizeof(T)) {
    r = std::bit_cast<R>(x);
  } else {  // loads and conversions widen by the type's sign
    static_assert(sizeof(R) > sizeof(T) && std::is_integral_v<T>);
    r = static_cast<R>(x);
  }
}

// --- memory ---

template <class T, int N>
inline void load_param(uint64_t at, T (&x)[N]) {
  std::memcpy(x, reinterpret_cast<const void*>(at), sizeof x);
}
template <class T, int N>
inline void load_global(uint64_t at, T (&x)[N], bool readonly) {
  std::memset(x, 0, sizeof x);
  const void* p = reinterpret_cast<const void*>(at);
  if (check(p, sizeof x, readonly ? Access::read_only : Access::read)) std::memcpy(x, p, sizeof x);
}
template <class T, int N>
inline void store_global(uint64_t at, const T (&x)[N]) {
  void* p = reinterpret_cast<void*>(at);
  if (check(p, sizeof x, Access::write)) std::memcpy(p, x, sizeof x);
}
template <class T, int N>
inline void load_shared(uint64_t at, T (&x)[N], unsigned limit) {
  shared_access(uint32_t(at), sizeof x, false, limit);
  std::memcpy(x, shared_memory + uint32_t(at) % 32768, sizeof x);
}
template <class T, int N>
inline void store_shared(uint64_t at, const T (&x)[N], unsigned limit) {
  shared_access(uint32_t(at), sizeof x, true, limit);
  std::memcpy(shared_memory + uint32_t(at) % 32768, x, sizeof x);
}
template <class T>
inline T op_atom_global_inc(uint64_t at, T limit) {
  return atomic_inc(reinterpret_cast<T*>(at), limit);
}
template <class T>
inline T op_atom_relaxed_gpu_global_inc(uint64_t at, T limit) {
  return op_atom_global_inc(at, limit);
}
inline void op_membar_gl() { fence(); }
inline void op_fence_acq_rel_gpu() { fence(); }
inline void op_fence_sc_gpu() { fence(); }

// --- between lanes ---

inline uint32_t op_shfl_sync_bfly(uint32_t x, uint32_t b, uint32_t c, uint32_t mask, bool& inside) {
  const unsigned lane = threadIdx.x % 32u, segment = c >> 8 & 31u, clamp = c & 31u;
  const unsigned last = (lane & segment) | (clamp & ~segment);
  unsigned source = lane ^ (b & 31u);
  inside = source <= last;
  if (!inside) source = lane;
  return static_cast<uint32_t>(exchange(mask, x, static_cast<int>(source)));
}

// --- integers and floats ---

#define UNARY(name, value) \
  template <class T>       \
  inline T op_##name(T a) { return T(value); }
#define BINARY(name, value) \
  template <class T>        \
  inline T op_##name(T a, T b) { return T(value); }
#define TERNARY(name, value) \
  template <class T>         \
  inline T op_##name(T a, T b, T c) { return T(value); }
#define COMPARISON(name, value)                                                            \
  template <class T>                                                                       \
  inline bool op_setp_##name(T a, T b) { return value; }                                   \
  template <class T>                                                                       \
  inline bool op_setp_##name##_and(T a, T b, bool c) { return (value) && c; }              \
  template <class T>                                                                       \
  inline bool op_setp_##name##_or(T a, T b, bool c) { return (value) || c; }

template <class T>
struct Twice;
template <>
struct Twice<int16_t> { using type = int32_t; };
template <>
struct Twice<uint16_t> { using type = uint32_t; };
template <>
struct Twice<int32_t> { using type = int64_t; };
template <>
struct Twice<uint32_t> { using type = uint64_t; };
template <>
struct Twice<int64_t> { using type = __int128; };
template <>
struct Twice<uint64_t> { using type = unsigned __int128; };

UNARY(mov, a)
UNARY(neg, -a)
template <class T>
inline T op_not(T a) {
  if constexpr (std::is_same_v<T, bool>) return !a;
  else return T(~a);
}
template <class T>
inline T op_abs(T a) {
  if constexpr (std::is_integral_v<T>) return a < 0 ? T(-a) : a;
  else return std::fabs(a);
}
BINARY(add, a + b)
BINARY(add_rn, a + b)
BINARY(sub, a - b)
BINARY(sub_rn, a - b)
BINARY(mul, a * b)
BINARY(mul_rn, a * b)
BINARY(mul_lo, a * b)
BINARY(mul_hi, (typename Twice<T>::type(a) * typename Twice<T>::type(b)) >> (8 * sizeof(T)))
BINARY(and, a & b)
BINARY(or, a | b)
BINARY(xor, a ^ b)
TERNARY(mad_lo, a * b + c)
TERNARY(fma_rn, std::fma(a, b, c))
TERNARY(fma_rm, fma_directed(a, b, c, down))
TERNARY(fma_rp, fma_directed(a, b, c, up))
TERNARY(fma_rz, fma_directed(a, b, c, toward_zero))
BINARY(add_rz, add_directed(a, b, toward_zero))
template <class T>
inline auto op_mul_wide(T a, T b) {
  return static_cast<typename Twice<T>::type>(a) * b;
}
template <class T>
inline auto op_mad_wide(T a, T b, typename Twice<T>::type c) {
  return static_cast<typename Twice<T>::type>(a) * b + c;
}
template <class T>
inline T op_div(T a, T b) {
  if (b == 0) return complain("division of integers by zero"), T(0);
  return a / b;
}
template <class T>
inline T op_rem(T a, T b) {
  if (b == 0) return complain("division of integers by zero"), T(0);
  return a % b;
}
template <class T>
inline T op_min(T a, T b) {
  if constexpr (std::is_integral_v<T>) return a < b ? a : b;
  else return std::fmin(a, b);
}
template <class T>
inline T op_max(T a, T b) {
  if constexpr (std::is_integral_v<T>) return a > b ? a : b;
  else return std::fmax(a, b);
}
template <class T>
inline T op_shl(T a, uint32_t n) {
  return n >= 8 * sizeof(T) ? T(0) : T(a << n);
}
template <class T>
inline T op_shr(T a, uint32_t n) {
  if (n >= 8 * sizeof(T)) return a < 0 ? T(-1) : T(0);
  return T(a >> n);
}
template <class T>
inline T op_shf_l_wrap(T low, T high, uint32_t n) {
  return T((uint64_t(high) << 32 | low) << (n & 31u) >> 32);
}
template <class T>
inline T op_shf_r_wrap(T low, T high, uint32_t n) {
  return T((uint64_t(high) << 32 | low) >> (n & 31u));
}
template <class T>
inline T op_prmt(T a, uint32_t b, uint32_t selector) {
  const uint64_t bytes = uint64_t(b) << 32 | a;
  uint32_t out = 0;
  for (int k = 0; k < 4; ++k) {
    const uint32_t n = selector >> (4 * k) & 15u;
    uint32_t byte = uint32_t(bytes >> (8 * (n & 7u))) & 255u;
    if (n & 8u) byte = byte & 128u ? 255u : 0u;
    out |= byte << (8 * k);
  }
  return out;
}
template <class T>
inline T op_lop3(T a, uint32_t b, uint32_t c, uint32_t table) {
  uint32_t out = 0;
  for (int k = 0; k < 8; ++k) {
    if (table >> k & 1u) out |= (k & 4 ? a : ~a) & (k & 2 ? b : ~b) & (k & 1 ? c : ~c);
  }
  return out;
}
template <class T>
inline T low_bits(T count) {
  return count >= 8 * sizeof(T) ? T(~T(0)) : T((T(1) << count) - 1);
}
template <class T>
inline T op_bfe(T a, T at, T count) {
  static_assert(std::is_unsigned_v<T>);
  at &= 255u, count &= 255u;
  return at >= 8 * sizeof(T) ? T(0) : T((a >> at) & low_bits(count));
}
template <class T>
inline T op_bfi(T a, T b, T at, T count) {
  static_assert(std::is_unsigned_v<T>);
  at &= 255u, count &= 255u;
  if (at >= 8 * sizeof(T)) return b;
  const T mask = T(low_bits(count) << at);
  return T((b & ~mask) | (a << at & mask));
}
template <class T>
inline T op_selp(T a, T b, bool c) { return c ? a : b; }

template <class T>
inline bool unordered(T a, T b) {
  if constexpr (std::is_integral_v<T>) return false;
  else return std::isnan(a) || std::isnan(b);
}
COMPARISON(eq, a == b)
COMPARISON(ne, a != b && !unordered(a, b))
COMPARISON(lt, a < b)
COMPARISON(le, a <= b)
COMPARISON(gt, a > b)
COMPARISON(ge, a >= b)
COMPARISON(equ, a == b || unordered(a, b))
COMPARISON(neu, a != b)
COMPARISON(ltu, a < b || unordered(a, b))
COMPARISON(leu, a <= b || unordered(a, b))
COMPARISON(gtu, a > b || unordered(a, b))
COMPARISON(geu, a >= b || unordered(a, b))
COMPARISON(nan, unordered(a, b))
COMPARISON(num, !unordered(a, b))

// --- division and transcendental functions ---

inline float flush(float x) {
  return std::fabs(x) < std::numeric_limits<float>::min() ? std::copysign(0.0f, x) : x;
}
inline uint32_t bits_of(float x) { return std::bit_cast<uint32_t>(x); }

BINARY(div_rn, a / b)
UNARY(sqrt_rn, std::sqrt(a))
UNARY(rcp_rn, T(1) / a)
template <class T>
inline T op_div_approx(T a, T b) {  // 2 units for a divisor of 2^-126 to 2^126
  const float size = std::fabs(b);
  if (size < 0x1p-126f || size > 0x1p126f) complain("div.approx outside its range");
  return approximate(double(a) / b, 0x1p-22, uint64_t{bits_of(a)} << 32 | bits_of(b));
}
template <class T>
inline T op_div_full(T a, T b) {  // 2 units
  return approximate(double(a) / b, 0x1p-22, uint64_t{bits_of(a)} << 32 | bits_of(b));
}
template <class T>
inline T op_rcp_approx(T a) {
  return approximate(1.0 / double(a), 0x1p-23, bits_of(a));
}
template <class T>
inline T op_rcp_approx_ftz(T a) {
  if constexpr (sizeof(T) == 8) return gross_reciprocal(a);
  else return flush(op_rcp_approx(flush(a)));
}
template <class T>
inline T op_sqrt_approx(T a) {
  return approximate(std::sqrt(double(a)), 0x1p-23, bits_of(a));
}
template <class T>
inline T op_sqrt_approx_ftz(T a) { return flush(op_sqrt_approx(flush(a))); }
template <class T>
inline T op_rsqrt_approx(T a) {
  return approximate(1.0 / std::sqrt(double(a)), 0x1.6p-23, bits_of(a));
}
template <class T>
inline T op_rsqrt_approx_ftz(T a) { return flush(op_rsqrt_approx(flush(a))); }
template <class T>
inline T op_ex2_approx(T a) { return approximate(std::exp2(double(a)), 0x1p-22, bits_of(a)); }
template <class T>
inline T op_ex2_approx_ftz(T a) { return flush(op_ex2_approx(flush(a))); }
template <class T>
inline T op_lg2_approx(T a) {  // absolute within [0.5, 2], relative outside
  const double exact = std::log2(double(a));
  if (a < 0.5f || a > 2.0f) return approximate(exact, 0x1p-22, bits_of(a));
  const float moved = approximate(2.0, 0x1p-23, bits_of(a));
  return float(exact + (double(moved) - 2.0));
}
template <class T>
inline T op_lg2_approx_ftz(T a) { return op_lg2_approx(flush(a)); }
template <class T>
inline T op_tanh_approx(T a) { return approximate(std::tanh(double(a)), 0x1p-11, bits_of(a)); }

// --- conversions ---

template <class To, class From>
inline To op_cvt(From a) {
  static_assert(std::is_integral_v<From> || sizeof(To) >= sizeof(From));
  return static_cast<To>(a);
}
template <class To, class From>
inline To op_cvt_rn(From a) { return static_cast<To>(a); }
template <class To, class From>
inline To op_cvt_sat(From a) {  // NaN becomes 0
  static_assert(std::is_same_v<To, From>);
  return std::fmin(std::fmax(a, From(0)), From(1));
}
template <class To, class From>
inline To whole(From a) {  // a is whole or not finite; beyond the type's ends, they
  using L = std::numeric_limits<To>;
  if (std::isnan(a)) return 0;
  if (double(a) <= double(L::min())) return L::min();
  if (double(a) >= double(L::max())) return L::max();
  return static_cast<To>(a);
}
template <class To, class From>
inline To op_cvt_rzi(From a) {
  if constexpr (std::is_integral_v<To>) return whole<To>(std::trunc(a));
  else return std::trunc(a);
}
template <class To, class From>
inline To op_cvt_rni(From a) {
  if constexpr (std::is_integral_v<To>) return whole<To>(std::nearbyint(a));
  else return std::nearbyint(a);
}
template <class To, class From>
inline To op_cvt_rmi(From a) {
  if constexpr (std::is_integral_v<To>) return whole<To>(std::floor(a));
  else return std::floor(a);
}
inline uint16_t to_bf16(float x) {
  const uint32_t u = bits_of(x);
  return x != x ? 0x7fff : uint16_t((u + 0x7fffu + (u >> 16 & 1u)) >> 16);
}
inline uint16_t to_f16(float x) { return x != x ? 0x7fff : std::bit_cast<uint16_t>(f16(x)); }
template <class From>
inline uint16_t op_cvt_rn_bf16(From a) { return to_bf16(a); }
template <class From>
inline uint32_t op_cvt_rn_bf16x2(From high, From low) {
  return uint32_t{to_bf16(high)} << 16 | to_bf16(low);
}
template <class From>
inline uint32_t op_cvt_rn_f16x2(From high, From low) {
  return uint32_t{to_f16(high)} << 16 | to_f16(low);
}

}  // namespace emulation

using namespace emulation;
