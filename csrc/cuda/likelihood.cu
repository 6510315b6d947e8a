// The driver of every likelihood, alone or with the KL: one launch for both extents and the sums.
#include "cuda/likelihood.cuh"

#include "cuda/drivers.h"

namespace vae_fast::cuda {
namespace {

struct Traits {
  int params;
  bool reads_half;
};
#define VF_TRAITS(name, L) {likelihoods::L::params, kReadsHalf<likelihoods::L>},
constexpr Traits kTraits[] = {VF_LIKELIHOODS(VF_TRAITS)};
#undef VF_TRAITS
constexpr int kCount = int(sizeof kTraits / sizeof kTraits[0]);

Kernels kernels_of(int id) {
  static_assert(kParts == 4);
  switch (id % kParts) {
    case 0: return kernels_in_part<0>(id);
    case 1: return kernels_in_part<1>(id);
    case 2: return kernels_in_part<2>(id);
    default: return kernels_in_part<3>(id);
  }
}

bool is_flat(const Operand& o, const Likelihood& args) {
  return (o.step == 1 || args.inner == 1) && (args.planes == 1 || o.plane == args.inner) &&
         (args.rows == 1 || o.row == args.planes * args.inner);
}

bool has_value(const Likelihood& args) { return args.nll != nullptr; }

// A tensor without elements has a null pointer, so all are looked at.
bool has_grad(const Elbo& args) {
  bool any = args.grad_mu != nullptr;
  for (const Operand& grad : args.recon.grads) any = any || grad.data != nullptr;
  return any;
}

Plan plan_of(const Elbo& args, bool with_kl) {
  const Likelihood& recon = args.recon;
  const bool value = has_value(recon), grad = has_grad(args);
  const bool none = value && recon.reduction == Reduction::none;
  const bool per_row = none || (grad && (recon.grad_nll.per_row || args.grad_kl.per_row));
  const int64_t segments = per_row ? recon.rows : 1, rows = per_row ? 1 : recon.rows;
  Plan plan;
  const int64_t length = rows * recon.planes * recon.inner;
  const int threads = threads_for(segments * (length + (with_kl ? rows * args.kl_cols : 0)));
  plan.recon = kernels_of(recon.id).split(recon.dtype, segments, length, threads);
  plan.kl = Split{0, 0};
  if (with_kl) {
    with_format(args.kl_dtype, [&](auto format) {
      using B = KlBatch<typename decltype(format)::C>;
      plan.kl = make_split<B>(segments, rows * args.kl_cols, threads);
      return cudaSuccess;
    });
  }
  plan.recon_blocks = plan.recon.blocks();
  plan.kl_blocks = plan.kl.blocks();
  plan.direct = !value || (none && !with_kl && plan.recon.parts == 1);
  return plan;
}

Elbo without_kl(const Likelihood& recon) {
  Elbo args{};
  args.recon = recon;
  args.kl_dtype = recon.dtype;
  args.grad_kl.per_row = recon.grad_nll.per_row;
  return args;
}

cudaError_t run(const Elbo& args, bool with_kl, void* workspace, cudaStream_t stream) {
  const Likelihood& recon = args.recon;
  const bool value = has_value(recon), grad = has_grad(args);
  if (refusal(recon) != nullptr) return cudaErrorInvalidValue;
  if (with_kl && (args.kl_dtype == DType::f64) != (recon.dtype == DType::f64)) {
    return cudaErrorInvalidValue;
  }
  if (!value && !grad) return cudaSuccess;
  const Plan plan = plan_of(args, with_kl);
  double* partials = plan.direct ? nullptr : static_cast<double*>(workspace);
  Finish sums;
  sums.sums = recon.reduction == Reduction::none ? recon.rows : 1;
  if (sums.sums > 0 && partials != nullptr) {
    sums.nll = {partials, plan.recon.tasks() / sums.sums, recon.nll};
    sums.kl = {partials + plan.recon.tasks(), plan.kl.tasks() / sums.sums, args.kl};
  }
  sums.loss = args.loss;
  sums.wide = recon.dtype == DType::f64;
  sums.scale = mean_scale(recon.reduction, recon.rows);
  sums.beta = args.beta;
  sums.beta_tensor = args.beta_tensor;
  unsigned* counter = nullptr;
  if (plan.blocks() > 0) {
    counter = counter_of(sums, partials, stream);
    const cudaError_t error =
        kernels_of(recon.id).launch(args, value, grad, plan, sums, partials, counter, stream);
    if (error != cudaSuccess) return error;
  }
  return plan.direct || counter != nullptr ? cudaSuccess : launch_finish(sums, stream);
}

}  // namespace

const char* refusal(const Likelihood& args) {
  if (args.id < 0 || args.id >= kCount) return "has no CUDA kernel";
  const Traits& traits = kTraits[args.id];
  const DType x = args.dtype, t = args.target_dtype;
  const bool half = x == DType::bf16 || x == DType::f16;
  if (half && !traits.reads_half) return "reads float32 and float64 parameters on CUDA";
  if (x != DType::f32 && x != DType::f64 && !half) return "reads floating parameters";
  if (t != DType::u8 && t != DType::boolean && t != x && !(half && t == DType::f32)) {
    return "reads targets of the parameters' dtype, uint8 or bool on CUDA";
  }
  bool flat = args.target_rows == args.rows;
  for (int j = 0; j < traits.params; ++j) {
    flat = flat && is_flat(args.params[j], args) &&
           (args.grads[j].data == nullptr || is_flat(args.grads[j], args));
  }
  return flat ? nullptr : "reads parameters of the target's shape, not stacked or shared, on CUDA";
}

int likelihoods_on_cuda(const char** names, bool* reads_half) {
#define VF_NAME(name, L) #name,
  constexpr const char* kNames[] = {VF_LIKELIHOODS(VF_NAME)};
#undef VF_NAME
  for (int id = 0; names != nullptr && id < kCount; ++id) {
    names[id] = kNames[id];
    reads_half[id] = kTraits[id].reads_half;
  }
  return kCount;
}

size_t nll_workspace(const Likelihood& args) {
  return refusal(args) != nullptr ? 0
                                  : plan_of(without_kl(args), false).partials() * sizeof(double);
}
cudaError_t nll(const Likelihood& args, void* workspace, cudaStream_t stream) {
  return run(without_kl(args), false, workspace, stream);
}

size_t elbo_workspace(const Elbo& args) {
  return refusal(args.recon) != nullptr ? 0 : plan_of(args, true).partials() * sizeof(double);
}
cudaError_t elbo(const Elbo& args, void* workspace, cudaStream_t stream) {
  return run(args, true, workspace, stream);
}

}  // namespace vae_fast::cuda
