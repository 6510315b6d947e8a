// Blocks of operands as arrays that a kernel reads: in place if they are dense and in the kernel's
// own type, else copied into a buffer. Gradients are copied back in the same way.
#pragma once

#include "cpu/driver.h"

namespace vae_fast::cpu {

// A byte target's value: x / 255, correctly rounded for all 256 of them without a division (1/255
// in two parts, the first short enough for its product to be exact).
struct ByteScale {
  template <class T>
  VF_FN T operator()(T x) const {
    return x * 0x1.0100p-8f + x * 0x1.01010p-24f;
  }
  VF_FN double operator()(double x) const { return x / 255.0; }
};

// A number of half precision.
VF_FN double number_of(bf16 x) {
  const uint32_t bits = uint32_t(x.bits) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
VF_FN double number_of(f16 x) {
  // Exponent and mantissa shifted into place, then scaled: exact for subnormals too.
  const uint32_t magnitude = (x.bits & 0x7fffu) << 13, sign = (x.bits & 0x8000u) << 16;
  const bool special = magnitude >= 0x0f800000u;  // infinity or NaN
  const uint32_t bits = magnitude | (special ? 0x7f800000u : 0u) | sign;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return special ? value : value * 0x1p112f;
}

// n elements of one storage type as the policy's own.
template <class M, class S>
void widen(const S* from, typename M::Element* to, int64_t n) {
  int64_t i = 0;
  if constexpr (M::width == 1) {
    for (; i < n; ++i) to[i] = number_of(from[i]);
  } else {
    for (; i + M::width <= n; i += M::width) M::store(M::load(from + i), to + i);
    if (i < n) store_tail<M>(load_tail<M>(from + i, n - i), to + i, n - i);
  }
}

template <class M, class S>
void convert(const S* from, typename M::Element* to, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] = typename M::Element(from[i]);
}

// Elements [first, first + n) of `data`, whose dtype is known at run time, as the policy's own.
// `scaled`: bytes stand for x / 255.
template <class M>
void read(DType dtype, const void* data, int64_t first, int64_t n, bool scaled,
          typename M::Element* to) {
  using E = typename M::Element;
  const char* from = static_cast<const char*>(data) + first * size_of(dtype);
  switch (dtype) {
    case DType::f32: return convert<M>(reinterpret_cast<const float*>(from), to, n);
    case DType::f64: return convert<M>(reinterpret_cast<const double*>(from), to, n);
    case DType::bf16: return widen<M>(reinterpret_cast<const bf16*>(from), to, n);
    case DType::f16: return widen<M>(reinterpret_cast<const f16*>(from), to, n);
    case DType::u8: {
      const uint8_t* bytes = reinterpret_cast<const uint8_t*>(from);
      const ByteScale byte_scale;
      if (!scaled) return convert<M>(bytes, to, n);
      for (int64_t i = 0; i < n; ++i) to[i] = byte_scale(E(bytes[i]));
      return;
    }
    case DType::boolean:  // any byte but 0 is true
      for (int64_t i = 0; i < n; ++i) to[i] = from[i] != 0 ? E(1) : E(0);
      return;
    case DType::i8: return convert<M>(reinterpret_cast<const int8_t*>(from), to, n);
    case DType::i16: return convert<M>(reinterpret_cast<const int16_t*>(from), to, n);
    case DType::i32: return convert<M>(reinterpret_cast<const int32_t*>(from), to, n);
    case DType::i64: return convert<M>(reinterpret_cast<const int64_t*>(from), to, n);
  }
}

// n of the policy's own elements to `data`, from element `first` on.
template <class M>
void write(DType dtype, void* data, int64_t first, int64_t n, const typename M::Element* from) {
  char* to = static_cast<char*>(data) + first * size_of(dtype);
  const auto narrow = [&](auto* out) {
    int64_t i = 0;
    for (; i + M::width <= n; i += M::width) M::store(M::load(from + i), out + i);
    if (i < n) store_tail<M>(load_tail<M>(from + i, n - i), out + i, n - i);
  };
  if constexpr (M::width == 1) {
    narrow(reinterpret_cast<double*>(to));
  } else {
    if (dtype == DType::bf16) return narrow(reinterpret_cast<bf16*>(to));
    if (dtype == DType::f16) return narrow(reinterpret_cast<f16*>(to));
    narrow(reinterpret_cast<float*>(to));
  }
}

// The shape of a problem and an operand's place in it: calls body(offset, first, count, step) for
// each run of elements [begin, end), with data[offset], data[offset + step], ... being elements
// first, first + 1, ... of the range.
struct Extent {
  int64_t planes, inner;

  VF_FN int64_t cols() const { return planes * inner; }

  // Whether the operand's elements follow one another from the first to the last.
  VF_FN bool is_flat(const Operand& o, int64_t rows) const {
    return (o.step == 1 || inner == 1) && (planes == 1 || o.plane == inner) &&
           (rows == 1 || o.row == cols());
  }

  template <class Body>
  VF_FN void runs(const Operand& o, int64_t begin, int64_t end, Body&& body) const {
    int64_t row = begin / cols(), rest = begin % cols();
    int64_t plane = rest / inner, i = rest % inner;
    for (int64_t done = begin; done < end;) {
      const int64_t count = end - done < inner - i ? end - done : inner - i;
      body(row * o.row + plane * o.plane + i * o.step, done - begin, count, o.step);
      done += count;
      i = 0;
      if (++plane == planes) {
        plane = 0;
        ++row;
      }
    }
  }

  // Whether [begin, end) is one run, and its first element's place.
  VF_FN bool is_one_run(const Operand& o, int64_t begin, int64_t end, int64_t& offset) const {
    const int64_t rest = begin % cols();
    const int64_t i = rest % inner;
    offset = begin / cols() * o.row + rest / inner * o.plane + i * o.step;
    return i + (end - begin) <= inner && (o.step == 1 || end - begin == 1);
  }
};

}  // namespace vae_fast::cpu
