// The pairwise ops: their schemas, and from torch tensors to the arguments of pairwise/args.h.
#pragma once

#include "torch/tensors.h"
#include "pairwise/args.h"

namespace vae_fast {

inline void define_pairwise(torch::stable::detail::StableLibrary& m) {
  // log sum_j w_ij N(z_i | mu_j, exp(logvar_j)) + offset over all dimensions (B,), and with
  // want_parts in each (B, D). w_ij: exp(logits_j), times `own` for j = i, `next` for the row after.
  m.def(
      "pair_density(Tensor z, Tensor mu, Tensor logvar, Tensor? logits, float own, float next, "
      "float offset, bool want_parts) -> (Tensor whole, Tensor parts, Tensor state)");
  m.def(
      "pair_density_backward(Tensor? grad_whole, Tensor? grad_parts, Tensor z, Tensor mu, "
      "Tensor logvar, Tensor? logits, Tensor state, float own, float next, "
      "float offset) -> (Tensor grad_z, Tensor grad_mu, Tensor grad_logvar, Tensor grad_logits)");
  // kernel is an index into vae_fast.functional.pairwise.KERNELS.
  m.def("mmd(Tensor x, Tensor y, Tensor bandwidths, int kernel, bool unbiased) -> Tensor");
  m.def(
      "mmd_backward(Tensor grad, Tensor x, Tensor y, Tensor bandwidths, int kernel, "
      "bool unbiased) -> (Tensor grad_x, Tensor grad_y)");
  m.def("nearest_code(Tensor x, Tensor codes) -> Tensor");
}

template <class Device>
struct PairwiseOps {
  static Tensor matrix(int64_t rows, int64_t cols, ScalarType dtype, const Tensor& like) {
    const int64_t sizes[2] = {rows, cols}, strides[2] = {cols > 1 ? cols : 1, 1};
    return empty(2, sizes, strides, dtype, like);
  }
  static Tensor vector(int64_t count, ScalarType dtype, const Tensor& like) {
    const int64_t one = 1;
    return empty(1, &count, &one, dtype, like);
  }

  // A matrix of `like`'s dtype and dimensions, with at least `least` rows.
  static void check_matrix(const Tensor& t, const Tensor& like, const char* name, int64_t least) {
    STD_TORCH_CHECK(t.dim() == 2 && t.is_contiguous() && t.size(0) >= least &&
                        t.size(1) == like.size(1) && t.scalar_type() == like.scalar_type() &&
                        is_floating(dtype_of(t)) && on_device_of(t, like) &&
                        t.get_device_index() == like.get_device_index(),
                    "vae_fast: ", name,
                    " must be a contiguous floating matrix, of one dtype, "
                    "device and number of columns with the other, with at least ",
                    least, " rows");
  }
  // Sums and their upstream gradients.
  static void check_sums(const Tensor& t, const Tensor& z, int64_t count, const char* name) {
    STD_TORCH_CHECK(t.scalar_type() == accumulator(z) && t.is_contiguous() && t.numel() == count &&
                        on_device_of(t, z),
                    "vae_fast: ", name, " must be contiguous, in the sums' dtype, with ", count,
                    " elements");
  }

  static PairDensity density_args(const Tensor& z, const Tensor& mu, const Tensor& logvar,
                                  const MaybeTensor& logits, double own, double next,
                                  double offset) {
    STD_TORCH_CHECK(z.dim() == 2, "vae_fast: z must be (B, D)");
    check_matrix(z, z, "z", 0);
    check_matrix(mu, z, "mu", 1);
    check_matrix(logvar, z, "logvar", 1);
    STD_TORCH_CHECK(logvar.size(0) == mu.size(0), "vae_fast: logvar differs from mu in rows");
    STD_TORCH_CHECK(!logits || (logits->scalar_type() == z.scalar_type() && logits->dim() == 1 &&
                                logits->is_contiguous() && logits->numel() == mu.size(0) &&
                                on_device_of(*logits, z)),
                    "vae_fast: logits must be contiguous, (K,), in z's dtype");
    PairDensity args{};
    args.dtype = dtype_of(z);
    args.rows = z.size(0);
    args.terms = mu.size(0);
    args.dims = z.size(1);
    args.z = z.const_data_ptr();
    args.mu = mu.const_data_ptr();
    args.logvar = logvar.const_data_ptr();
    args.logits = data(logits);
    args.own = own;
    args.next = next;
    args.offset = offset;
    return args;
  }

  static std::tuple<Tensor, Tensor, Tensor> pair_density(const Tensor& z, const Tensor& mu,
                                                         const Tensor& logvar,
                                                         const MaybeTensor& logits, double own,
                                                         double next, double offset,
                                                         bool want_parts) {
    PairDensity args = density_args(z, mu, logvar, logits, own, next, offset);
    Tensor whole = vector(args.rows, accumulator(z), z);
    Tensor parts = matrix(want_parts ? args.rows : 0, args.dims, accumulator(z), z);
    Tensor state = matrix(args.rows, state_size(args.dims, want_parts), ScalarType::Double, z);
    args.whole = whole.mutable_data_ptr();
    args.state = static_cast<double*>(state.mutable_data_ptr());
    args.parts = want_parts ? parts.mutable_data_ptr() : nullptr;
    Device::density(args);
    return {whole, parts, state};
  }

  static std::tuple<Tensor, Tensor, Tensor, Tensor> pair_density_backward(
      MaybeTensor grad_whole, MaybeTensor grad_parts, const Tensor& z, const Tensor& mu,
      const Tensor& logvar, const MaybeTensor& logits, const Tensor& state, double own, double next,
      double offset) {
    PairDensityBackward args{};
    args.of = density_args(z, mu, logvar, logits, own, next, offset);
    STD_TORCH_CHECK(state.scalar_type() == ScalarType::Double && state.is_contiguous() &&
                        state.dim() == 2 && state.size(0) == args.of.rows &&
                        (state.size(1) == state_size(args.of.dims, true) ||
                         (!grad_parts && state.size(1) == state_size(args.of.dims, false))) &&
                        on_device_of(state, z),
                    "vae_fast: state is not what pair_density returned");
    args.state_row = state.size(1);
    if (grad_whole) check_sums(*grad_whole, z, args.of.rows, "grad_whole");
    if (grad_parts) check_sums(*grad_parts, z, args.of.rows * args.of.dims, "grad_parts");
    Tensor grad_z = matrix(args.of.rows, args.of.dims, z.scalar_type(), z);
    Tensor grad_mu = matrix(args.of.terms, args.of.dims, z.scalar_type(), z);
    Tensor grad_logvar = matrix(args.of.terms, args.of.dims, z.scalar_type(), z);
    Tensor grad_logits = vector(logits ? args.of.terms : 0, z.scalar_type(), z);
    args.of.state = static_cast<double*>(state.mutable_data_ptr());
    args.grad_whole = data(grad_whole);
    args.grad_parts = data(grad_parts);
    args.grad_z = grad_z.mutable_data_ptr();
    args.grad_mu = grad_mu.mutable_data_ptr();
    args.grad_logvar = grad_logvar.mutable_data_ptr();
    args.grad_logits = logits ? grad_logits.mutable_data_ptr() : nullptr;
    Device::density_backward(args);
    return {grad_z, grad_mu, grad_logvar, grad_logits};
  }

  static Mmd mmd_args(const Tensor& x, const Tensor& y, const Tensor& bandwidths, int64_t kernel,
                      bool unbiased) {
    STD_TORCH_CHECK(x.dim() == 2, "vae_fast: x must be (N, D)");
    check_matrix(x, x, "x", unbiased ? 2 : 1);
    check_matrix(y, x, "y", unbiased ? 2 : 1);
    STD_TORCH_CHECK(kernel == 0 || kernel == 1, "vae_fast: unknown kernel ", kernel);
    STD_TORCH_CHECK(bandwidths.scalar_type() == ScalarType::Double && bandwidths.is_contiguous() &&
                        bandwidths.is_cpu() && bandwidths.numel() >= 1,
                    "vae_fast: bandwidths must be contiguous float64 on the CPU");
    Mmd args{};
    args.dtype = dtype_of(x);
    args.kernel = static_cast<PairKernel>(kernel);
    args.unbiased = unbiased;
    args.rows = x.size(0);
    args.others = y.size(0);
    args.dims = x.size(1);
    args.count = bandwidths.numel();
    args.x = x.const_data_ptr();
    args.y = y.const_data_ptr();
    args.bandwidths = static_cast<const double*>(bandwidths.const_data_ptr());
    return args;
  }

  static Tensor mmd(const Tensor& x, const Tensor& y, const Tensor& bandwidths, int64_t kernel,
                    bool unbiased) {
    Mmd args = mmd_args(x, y, bandwidths, kernel, unbiased);
    Tensor value = empty(0, nullptr, nullptr, accumulator(x), x);
    args.value = value.mutable_data_ptr();
    Device::mmd(args);
    return value;
  }

  static std::tuple<Tensor, Tensor> mmd_backward(const Tensor& grad, const Tensor& x,
                                                 const Tensor& y, const Tensor& bandwidths,
                                                 int64_t kernel, bool unbiased) {
    Mmd args = mmd_args(x, y, bandwidths, kernel, unbiased);
    check_sums(grad, x, 1, "grad");
    Tensor grad_x = matrix(args.rows, args.dims, x.scalar_type(), x);
    Tensor grad_y = matrix(args.others, args.dims, x.scalar_type(), x);
    args.upstream = grad.const_data_ptr();
    args.grad_x = grad_x.mutable_data_ptr();
    args.grad_y = grad_y.mutable_data_ptr();
    Device::mmd(args);
    return {grad_x, grad_y};
  }

  static Tensor nearest_code(const Tensor& x, const Tensor& codes) {
    STD_TORCH_CHECK(x.dim() == 2, "vae_fast: x must be (N, D)");
    check_matrix(x, x, "x", 0);
    check_matrix(codes, x, "codes", 1);
    Tensor index = vector(x.size(0), ScalarType::Long, x);
    NearestCode args{dtype_of(x),
                     x.size(0),
                     codes.size(0),
                     x.size(1),
                     x.const_data_ptr(),
                     codes.const_data_ptr(),
                     static_cast<int64_t*>(index.mutable_data_ptr())};
    Device::nearest_code(args);
    return index;
  }

  static void register_all(torch::stable::detail::StableLibrary& m) {
    m.impl("pair_density", TORCH_BOX(&pair_density));
    m.impl("pair_density_backward", TORCH_BOX(&pair_density_backward));
    m.impl("mmd", TORCH_BOX(&mmd));
    m.impl("mmd_backward", TORCH_BOX(&mmd_backward));
    m.impl("nearest_code", TORCH_BOX(&nearest_code));
  }
};

}  // namespace vae_fast
