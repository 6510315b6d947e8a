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
  // `plan` without its buffers: layers' sizes, places and activations, and what x and z are.
  explicit Native(const Plan& plan);

  Result take(const Call& call, cpu::RunRounds rounds);
  // The weights were changed by somebody else: what is made of them has to be made again.
  void weights_changed() { packed_for_ = nullptr; }
  // z of the latest step, as it was handed to the decoder.
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
