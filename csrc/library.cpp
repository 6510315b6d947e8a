// The schema of every op, in one place, and the CPU's implementations.
//
// vae_fast/ops/ wraps these with autograd; reduction is an index into vae_fast.types.REDUCTIONS.
#include "bindings.h"
#include "cpu/drivers.h"
#include "cpu/pool.h"
#include "cpu/threads.h"
#include "torch/pairwise.h"

STABLE_TORCH_LIBRARY(vae_fast, m) {
  // Gaussian: z = mu + exp(logvar / 2) * eps(key), and KL to N(0, 1) or to the prior given.
  m.def("reparameterize(Tensor mu, Tensor logvar, Tensor key, int? num_samples) -> Tensor");
  m.def(
      "reparameterize_backward(Tensor grad_z, Tensor logvar, Tensor key, int? num_samples) -> "
      "(Tensor grad_mu, Tensor grad_logvar)");
  m.def(
      "gaussian_kl(Tensor mu, Tensor logvar, Tensor? prior_mu, Tensor? prior_logvar, "
      "int reduction) -> Tensor");
  m.def(
      "sample_and_kl(Tensor mu, Tensor logvar, Tensor? prior_mu, Tensor? prior_logvar, "
      "Tensor key, int reduction) -> (Tensor z, Tensor kl)");
  // The same, and slope = dz/dlogvar for backward, where that is less than making eps again: on the
  // CPU, and while it stays in the caches.
  m.def(
      "reparameterize_keeping(Tensor mu, Tensor logvar, Tensor key) -> (Tensor z, Tensor slope)");
  m.def(
      "sample_and_kl_keeping(Tensor mu, Tensor logvar, Tensor? prior_mu, Tensor? prior_logvar, "
      "Tensor key, int reduction) -> (Tensor z, Tensor kl, Tensor slope)");
  m.def(
      "gaussian_backward(Tensor? grad_z, Tensor? grad_kl, Tensor mu, Tensor logvar, Tensor? key, "
      "Tensor? slope, int reduction) -> (Tensor grad_mu, Tensor grad_logvar)");
  m.def(
      "gaussian_prior_backward(Tensor? grad_z, Tensor? grad_kl, Tensor mu, Tensor logvar, "
      "Tensor prior_mu, Tensor prior_logvar, Tensor? key, Tensor? slope, int reduction) -> "
      "(Tensor grad_mu, Tensor grad_logvar, Tensor grad_prior_mu, Tensor grad_prior_logvar)");

  // Bernoulli: -log p(target | logits).
  m.def(
      "bernoulli_nll(Tensor logits, Tensor target, int reduction, bool from_logits) -> Tensor");
  m.def(
      "bernoulli_nll_backward(Tensor grad_nll, Tensor logits, Tensor target, int reduction, "
      "bool from_logits) -> Tensor");
  m.def(
      "bernoulli_nll_with_grad(Tensor logits, Tensor target, int reduction, bool from_logits, "
      "float grad_scale) -> (Tensor nll, Tensor grad_logits)");
  m.def(
      "bernoulli_nll_with_grad_out(Tensor logits, Tensor target, int reduction, bool from_logits, "
      "float grad_scale, Tensor(a!) grad_logits) -> Tensor");
  // Of K sample sets against one target: logits (K, B, ...), target (B, ...), nll (K, B).
  m.def("bernoulli_nll_samples(Tensor logits, Tensor target) -> Tensor");
  m.def(
      "bernoulli_nll_samples_backward(Tensor grad_nll, Tensor logits, Tensor target) -> Tensor");

  // Bernoulli + beta * KL; beta is multiplied by beta_tensor where that is given.
  m.def(
      "bce_kl(Tensor logits, Tensor target, Tensor mu, Tensor logvar, float beta, "
      "Tensor? beta_tensor, int reduction, bool from_logits) -> "
      "(Tensor loss, Tensor recon, Tensor kl)");
  m.def(
      "bce_kl_backward(Tensor? grad_loss, Tensor? grad_recon, Tensor? grad_kl, Tensor logits, "
      "Tensor target, Tensor mu, Tensor logvar, float beta, Tensor? beta_tensor, int reduction, "
      "bool from_logits) -> (Tensor grad_logits, Tensor grad_mu, Tensor grad_logvar)");
  m.def(
      "bce_kl_with_grad(Tensor logits, Tensor target, Tensor mu, Tensor logvar, float beta, "
      "Tensor? beta_tensor, int reduction, bool from_logits, float grad_scale) -> "
      "(Tensor loss, Tensor recon, Tensor kl, Tensor grad_logits, Tensor grad_mu, "
      "Tensor grad_logvar)");

  // Rows of a data set of bytes; mode is an index into vae_fast.types.GATHER_MODES.
  m.def(
      "gather_batch(Tensor data, Tensor index, int mode, Tensor? key, int first_row, "
      "Tensor? first_row_tensor) -> Tensor");
  // The Euclidean norm of a vector, 0-d, float32; CPU only.
  m.def("euclidean_norm(Tensor x) -> Tensor");
  vae_fast::define_pairwise(m);
}

namespace vae_fast {
namespace {

// Our own pool (cpu/threads.h), of at most as many threads as torch's.
const cpu::Threads kThreads{[](int64_t begin, int64_t end, int64_t grain, cpu::Threads::Body body,
                               void* context) {
  cpu::run_pieces(begin, end, grain, body, context, int(torch::stable::get_num_threads()));
}};

struct Cpu {
  static constexpr bool kKeepsSlope = true;

  static Tensor empty(int64_t dim, const int64_t* sizes, const int64_t* strides, ScalarType dtype,
                      const Tensor& like) {
    // Outputs have their input's dtype, but for bytes that become floats.
    size_t bytes = dtype == ScalarType::Float ? sizeof(float) : like.element_size();
    for (int64_t d = 0; d < dim; ++d) bytes *= static_cast<size_t>(sizes[d]);
    if (bytes < cpu::kPooledBytes) return vae_fast::empty(dim, sizes, strides, dtype, like);
    const size_t rank = static_cast<size_t>(dim);
    return torch::stable::from_blob(
        cpu::take_buffer(bytes), {sizes, rank}, {strides, rank}, like.device(), dtype,
        [bytes](void* data) { cpu::return_buffer(data, bytes); });
  }
  static void gaussian_forward(const GaussianForward& args, const Tensor&) {
    cpu::level().gaussian_forward(args, kThreads);
  }
  static void gaussian_backward(const GaussianBackward& args, const Tensor&) {
    cpu::level().gaussian_backward(args, kThreads);
  }
  static void bernoulli(const Bernoulli& args, const Tensor&) {
    cpu::level().bernoulli(args, kThreads);
  }
  static void bce_kl(const BceKl& args, const Tensor&) { cpu::level().bce_kl(args, kThreads); }
  static void gather(const Gather& args, const Tensor&) {
    // Before anything is read. (On a GPU this would make the host wait; the kernel looks itself.)
    for (int64_t row = 0; row < args.rows; ++row) {
      STD_TORCH_CHECK(args.index[row] >= 0 && args.index[row] < args.samples,
                      "vae_fast: index ", args.index[row], " is outside the data's ", args.samples,
                      " samples");
    }
    cpu::level().gather(args, kThreads);
  }
  static const cpu::Pairwise& pairwise(DType dtype) {
    return dtype == DType::f64 ? cpu::kPairwiseF64 : cpu::level().pairwise;
  }
  static void density(const PairDensity& args) { pairwise(args.dtype).density(args, kThreads); }
  static void density_backward(const PairDensityBackward& args) {
    pairwise(args.of.dtype).density_backward(args, kThreads);
  }
  static void mmd(const Mmd& args) { pairwise(args.dtype).mmd(args, kThreads); }
  static void nearest_code(const NearestCode& args) {
    pairwise(args.dtype).nearest_code(args, kThreads);
  }
  static void norm(const Norm& args) { cpu::level().norm(args, kThreads); }
};

}  // namespace
}  // namespace vae_fast

const vae_fast::cpu::Threads& vae_fast::cpu::torch_threads() { return kThreads; }

STABLE_TORCH_LIBRARY_IMPL(vae_fast, CPU, m) {
  using Ops = vae_fast::Ops<vae_fast::Cpu>;
  Ops::register_all(m);
  m.impl("reparameterize_keeping", TORCH_BOX(&Ops::reparameterize_keeping));
  m.impl("sample_and_kl_keeping", TORCH_BOX(&Ops::sample_and_kl_keeping));
  m.impl("euclidean_norm", TORCH_BOX(&Ops::euclidean_norm));
  vae_fast::PairwiseOps<vae_fast::Cpu>::register_all(m);
}
