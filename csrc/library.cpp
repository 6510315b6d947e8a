// The schema of every op, in one place, and the CPU's implementations.
//
// vae_fast/ops/ wraps these with autograd; reduction is an index into vae_fast.types.REDUCTIONS.
#include "cpu/drivers.h"
#include "cpu/pool.h"
#include "cpu/threads.h"
#include "norm/drivers.h"
#include "torch/gather.h"
#include "torch/gaussian.h"
#include "torch/group_norm.h"
#include "torch/likelihood.h"
#include "torch/norm.h"
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
  m.def("reparameterize_keeping(Tensor mu, Tensor logvar, Tensor key) -> (Tensor z, Tensor slope)");
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

  // Every likelihood: -log p(target | parameters), and that + beta * KL.
  vae_fast::define_likelihoods(m);

  // Rows of a data set of bytes; mode is an index into vae_fast.types.GATHER_MODES.
  m.def(
      "gather_batch(Tensor data, Tensor index, int mode, Tensor? key, int first_row, "
      "Tensor? first_row_tensor) -> Tensor");
  // silu(GroupNorm(x)), or GroupNorm(x), of (N, C, ...) that is contiguous or channels-last; weight
  // and bias, (C), are float32 (float64 if x is float64), as mean and rstd are, (N, groups).
  m.def(
      "group_norm(Tensor x, Tensor? weight, Tensor? bias, int groups, float eps, bool silu) "
      "-> (Tensor y, Tensor mean, Tensor rstd)");
  m.def(
      "group_norm_backward(Tensor grad_y, Tensor x, Tensor? weight, Tensor? bias, Tensor mean, "
      "Tensor rstd, bool silu) -> (Tensor grad_x, Tensor grad_weight, Tensor grad_bias)");
  // A training step's own, between and behind its products (ops/step.h); the CPU's are plain PyTorch
  // (vae_fast/ops/step.py).
  m.def("step_sample(Tensor heads, Tensor key) -> Tensor");
  m.def(
      "step_sample_backward(Tensor grad_z, Tensor heads, Tensor key, Tensor beta, float scale) -> "
      "Tensor");
  m.def(
      "step_decide(Tensor(a!) gradients, int[] ranges, Tensor[] columns, int[] places, Tensor recon, "
      "Tensor? heads, Tensor beta, Tensor(b!) steps, Tensor(c!) usual, Tensor(d!) sums, int rows, "
      "float[] guard, float beta1, float beta2) -> Tensor");
  m.def(
      "step_update(Tensor(a!) weights, Tensor gradients, Tensor(b!) first, Tensor(c!) second, "
      "Tensor(d!)? average, Tensor outcome, Tensor lr, Tensor average_weight, float beta1, "
      "float beta2, float eps, float weight_decay, bool decoupled, bool maximize) -> ()");
  // The Euclidean norm of a vector, 0-d, float32; CPU only.
  m.def("euclidean_norm(Tensor x) -> Tensor");
  vae_fast::define_pairwise(m);
}

namespace vae_fast {
namespace {

// Our own pool (cpu/threads.h), of at most as many threads as torch's.
const cpu::Threads kThreads{
    [](int64_t begin, int64_t end, int64_t grain, cpu::Threads::Body body, void* context) {
      cpu::run_pieces(begin, end, grain, body, context, int(torch::stable::get_num_threads()));
    }};

struct Cpu {
  static constexpr bool kKeepsSlope = true;

  static Tensor empty(int64_t dim, const int64_t* sizes, const int64_t* strides, ScalarType dtype,
                      const Tensor& like) {
    // Outputs have their input's dtype, except bytes that become floats.
    size_t bytes = dtype == ScalarType::Float ? sizeof(float) : like.element_size();
    for (int64_t d = 0; d < dim; ++d) bytes *= static_cast<size_t>(sizes[d]);
    if (bytes < cpu::kPooledBytes) return vae_fast::empty(dim, sizes, strides, dtype, like);
    const size_t rank = static_cast<size_t>(dim);
    return torch::stable::from_blob(cpu::take_buffer(bytes), {sizes, rank}, {strides, rank},
                                    like.device(), dtype,
                                    [bytes](void* data) { cpu::return_buffer(data, bytes); });
  }
  static void gaussian_forward(const GaussianForward& args, const Tensor&) {
    cpu::level().gaussian_forward(args, kThreads);
  }
  static void gaussian_backward(const GaussianBackward& args, const Tensor&) {
    cpu::level().gaussian_backward(args, kThreads);
  }
  static void nll(const Likelihood& args, const Tensor&) { cpu::level().nll(args, kThreads); }
  static void elbo(const Elbo& args, const Tensor&) { cpu::level().elbo(args, kThreads); }
  static void gather(const Gather& args, const Tensor&) {
    // Before anything is read. (On a GPU this would make the host wait; the kernel looks itself.)
    for (int64_t row = 0; row < args.rows; ++row) {
      STD_TORCH_CHECK(args.index[row] >= 0 && args.index[row] < args.samples, "vae_fast: index ",
                      args.index[row], " is outside the data's ", args.samples, " samples");
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
  static norm::Workers workers() {
    const int asked = int(torch::stable::get_num_threads()), usable = cpu::usable_cpus();
    return {kThreads, asked < usable ? asked : usable};
  }
  static void group_norm(const GroupNorm& args, const Tensor&) {
    norm::drivers(args.dtype).forward(args, workers());
  }
  static void group_norm_backward(const GroupNormBackward& args, const Tensor&) {
    norm::drivers(args.dtype).backward(args, workers());
  }
  static void norm(const Norm& args) { cpu::level().norm(args, kThreads); }
};

}  // namespace
}  // namespace vae_fast

void vae_fast::cpu::torch_rounds(const Rounds& rounds) {
  run_rounds(rounds, int(torch::stable::get_num_threads()));
}

STABLE_TORCH_LIBRARY_IMPL(vae_fast, CPU, m) {
  using vae_fast::Cpu;
  vae_fast::GaussianOps<Cpu>::register_all(m);
  vae_fast::GaussianOps<Cpu>::register_keeping(m);
  vae_fast::LikelihoodOps<Cpu>::register_all(m);
  vae_fast::GatherOps<Cpu>::register_all(m);
  vae_fast::NormOps<Cpu>::register_all(m);
  vae_fast::GroupNormOps<Cpu>::register_all(m);
  vae_fast::PairwiseOps<Cpu>::register_all(m);
}
