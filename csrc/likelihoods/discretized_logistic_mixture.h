// A mixture of K discretized logistics over three channels (Salimans et al. 2017, equations 2 to 4),
// in the planes and with the clamp of the very deep VAE (Child 2021):
//
//   planes 0 to K - 1          the mixture's logits
//   K + 3 K c + k              channel c's loc of component k, on [-1, 1]
//   K + 3 K c + K + k          its log scale, at least -7
//   K + 3 K c + 2 K + k        a coefficient q_c = tanh(plane)
//
// Green's loc is moved by q_0 red, and blue's by q_1 red + q_2 green, with the target's values on
// [-1, 1]. The nll is that of a position, all three channels together.
#pragma once

#include <limits>

#include "likelihoods/logistic_bin.h"
#include "likelihoods/target.h"

namespace vae_fast::likelihoods {

struct DiscretizedLogisticMixture {
  static constexpr int targets = 3;
  static constexpr Target target = Target::level;
  static constexpr int planes_per_component = 10;

  template <class M, bool VALUE, bool GRAD, class In, class Out, class T = typename M::T>
  static VF_FN void position(const In& in, const T (&x)[targets], T& nll, Out& out) {
    const int components = in.count / planes_per_component;
    LogSumExp<M> logits, joints;
    for (int k = 0; k < components; ++k) {
      const T logit = in.param(k);
      logits.add(logit);
      const Component<M, true, GRAD && Out::readable> component(in, components, k, x);
      const T joint = logit - component.nll;
      joints.add(joint);
      if constexpr (GRAD && Out::readable) {
        out.grad(k, joint);
        component.gradients([&](int plane, T g) { out.grad(plane, g); });
      }
    }
    const T all = logits.value(), right = joints.value();
    if constexpr (VALUE) nll = all - right;
    if constexpr (GRAD) {
      for (int k = 0; k < components; ++k) {
        const T logit = in.param(k);
        const T prior = M::exp(logit - all);
        if constexpr (Out::readable) {
          const T weight = M::exp(out.read(k) - right);
          out.grad(k, prior - weight);
          for (int plane = components + k; plane < in.count; plane += components) {
            out.grad(plane, weight * out.read(plane));
          }
        } else {
          const Component<M, true, true> component(in, components, k, x);
          const T weight = M::exp((logit - component.nll) - right);
          out.grad(k, prior - weight);
          component.gradients([&](int plane, T g) { out.grad(plane, weight * g); });
        }
      }
    }
  }

 private:
  // log(sum exp), in one pass.
  template <class M, class T = typename M::T>
  struct LogSumExp {
    static constexpr typename M::Element lowest =
        std::numeric_limits<typename M::Element>::lowest();
    T largest, sum;

    VF_FN LogSumExp() : largest(M::splat(lowest)), sum(M::splat(0.0f)) {}
    VF_FN void add(T x) {
      const T distance = x - largest;
      const T e = M::exp_nonpositive(-M::abs(distance));
      const auto above = distance > 0.0f;
      sum = M::select(above, sum * e + 1.0f, sum + e);
      largest = M::select(above, x, largest);
    }
    VF_FN T value() const { return largest + M::log(sum); }
  };

  // tanh(x), and its derivative.
  template <class M, class T = typename M::T>
  static VF_FN T tanh(T x, T& slope) {
    T negative;
    const T e = M::exp_nonpositive(-2.0f * M::abs(x), negative);
    const T inverse = M::divide_unit(M::splat(1.0f), 1.0f + e);
    slope = (4.0f * e) * (inverse * inverse);
    const T magnitude = -negative * inverse;
    return M::select(x < 0.0f, -magnitude, magnitude);
  }

  // -log p of the three channels under one component, and its derivatives by the component's planes.
  template <class M, bool VALUE, bool GRAD, class T = typename M::T>
  struct Component {
    T nll, by_loc[3], by_log_scale[3], by_coefficient[3];
    int first, components;

    template <class In>
    VF_FN Component(const In& in, int components, int k, const T (&x)[targets])
        : first(components + k), components(components) {
      const T red = scaled(x[0]), green = scaled(x[1]);
      T slope[3];
      const T q0 = coefficient(in, 0, slope[0]), q1 = coefficient(in, 1, slope[1]);
      const T q2 = coefficient(in, 2, slope[2]);
      channel(in, 0, M::splat(0.0f), x[0]);
      channel(in, 1, q0 * red, x[1]);
      channel(in, 2, q1 * red + q2 * green, x[2]);
      if constexpr (GRAD) {
        by_coefficient[0] = by_loc[1] * red * slope[0];
        by_coefficient[1] = by_loc[2] * red * slope[1];
        by_coefficient[2] = by_loc[2] * green * slope[2];
      }
    }
    template <class Set>
    VF_FN void gradients(const Set& set) const {
      for (int c = 0; c < 3; ++c) {
        set(plane(c, 0), by_loc[c]);
        set(plane(c, 1), by_log_scale[c]);
        set(plane(c, 2), by_coefficient[c]);
      }
    }

   private:
    VF_FN int plane(int channel, int which) const {
      return first + (3 * channel + which) * components;
    }
    static VF_FN T scaled(T level) { return (2.0f * level - 255.0f) * M::constant(1.0 / 255.0); }
    template <class In>
    VF_FN T coefficient(const In& in, int c, T& slope) const {
      return tanh<M>(in.param(plane(c, 2)), slope);
    }
    template <class In>
    VF_FN void channel(const In& in, int c, T moved, T level) {
      const T log_scale = in.param(plane(c, 1));
      T value;
      logistic_bin<M, true, GRAD>(in.param(plane(c, 0)) + moved, M::at_least(log_scale, -7.0f),
                                  level, value, by_loc[c], by_log_scale[c]);
      nll = c == 0 ? value : nll + value;
      if constexpr (GRAD) {
        by_log_scale[c] = M::select(log_scale < -7.0f, M::splat(0.0f), by_log_scale[c]);
      }
    }
  };
};

}  // namespace vae_fast::likelihoods
