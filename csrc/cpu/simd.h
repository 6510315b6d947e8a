// The math policy of one SIMD level: a vector of floats, its loads and stores, and its functions.
//
// Included once per level, after VF_LEVEL (a namespace) and VF_BYTES (the vector's size) are set.
// Arithmetic, comparison and selection are the compiler's own vector operations. Only functions that
// they lack or compile badly are written here: conversions, square root, exponential, logarithms, sine,
// cosine. The vector's size tells the instruction set (64: AVX-512, 32: AVX2 with FMA and F16C, 16:
// the baseline); g++ does not define __AVX512F__ and its like for a `#pragma GCC target`.
#pragma once

#include "cpu/prelude.h"

namespace vae_fast::VF_LEVEL {

struct Simd {
  static constexpr int width = VF_BYTES / 4;
  typedef float T __attribute__((vector_size(VF_BYTES)));
  typedef uint32_t U __attribute__((vector_size(VF_BYTES)));
  typedef int32_t I __attribute__((vector_size(VF_BYTES)));  // also what a comparison yields
  typedef uint64_t W __attribute__((vector_size(VF_BYTES)));
  typedef double D __attribute__((vector_size(VF_BYTES)));
  typedef float HalfT __attribute__((vector_size(VF_BYTES / 2)));
  typedef uint16_t H __attribute__((vector_size(VF_BYTES / 2)));
  typedef uint8_t B __attribute__((vector_size(VF_BYTES / 4)));
  using Element = float;

  static constexpr float kRadiansPerWord = 6.283185307179586476925 / 4294967296.0;

  static VF_FN T splat(float x) { return x - T{}; }
  static VF_FN float constant(double x) { return float(x); }  // as precise as an element is
  static VF_FN U bits(T x) { return (U)x; }
  static VF_FN T from_bits(U x) { return (T)x; }

  // --- selection ---------------------------------------------------------------------------------
  // A condition is an I of lanes 0 or -1.
  template <class A, class B_>
  static VF_FN T select(I c, A a, B_ b) {
    return c ? as_vector(a) : as_vector(b);
  }
  static VF_FN T as_vector(T x) { return x; }
  static VF_FN T as_vector(float x) { return splat(x); }
  static VF_FN I bit(U w) { return (I)(w != 0); }
  // Flips the sign where w, 0 or 2, is 2.
  static VF_FN T negate_if(U w, T x) { return from_bits(bits(x) ^ (w << 30)); }
  static VF_FN T abs(T x) { return from_bits(bits(x) & 0x7fffffffu); }
  // x86's max and min return their second operand if either is NaN.
  static VF_FN T at_least(T x, float low) {
#if VF_BYTES == 64
    return (T)_mm512_max_ps(_mm512_set1_ps(low), (__m512)x);
#elif VF_BYTES == 32
    return (T)_mm256_max_ps(_mm256_set1_ps(low), (__m256)x);
#elif defined(VF_X86)
    return (T)_mm_max_ps(_mm_set1_ps(low), (__m128)x);
#else
    return select(x < low, low, x);
#endif
  }
  static VF_FN T at_most(T x, float high) {
#if VF_BYTES == 64
    return (T)_mm512_min_ps(_mm512_set1_ps(high), (__m512)x);
#elif VF_BYTES == 32
    return (T)_mm256_min_ps(_mm256_set1_ps(high), (__m256)x);
#elif defined(VF_X86)
    return (T)_mm_min_ps(_mm_set1_ps(high), (__m128)x);
#else
    return select(x > high, high, x);
#endif
  }
  // Whether a condition holds in any lane.
  static VF_FN bool any(I c) {
#if VF_BYTES == 64
    return _mm512_movepi32_mask((__m512i)c) != 0;
#elif VF_BYTES == 32
    return _mm256_movemask_ps((__m256)c) != 0;
#elif defined(VF_X86)
    return _mm_movemask_ps((__m128)c) != 0;
#else
    bool found = false;
    for (int i = 0; i < width; ++i) found = found || c[i] != 0;
    return found;
#endif
  }
  // A bit for each lane of x that is not 0 (NaN is not).
  static VF_FN uint32_t nonzero(T x) {
#if VF_BYTES == 64
    return _mm512_cmp_ps_mask((__m512)x, _mm512_setzero_ps(), _CMP_NEQ_UQ);
#elif VF_BYTES == 32
    return _mm256_movemask_ps(_mm256_cmp_ps((__m256)x, _mm256_setzero_ps(), _CMP_NEQ_UQ));
#elif defined(VF_X86)
    return _mm_movemask_ps(_mm_cmpneq_ps((__m128)x, _mm_setzero_ps()));
#else
    uint32_t lanes = 0;
    for (int i = 0; i < width; ++i) lanes |= uint32_t(x[i] != 0.0f) << i;
    return lanes;
#endif
  }
  // Stores the lanes named by the mask side by side at p, where there is room for a whole vector; and
  // the reverse: a vector with those numbers in its named lanes, 0 in the others.
#if VF_BYTES == 64
  static VF_FN void pack(T x, uint32_t lanes, float* p) {
    _mm512_storeu_ps(p, _mm512_maskz_compress_ps(__mmask16(lanes), (__m512)x));
  }
  static VF_FN T unpack(const float* p, uint32_t lanes) {
    return (T)_mm512_maskz_expand_ps(__mmask16(lanes), _mm512_loadu_ps(p));
  }
#else
  static VF_FN void pack(T x, uint32_t lanes, float* p) {
    float all[width];
    store(x, all);
    for (; lanes != 0; lanes &= lanes - 1) *p++ = all[__builtin_ctz(lanes)];
  }
  static VF_FN T unpack(const float* p, uint32_t lanes) {
    float all[width] = {};
    for (; lanes != 0; lanes &= lanes - 1) all[__builtin_ctz(lanes)] = *p++;
    return load(all);
  }
#endif
  // x in the first `count` lanes, 0 in the rest.
  static VF_FN T first(int64_t count, T x) {
    I lane;
    for (int i = 0; i < width; ++i) lane[i] = i;
    return select(lane < (int32_t)count, x, 0.0f);
  }

  // --- memory ------------------------------------------------------------------------------------
  template <class V>
  static VF_FN V load_as(const void* p) {
    V v;
    std::memcpy(&v, p, sizeof(V));
    return v;
  }
  static VF_FN T load(const float* p) { return load_as<T>(p); }
  static VF_FN T load(const uint8_t* p) {
#if VF_BYTES == 64
    return (T)_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(load_as<__m128i>(p)));
#elif VF_BYTES == 32
    return (T)_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p)));
#elif defined(VF_X86)
    const __m128i zero = _mm_setzero_si128();
    const __m128i bytes = _mm_cvtsi32_si128(load_as<int>(p));
    return (T)_mm_cvtepi32_ps(_mm_unpacklo_epi16(_mm_unpacklo_epi8(bytes, zero), zero));
#else
    return __builtin_convertvector(__builtin_convertvector(load_as<B>(p), I), T);
#endif
  }
  static VF_FN U load_halves(const void* p) {
#if VF_BYTES == 64
    return (U)_mm512_cvtepu16_epi32(load_as<__m256i>(p));
#elif VF_BYTES == 32
    return (U)_mm256_cvtepu16_epi32(load_as<__m128i>(p));
#elif defined(VF_X86)
    return (U)_mm_unpacklo_epi16(_mm_loadl_epi64((const __m128i*)p), _mm_setzero_si128());
#else
    return __builtin_convertvector(load_as<H>(p), U);
#endif
  }
  // The low halves of x's lanes, which hold at most 16 bits.
  static VF_FN void store_halves(U x, void* p) {
#if VF_BYTES == 64
    const __m256i h = _mm512_cvtepi32_epi16((__m512i)x);
    std::memcpy(p, &h, sizeof h);
#elif VF_BYTES == 32
    const __m256i packed = _mm256_packus_epi32((__m256i)x, (__m256i)x);
    const __m128i h = _mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08));
    std::memcpy(p, &h, sizeof h);
#elif defined(VF_X86)
    // SSE2 packs with signed saturation only: sign-extend first, so that nothing saturates.
    const __m128i extended = _mm_srai_epi32(_mm_slli_epi32((__m128i)x, 16), 16);
    _mm_storel_epi64((__m128i*)p, _mm_packs_epi32(extended, extended));
#else
    const H h = __builtin_convertvector(x, H);
    std::memcpy(p, &h, sizeof h);
#endif
  }
  static VF_FN T load(const bf16* p) { return from_bits(load_halves(p) << 16); }
  static VF_FN T load(const f16* p) {
#if VF_BYTES == 64
    return (T)_mm512_cvtph_ps(load_as<__m256i>(p));
#elif VF_BYTES == 32
    return (T)_mm256_cvtph_ps(load_as<__m128i>(p));
#else
    // Shift exponent and mantissa into place, then scale: exact for subnormals too. The largest
    // exponent means infinity or NaN, and becomes float's largest.
    const U h = load_halves(p);
    const U magnitude = (h & 0x7fffu) << 13;
    const T finite = from_bits(magnitude) * 0x1p112f;
    const U special = (U)(magnitude >= 0x0f800000u) & 0x7f800000u;
    return from_bits(bits(finite) | special | ((h & 0x8000u) << 16));
#endif
  }

  static VF_FN void store(T x, float* p) { std::memcpy(p, &x, sizeof(T)); }
  static VF_FN void store(T x, bf16* p) {
    // Round to nearest even. NaN keeps its top bits; a NaN from arithmetic has one of them set.
    const U u = bits(x);
    const U rounded = u + (0x7fffu + ((u >> 16) & 1u));
    store_halves((x == x ? rounded : u) >> 16, p);
  }
  static VF_FN void store(T x, f16* p) {
#if VF_BYTES == 64
    const __m256i h = _mm512_cvtps_ph((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    std::memcpy(p, &h, sizeof h);
#elif VF_BYTES == 32
    const __m128i h = _mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    std::memcpy(p, &h, sizeof h);
#else
    const U u = bits(x), sign = (u >> 16) & 0x8000u, a = u & 0x7fffffffu;
    // Normal numbers: re-bias, round to nearest even by integer arithmetic; overflow carries into
    // the exponent and gives infinity, as it should.
    const U normal = (a - 0x38000000u + 0xfffu + ((a >> 13) & 1u)) >> 13;
    // Subnormals: adding 0.5 puts the result's last bit at float's last, rounded by the addition.
    const U tiny = bits(from_bits(a) + 0.5f) - 0x3f000000u;
    const U huge = U{} + 0x7c00u, nan = U{} + 0x7e00u;
    U h = a < 0x38800000u ? tiny : normal;
    h = a >= 0x47800000u ? huge : h;
    h = a > 0x7f800000u ? nan : h;
    store_halves(h | sign, p);
#endif
  }

  // Writes past the caches, to the beginning of a vector; end_stream() makes it seen by other threads.
  static VF_FN void stream(T x, float* p) {
#if VF_BYTES == 64
    _mm512_stream_ps(p, (__m512)x);
#elif VF_BYTES == 32
    _mm256_stream_ps(p, (__m256)x);
#elif defined(VF_X86)
    _mm_stream_ps(p, (__m128)x);
#else
    store(x, p);
#endif
  }
  static VF_FN void end_stream() {
#if defined(VF_X86)
    _mm_sfence();
#endif
  }

  // --- integers ----------------------------------------------------------------------------------
  static VF_FN W mul32(W a, uint32_t m) {
#if VF_BYTES == 64
    return (W)_mm512_mul_epu32((__m512i)a, _mm512_set1_epi64(m));
#elif VF_BYTES == 32
    return (W)_mm256_mul_epu32((__m256i)a, _mm256_set1_epi64x(m));
#elif defined(VF_X86) && VF_BYTES == 16
    return (W)_mm_mul_epu32((__m128i)a, _mm_set1_epi64x(m));
#else
    return (a & 0xffffffffu) * uint64_t(m);
#endif
  }
  static VF_FN T from_unsigned(U w) { return __builtin_convertvector(w, T); }
  static VF_FN T from_signed(U w) { return __builtin_convertvector((I)w, T); }

  // --- functions ---------------------------------------------------------------------------------
  static VF_FN T divide(T a, T b) { return a / b; }

  // a / b for b in [1, 2]. A division holds up the multipliers for several cycles; an estimate of
  // 14 bits and a Newton step give the quotient to 1 ulp in less. (AVX2's has 12 bits: too few.)
  static VF_FN T divide_unit(T a, T b) {
#if VF_BYTES == 64
    const T estimate = (T)_mm512_rcp14_ps((__m512)b);
    const T reciprocal = estimate + estimate * (1.0f - b * estimate);
    return a * reciprocal;
#else
    return a / b;
#endif
  }

  // 1 / x of a positive normal number, to 1 ulp.
  static VF_FN T reciprocal(T x) {
#if VF_BYTES == 64
    const T estimate = (T)_mm512_rcp14_ps((__m512)x);
    return estimate + estimate * (1.0f - x * estimate);
#else
    return 1.0f / x;
#endif
  }

  static VF_FN T sqrt(T x) {
#if VF_BYTES == 64
    return (T)_mm512_sqrt_ps((__m512)x);
#elif VF_BYTES == 32
    return (T)_mm256_sqrt_ps((__m256)x);
#elif defined(VF_X86) && VF_BYTES == 16
    return (T)_mm_sqrt_ps((__m128)x);
#else
    for (int i = 0; i < width; ++i) x[i] = std::sqrt(x[i]);
    return x;
#endif
  }

  // The square root of x >= 0 to 1 ulp, from an estimate of 14 bits and a Newton step.
  static VF_FN T sqrt_positive(T x) {
#if VF_BYTES == 64
    const T safe = at_least(x, 0x1p-100f);
    const T estimate = (T)_mm512_rsqrt14_ps((__m512)safe);
    const T root = x * estimate;
    return root + (0.5f * estimate) * (x - root * root);
#else
    return sqrt(x);
#endif
  }

  // Nearest integer, as a float and as an integer, for |x| < 2^22: the sum with 1.5 * 2^23 has no
  // room for a fraction, and its low bits are the integer.
  static VF_FN T nearest(T x, I& integer) {
    const T shifted = x + 0x1.8p23f;
    integer = (I)bits(shifted) - 0x4b400000;
    return shifted - 0x1.8p23f;
  }

  // x * 2^n for -252 <= n <= 254: in two steps where 2^n itself may be out of range.
  static VF_FN T scale(T x, T nearest_n, I n) {
#if VF_BYTES == 64
    (void)n;
    return (T)_mm512_scalef_ps((__m512)x, (__m512)nearest_n);
#else
    (void)nearest_n;
    const I half = n >> 1;
    const T low = from_bits((U)((half + 127) << 23)), high = from_bits((U)((n - half + 127) << 23));
    return x * low * high;
#endif
  }

  // e^x: x = n log 2 + r, e^r = 1 + p by a polynomial of degree 6 (minimax error 4e-9). Arguments
  // beyond the float range give 0 and infinity; the clamps are written so that NaN passes.
  static VF_FN T exp_parts(T x, T& nf, I& n) {
    nf = nearest(x * 0x1.715476p+0f, n);
    T r = x - nf * 0x1.62e4p-1f;   // log 2 in two parts, the first with trailing zeros,
    r = r - nf * 0x1.7f7d1cp-20f;  // so that nf times it is exact
    T p = r * 0x1.6a234ep-10f + 0x1.123a6cp-7f;
    p = p * r + 0x1.5558f4p-5f;
    p = p * r + 0x1.55549p-3f;
    p = p * r + 0x1.fffffcp-2f;
    return (p * r) * r + r;
  }
  static VF_FN T exp_clamped(T x) {
    T nf;
    I n;
    const T p = exp_parts(x, nf, n);
    return scale(p + 1.0f, nf, n);
  }
  static VF_FN T exp(T x) { return exp_clamped(at_most(at_least(x, -104.0f), 89.0f)); }
  static VF_FN T less_one(T exp_x, T) { return exp_x - 1.0f; }
  static VF_FN T exp_nonpositive(T x) { return exp_clamped(at_least(x, -104.0f)); }
  // e^x of x <= 0, and e^x - 1 with all of its digits.
  static VF_FN T exp_nonpositive(T x, T& less_one) {
    T nf;
    I n;
    const T p = exp_parts(at_least(x, -104.0f), nf, n);
    const T e = scale(p + 1.0f, nf, n);
    less_one = select(n == 0, p, e - 1.0f);
    return e;
  }

  // 2^x for x <= 126: x = n + r, 2^r by a polynomial of degree 6 (error 1.4e-8).
  static VF_FN T exp2(T x) {
    I n;
    x = at_least(x, -152.0f);
    const T nf = nearest(x, n), r = x - nf;
    T p = r * 0x1.446c7ep-13f + 0x1.5f88fep-10f;
    p = p * r + 0x1.3b29e4p-7f;
    p = p * r + 0x1.c6ae2cp-5f;
    p = p * r + 0x1.ebfbe0p-3f;
    p = p * r + 0x1.62e432p-1f;
    return scale(p * r + 1.0f, nf, n);
  }

  // log(1 + e) for e in [0, 1]: e + e^2 Q(e), relative error 4e-8.
  static VF_FN T log1p_unit(T e) {
    T q = e * -0x1.a931eep-9f + 0x1.453e3ap-6f;
    q = q * e + -0x1.d29c04p-5f;
    q = q * e + 0x1.b252fcp-4f;
    q = q * e + -0x1.397544p-3f;
    q = q * e + 0x1.92f68cp-3f;
    q = q * e + -0x1.ff0f86p-3f;
    q = q * e + 0x1.554c8p-2f;
    q = q * e + -0x1.ffffbep-2f;
    return (q * e) * e + e;
  }

  // log x of a positive, normal x: x = 2^n (1 + f) with 1 + f in [sqrt(1/2), sqrt(2)), and
  // log(1 + f) = f - f^2 / 2 + f^3 P(f), relative error 3e-8.
  static VF_FN T log_normal(T x) {
    const U u = bits(x) - 0x3f3504f3u;  // sqrt(1/2)
    const T n = __builtin_convertvector((I)u >> 23, T);
    const T f = from_bits((u & 0x007fffffu) + 0x3f3504f3u) - 1.0f;
    const T f2 = f * f;
    return log_sum(log_cubic(f, f2), f, f2, n);
  }
  // f^3 P(f), and the sum of all parts.
  static VF_FN T log_cubic(T f, T f2) {
    T p = f * 0x1.645de2p-4f + -0x1.2432aap-3f;
    p = p * f + 0x1.317470p-3f;
    p = p * f + -0x1.53824cp-3f;
    p = p * f + 0x1.98d7f0p-3f;
    p = p * f + -0x1.000382p-2f;
    p = p * f + 0x1.5556d8p-2f;
    return (p * f) * f2;
  }
  static VF_FN T log_sum(T cubic, T f, T f2, T n) {
    T y = cubic + n * -0x1.bd0106p-13f;  // log 2 in two parts again
    y = y - 0.5f * f2;
    return (y + f) + n * 0x1.63p-1f;
  }

  // log u, given u - 1 as well: near 1, u has lost digits that u - 1 still has.
  // NaN for u below the normal numbers. `near` and `cubic` are what log1p_excess takes.
  static VF_FN T log_near(T u, T less_one, I& near, T& cubic) {
    const U b = bits(u) - 0x3f3504f3u;
    const I exponent = (I)b >> 23;
    near = exponent == 0;
    const T f = select(near, less_one, from_bits((b & 0x007fffffu) + 0x3f3504f3u) - 1.0f);
    const T f2 = f * f;
    cubic = log_cubic(f, f2);
    const T y = log_sum(cubic, f, f2, __builtin_convertvector(exponent, T));
    const T up = select(u < std::numeric_limits<float>::infinity(), y, u);
    return select(u >= 0x1p-126f, up, std::numeric_limits<float>::quiet_NaN());
  }
  static VF_FN T log_near(T u, T less_one) {
    I near;
    T cubic;
    return log_near(u, less_one, near, cubic);
  }
  // log(1 + w) and its excess over w / (1 + w), of w >= 0, with reciprocal = 1 / (1 + w). Near 0 the
  // excess is w^2 / (1 + w) - w^2 / 2 + w^3 P(w).
  static VF_FN void log1p_excess(T w, T reciprocal, T& log1p, T& excess) {
    I near;
    T cubic;
    log1p = log_near(1.0f + w, w, near, cubic);
    excess = select(near, (w * w) * (reciprocal - 0.5f) + cubic, log1p - (1.0f - reciprocal));
  }

  // log x for any x: subnormals are scaled up; 0 gives -infinity, negative numbers NaN.
  static VF_FN T log(T x) {
    const I small = x < 0x1p-126f;
    const T y = log_normal(select(small, x * 0x1p23f, x)) - select(small, 0x1.fe2804p+3f, 0.0f);
    const float infinity = std::numeric_limits<float>::infinity();
    T result = select(x == infinity, x, y);
    result = select(x == 0.0f, -infinity, result);
    return select((x >= 0.0f), result, std::numeric_limits<float>::quiet_NaN());  // NaN too
  }

  // log(1 + x), x > -1: log of the rounded sum, corrected for its rounding (Kahan).
  static VF_FN T log1p(T x) {
    const T sum = 1.0f + x;
    const T lost = x - (sum - 1.0f);
    const T y = log(sum);
    return select(sum > 0.0f, y + lost / sum, y);
  }

  // Sine and cosine of |x| <= pi / 4.
  static VF_FN void sincos_quarter(T x, T& sine, T& cosine) {
    const T z = x * x;
    T s = z * -0x1.994b3ep-13f + 0x1.110756p-7f;
    s = s * z + -0x1.555546p-3f;
    sine = (s * z) * x + x;
    T c = z * 0x1.99e868p-16f + -0x1.6c0c28p-10f;
    c = c * z + 0x1.55554ap-5f;
    cosine = (c * z) * z + (1.0f - 0.5f * z);
  }

  // --- sums --------------------------------------------------------------------------------------
  static VF_FN void widen(T x, D& low, D& high) {
#if VF_BYTES == 64
    low = (D)_mm512_cvtps_pd(_mm512_castps512_ps256((__m512)x));
    high = (D)_mm512_cvtps_pd(_mm512_extractf32x8_ps((__m512)x, 1));
#elif VF_BYTES == 32
    low = (D)_mm256_cvtps_pd(_mm256_castps256_ps128((__m256)x));
    high = (D)_mm256_cvtps_pd(_mm256_extractf128_ps((__m256)x, 1));
#elif defined(VF_X86)
    low = (D)_mm_cvtps_pd((__m128)x);
    high = (D)_mm_cvtps_pd(_mm_movehl_ps((__m128)x, (__m128)x));
#else
    HalfT parts[2];
    std::memcpy(parts, &x, sizeof x);
    low = __builtin_convertvector(parts[0], D);
    high = __builtin_convertvector(parts[1], D);
#endif
  }

  // Adds vectors of floats to a wider sum without losing digits.
  struct Sum {
    D low = {}, high = {};
    VF_FN void add(T x) {
      D l, h;
      widen(x, l, h);
      low += l;
      high += h;
    }
    VF_FN double total() const {
      const D sum = low + high;
      double t = 0.0;
      for (int i = 0; i < width / 2; ++i) t += sum[i];
      return t;
    }
  };

  // The sum of log(1 + e) over many e in [0, 1], as the logarithm of a product: one multiplication
  // in double for each element in place of a polynomial of degree 9. What it loses is double's
  // rounding of 1 + e: an error of 1e-16 nats an element, whatever the loss. `add` takes
  // e, or several of them as (1 + e)(1 + e') ... - 1. A lane's product doubles at most with each
  // element, so it holds 1000 of them; `fold` empties it.
  struct LogSum {
    D low = D{} + 1.0, high = D{} + 1.0;
    double sum = 0.0;
    static constexpr int64_t capacity = 1000 * width;  // elements between folds

    VF_FN void add(T e) {
      D l, h;
      widen(e, l, h);
      low *= 1.0 + l;
      high *= 1.0 + h;
    }
    VF_FN void fold() {
      // Exponents add up as integers, so the mantissas' product stays in range and one logarithm
      // serves all lanes.
      int64_t exponent = 0;
      double mantissa = 1.0, nan = 0.0;
      for (const D& product : {low, high}) {
        for (int i = 0; i < width / 2; ++i) {
          uint64_t u;
          const double lane = product[i];
          std::memcpy(&u, &lane, sizeof u);
          exponent += int64_t(u >> 52) - 1023;
          u = (u & 0x000fffffffffffffull) | 0x3ff0000000000000ull;
          double m;
          std::memcpy(&m, &u, sizeof m);
          mantissa *= m;
          nan += lane * 0.0;
        }
      }
      sum += std::log(mantissa) + double(exponent) * 0.693147180559945309417 + nan;
      low = high = D{} + 1.0;
    }
    VF_FN double total() {
      fold();
      return sum;
    }
  };

  // --- interleaving ------------------------------------------------------------------------------
  // Lane i of a, lane i of b, lane i + 1 of a, ...: the first or second half of that sequence.
  template <bool HIGH>
  static VF_FN T zip(T a, T b) {
#if defined(__clang__) || __GNUC__ >= 12
    return zip_indices<HIGH>(a, b, std::make_index_sequence<width>{});
#else
    T out;
    for (int i = 0; i < width; ++i) {
      const int lane = (HIGH ? width / 2 : 0) + i / 2;
      out[i] = i % 2 == 0 ? a[lane] : b[lane];
    }
    return out;
#endif
  }
#if defined(__clang__) || __GNUC__ >= 12
  template <bool HIGH, size_t... I_>
  static VF_FN T zip_indices(T a, T b, std::index_sequence<I_...>) {
    return __builtin_shufflevector(
        a, b, ((HIGH ? width / 2 : 0) + int(I_) / 2 + (I_ % 2 == 0 ? 0 : width))...);
  }
#endif
};

}  // namespace vae_fast::VF_LEVEL
