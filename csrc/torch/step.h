// The bindings of a GPU training step's own kernels (ops/step.h). All tensors are float32.
#pragma once

#include "ops/step.h"
#include "torch/tensors.h"

namespace vae_fast {

template <class Device>
struct StepOps {
  static void check(const Tensor& t, const Tensor& like, int64_t elements, const char* name,
                    ScalarType dtype = ScalarType::Float) {
    STD_TORCH_CHECK(t.scalar_type() == dtype && t.is_contiguous() && t.numel() == elements &&
                        on_device_of(t, like),
                    "vae_fast: a step's ", name, " must be ", elements, " contiguous ",
                    dtype == ScalarType::Double ? "float64" : "float32",
                    " elements, on the device of the others");
  }
  static const float* floats(const Tensor& t) {
    return static_cast<const float*>(t.const_data_ptr());
  }
  static float* changed(const Tensor& t) { return static_cast<float*>(t.mutable_data_ptr()); }

  // mu and logvar of each row, side by side: returns the latent size.
  static int64_t check_heads(const Tensor& heads) {
    STD_TORCH_CHECK(heads.dim() == 2 && heads.size(1) % 2 == 0,
                    "vae_fast: a step's heads must be (N, 2 * latent)");
    check(heads, heads, heads.numel(), "heads");
    return heads.size(1) / 2;
  }

  static Tensor step_sample(Tensor heads, Tensor key) {
    StepSample args{};
    args.latent = check_heads(heads);
    args.rows = heads.size(0);
    check_key(key, heads);
    const int64_t sizes[] = {args.rows, args.latent}, strides[] = {args.latent, 1};
    Tensor z = empty(2, sizes, strides, ScalarType::Float, heads);
    args.heads = floats(heads);
    args.key = key_data(key);
    args.z = changed(z);
    Device::step_sample(args, heads);
    return z;
  }

  static Tensor step_sample_backward(Tensor grad_z, Tensor heads, Tensor key, Tensor beta,
                                     double scale) {
    StepSampleBackward args{};
    args.latent = check_heads(heads);
    args.rows = heads.size(0);
    check_key(key, heads);
    check(grad_z, heads, args.rows * args.latent, "gradient of z");
    check(beta, heads, 1, "beta");
    Tensor grad = empty_alike<Device>(heads);
    args.heads = floats(heads);
    args.key = key_data(key);
    args.grad_z = floats(grad_z);
    args.beta = floats(beta);
    args.scale = scale;
    args.grad_heads = changed(grad);
    Device::step_sample_backward(args, heads);
    return grad;
  }

  static Tensor step_decide(Tensor gradients, std::vector<int64_t> ranges,
                            std::vector<Tensor> columns, std::vector<int64_t> places, Tensor recon,
                            MaybeTensor heads, Tensor beta, Tensor steps, Tensor usual, Tensor sums,
                            int64_t rows, std::vector<double> guard, double beta1, double beta2) {
    StepDecide args{};
    const int64_t all = gradients.numel();
    const int64_t parts = static_cast<int64_t>(ranges.size() / 2 + columns.size());
    STD_TORCH_CHECK(parts >= 1 && parts <= kMaxStepParts && ranges.size() % 2 == 0 &&
                        places.size() == columns.size() && rows >= 1 && guard.size() == 5,
                    "vae_fast: a step's gradients are in 1 to ", kMaxStepParts,
                    " parts, a begin and a count or a place each, of 1 row or more, and its guard "
                    "has 5 numbers");
    check(gradients, gradients, all, "gradients");
    const auto add = [&](int64_t begin, int64_t count, const float* values) {
      STD_TORCH_CHECK(begin >= 0 && count >= 0 && begin <= all && count <= all - begin,
                      "vae_fast: a part of a step's gradients is outside of them");
      args.part[args.parts++] = {begin, count, values};
    };
    for (size_t i = 0; i < ranges.size(); i += 2) add(ranges[i], ranges[i + 1], nullptr);
    for (size_t i = 0; i < columns.size(); ++i) {
      const Tensor& t = columns[i];
      STD_TORCH_CHECK(t.dim() == 2, "vae_fast: a step's columns must be (N, features)");
      check(t, gradients, rows * t.size(1), "columns");
      add(places[i], t.size(1), floats(t));
    }
    args.rows = rows;
    if (heads) {
      args.latent = check_heads(*heads);
      check(*heads, gradients, rows * 2 * args.latent, "heads");
      args.heads = floats(*heads);
    }
    check(recon, gradients, 1, "recon");
    check(beta, gradients, 1, "beta");
    check(steps, gradients, 1, "count of steps");
    check(usual, gradients, 3, "usual norm");
    check(sums, gradients, 4, "sums", ScalarType::Double);
    const int64_t count = kStepOutcomes, one = 1;
    Tensor outcome = empty(1, &count, &one, ScalarType::Float, gradients);
    args.gradients = changed(gradients);
    args.recon = floats(recon);
    args.beta = floats(beta);
    args.clip = guard[0];
    args.skip_above = guard[1];
    args.patience = guard[2];
    args.settling = guard[3];
    args.followed = guard[4];
    args.beta1 = beta1;
    args.beta2 = beta2;
    args.usual = changed(usual);
    args.steps = changed(steps);
    args.sums = static_cast<double*>(sums.mutable_data_ptr());
    args.outcome = changed(outcome);
    Device::step_decide(args, gradients);
    return outcome;
  }

  static void step_update(Tensor weights, Tensor gradients, Tensor first, Tensor second,
                          MaybeTensor average, Tensor outcome, Tensor lr, Tensor average_weight,
                          double beta1, double beta2, double eps, double weight_decay,
                          bool decoupled, bool maximize) {
    StepUpdate args{};
    args.n = weights.numel();
    check(weights, weights, args.n, "weights");
    check(gradients, weights, args.n, "gradients");
    check(first, weights, args.n, "first moment");
    check(second, weights, args.n, "second moment");
    if (average) check(*average, weights, args.n, "moving average");
    check(outcome, weights, kStepOutcomes, "outcome");
    check(lr, weights, 1, "learning rate");
    check(average_weight, weights, 1, "weight of the average");
    args.weights = changed(weights);
    args.gradients = floats(gradients);
    args.first = changed(first);
    args.second = changed(second);
    args.average = average ? changed(*average) : nullptr;
    args.outcome = floats(outcome);
    args.lr = floats(lr);
    args.average_weight = floats(average_weight);
    args.beta1 = beta1;
    args.beta2 = beta2;
    args.eps = eps;
    args.weight_decay = weight_decay;
    args.decoupled = decoupled;
    args.maximize = maximize;
    Device::step_update(args, weights);
  }

  static void register_all(torch::stable::detail::StableLibrary& m) {
    m.impl("step_sample", TORCH_BOX(&step_sample));
    m.impl("step_sample_backward", TORCH_BOX(&step_sample_backward));
    m.impl("step_decide", TORCH_BOX(&step_decide));
    m.impl("step_update", TORCH_BOX(&step_update));
  }
};

}  // namespace vae_fast
