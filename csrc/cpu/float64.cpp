// float64 on the CPU: the drivers over scalar code (cpu/float64.h).
#include "cpu/float64.h"
#include "cpu/nll.h"
#include "cpu/pairwise.h"

namespace vae_fast::cpu {
namespace {

#define VF_SPANS(name, L) kSpans<likelihoods::L, Float64>,
#define VF_PLANE_SPANS(name, L) kPlaneSpans<likelihoods::L, Float64>,
constexpr Spans kFloat64Spans[] = {VF_LIKELIHOODS(VF_SPANS) VF_PLANE_LIKELIHOODS(VF_PLANE_SPANS)};
#undef VF_SPANS
#undef VF_PLANE_SPANS

}  // namespace

const Pairwise kPairwiseF64 = pairwise_drivers<Float64>;

void gaussian_forward_f64(const GaussianForward& args, const Threads& threads) {
  gaussian_forward_driver<Float64>(args, threads);
}
void gaussian_backward_f64(const GaussianBackward& args, const Threads& threads) {
  gaussian_backward_driver<Float64>(args, threads);
}
void nll_f64(const Likelihood& args, const Threads& threads) {
  nll_driver<Float64>(args, kFloat64Spans[args.id], is_over_planes(args.id), threads);
}
void elbo_f64(const Elbo& args, const Threads& threads) {
  elbo_driver<Float64>(args, kFloat64Spans[args.recon.id], is_over_planes(args.recon.id), threads);
}

}  // namespace vae_fast::cpu
