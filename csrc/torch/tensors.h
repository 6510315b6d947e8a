// What the bindings share: torch tensors to the plain arguments of ops/args.h, for either device.
//
// A family's ops are a template over `Device`, which runs the drivers: Cpu in library.cpp, Cuda in
// library_cuda.cpp. The Python side has checked shapes and dtypes, with errors for people. The checks
// here keep a kernel from reading out of bounds, for any caller. Only LibTorch's
// stable ABI is used.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/shim_utils.h>

#include <optional>
#include <tuple>
#include <type_traits>
#include <vector>

#include "ops/args.h"

namespace vae_fast {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using MaybeTensor = std::optional<Tensor>;

inline DType dtype_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Float: return DType::f32;
    case ScalarType::Double: return DType::f64;
    case ScalarType::BFloat16: return DType::bf16;
    case ScalarType::Half: return DType::f16;
    case ScalarType::Byte: return DType::u8;
    case ScalarType::Bool: return DType::boolean;
    case ScalarType::Char: return DType::i8;
    case ScalarType::Short: return DType::i16;
    case ScalarType::Int: return DType::i32;
    case ScalarType::Long: return DType::i64;
    default: STD_TORCH_CHECK(false, "vae_fast: no kernel for this dtype");
  }
  return DType::f32;
}

inline bool is_floating(DType dtype) { return dtype <= DType::f16; }

inline int32_t device_type_of(const Tensor& t) {
  int32_t type;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(t.get(), &type));
  return type;
}

// The type alone is not enough: cuda:1 is not cuda:0, and a meta tensor has no memory.
inline bool on_device_of(const Tensor& t, const Tensor& like) {
  return device_type_of(t) == device_type_of(like) &&
         t.get_device_index() == like.get_device_index();
}

inline int64_t rows_of(const Tensor& t) { return t.dim() >= 2 ? t.size(0) : 1; }
inline int64_t cols_of(const Tensor& t) {
  const int64_t rows = rows_of(t);
  if (rows != 0) return t.numel() / rows;
  int64_t cols = 1;
  for (int64_t d = 1; d < t.dim(); ++d) cols *= t.size(d);
  return cols;
}

// --- checks --------------------------------------------------------------------------------------

// Dense: contiguous, or any other layout without holes that two tensors share (channels-last).
inline void check_like(const Tensor& t, const Tensor& other, const char* name) {
  bool same = t.dim() == other.dim() && t.numel() == other.numel() && on_device_of(t, other);
  for (int64_t d = 0; same && d < t.dim(); ++d) {
    same = t.size(d) == other.size(d) &&
           (t.stride(d) == other.stride(d) || t.size(d) <= 1 || t.numel() == 0);
  }
  STD_TORCH_CHECK(same, "vae_fast: ", name, " differs in shape, memory layout or device");
}

inline void check_dense(const Tensor& t, const char* name) {
  if (t.is_contiguous()) return;
  // Samples are outermost and the rest has no holes: the product of the inner sizes is the stride.
  int64_t extent = 1;
  for (int64_t d = 0; d < t.dim(); ++d) extent += (t.size(d) - 1) * t.stride(d);
  const bool outermost = t.dim() >= 2 && (t.size(0) == 1 || t.stride(0) == t.numel() / t.size(0));
  STD_TORCH_CHECK(extent == t.numel() && outermost, "vae_fast: ", name,
                  " must be dense in memory, with the samples outermost");
}

inline void check_pair(const Tensor& mu, const Tensor& logvar) {
  check_dense(mu, "mu");
  check_like(logvar, mu, "logvar");
  STD_TORCH_CHECK(dtype_of(mu) == dtype_of(logvar) && is_floating(dtype_of(mu)),
                  "vae_fast: mu and logvar must have one floating dtype");
}

inline void check_key(const Tensor& key, const Tensor& like) {
  STD_TORCH_CHECK(key.scalar_type() == ScalarType::Long && key.numel() == 2 &&
                      key.is_contiguous() && on_device_of(key, like),
                  "vae_fast: the noise key must be 2 contiguous int64 on the inputs' device");
}

inline Reduction reduction_of(int64_t code) {
  STD_TORCH_CHECK(code >= 0 && code <= 2, "vae_fast: unknown reduction code ", code);
  return static_cast<Reduction>(code);
}

// --- outputs -------------------------------------------------------------------------------------

inline ScalarType accumulator(const Tensor& t) {
  return t.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// Through the C shim, which is several times quicker than a boxed call of aten::empty.
inline Tensor empty(int64_t dim, const int64_t* sizes, const int64_t* strides, ScalarType dtype,
                    const Tensor& like) {
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      dim, sizes, strides, torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype)),
      device_type_of(like), like.get_device_index(), &handle));
  return Tensor(handle);
}

// A loss: one value, or one per sample.
inline Tensor empty_sum(const Tensor& t, Reduction reduction) {
  const int64_t rows = rows_of(t), one = 1;
  const bool per_row = reduction == Reduction::none && t.dim() >= 2;
  return empty(per_row ? 1 : 0, &rows, &one, accumulator(t), t);
}

inline const void* data(const MaybeTensor& t) { return t ? t->const_data_ptr() : nullptr; }

inline const int64_t* key_data(const Tensor& key) {
  return static_cast<const int64_t*>(key.const_data_ptr());
}

// --- upstream gradients --------------------------------------------------------------------------

inline void check_upstream(const MaybeTensor& grad, const Tensor& of, Reduction reduction) {
  if (!grad) return;
  const int64_t expected = reduction == Reduction::none ? rows_of(of) : 1;
  STD_TORCH_CHECK(grad->scalar_type() == accumulator(of) && grad->is_contiguous() &&
                      grad->numel() == expected && on_device_of(*grad, of),
                  "vae_fast: a loss's gradient must be contiguous, in the loss's dtype, with ",
                  expected, " elements");
}

// The loss has this value `weight` times. `loss` is the loss's gradient, `part` the value's own.
inline Upstream upstream(const MaybeTensor& loss, const MaybeTensor& part, const Tensor& of,
                         Reduction reduction, double weight = 1.0,
                         const MaybeTensor& weight_tensor = std::nullopt) {
  check_upstream(loss, of, reduction);
  check_upstream(part, of, reduction);
  Upstream up;
  up.loss = data(loss);
  up.part = data(part);
  up.weight = weight;
  up.weight_tensor = static_cast<const float*>(data(weight_tensor));
  up.scale = reduction == Reduction::batchmean ? 1.0 / double(rows_of(of)) : 1.0;
  up.per_row = reduction == Reduction::none;
  return up;
}

inline void check_beta(const MaybeTensor& beta, const Tensor& like) {
  STD_TORCH_CHECK(!beta || (beta->scalar_type() == ScalarType::Float && beta->numel() == 1 &&
                            on_device_of(*beta, like)),
                  "vae_fast: a beta tensor must be one float32 on the inputs' device");
}

// --- large outputs, from the device's own allocator ----------------------------------------------

template <class Device>
Tensor empty_alike(const Tensor& t) {
  return Device::empty(t.dim(), t.sizes().data(), t.strides().data(), t.scalar_type(), t);
}

}  // namespace vae_fast
