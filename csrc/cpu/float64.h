// The math policy of float64 on the CPU: scalar code with the C library's functions.
//
// float64 is the reference that the other dtypes are tested against. VAEs are not trained in it, so
// accuracy counts here and speed does not.
#pragma once

#include "cpu/driver.h"
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

}  // namespace
}  // namespace vae_fast::cpu
