// float64 on the CPU: the drivers over scalar code with the C library's functions.
//
// float64 is the truth that the other dtypes are held against, not a dtype that VAEs are trained
// in, so accuracy counts here and speed does not.
#include "cpu/nll.h"
#include "cpu/pairwise.h"
#include "math/scalar.h"

namespace vae_fast::cpu {
namespace {

struct Float64 : Scalar<double> {
  using Element = double;
  static VF_FN T splat(T x) { return x; }
  static VF_FN T load(const double* p) { return *p; }
  static VF_FN T load(const uint8_t* p) { return T(*p); }
  static VF_FN void store(T x, double* p) { *p = x; }
  static VF_FN T first(int64_t, T x) { return x; }
  static VF_FN bool any(bool c) { return c; }
  // Neumaier's compensated sum.
  struct Sum {
    double sum = 0.0, lost = 0.0;
    VF_FN void add(T x) {
      const double next = sum + x;
      lost += ::fabs(sum) >= ::fabs(x) ? (sum - next) + x : (x - next) + sum;
      sum = next;
    }
    VF_FN double total() const { return std::isfinite(sum) ? sum + lost : sum; }
  };
  struct LogSum {
    Sum sum;
    static constexpr int64_t capacity = INT64_MAX;
    VF_FN void add(T e) { sum.add(::log1p(e)); }
    VF_FN void fold() {}
    VF_FN double total() const { return sum.total(); }
  };
};

#define VF_SPANS(name, L) kSpans<likelihoods::L, Float64>,
#define VF_PLANE_SPANS(name, L) kPlaneSpans<likelihoods::L, Float64>,
constexpr Spans kFloat64Spans[] = {VF_LIKELIHOODS(VF_SPANS)
                                       VF_PLANE_LIKELIHOODS(VF_PLANE_SPANS)};
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
