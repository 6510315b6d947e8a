// A training step that keeps its buffers: what Python holds.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "cpu/drivers.h"
#include "step/plan.h"

namespace vae_fast::step {

// Names of the likelihoods, in the order of VF_LIKELIHOODS.
const std::vector<std::string>& likelihood_names();

class Native {
 public:
  // `plan` without its buffers: the layers' sizes, offsets and activations, and the kinds of x and
  // z.
  explicit Native(const Plan& plan);

  Result take(const Call& call, cpu::RunRounds rounds);
  // Other code has changed the weights: everything derived from them is computed again.
  void weights_changed() { packed_for_ = nullptr; }
  // z of the latest step, as the decoder got it.
  const Matrix& z() const { return plan_.layers[plan_.encoder_layers].input; }
  const Plan& plan() const { return plan_; }

 private:
  void make_room(int64_t samples);

  Plan plan_;
  const cpu::Level* packed_for_ = nullptr;
  std::shared_ptr<float> floats_;
  std::vector<double> sums_;
};

}  // namespace vae_fast::step
