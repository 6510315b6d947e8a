// The step as Python sees it: sizes and addresses in, numbers out.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>

#include "cpu/threads.h"
#include "step/native.h"

namespace vae_fast::step {

template <class Pointer>
Pointer* address(const pybind11::object& value) {
  return value.is_none() ? nullptr : reinterpret_cast<Pointer*>(value.cast<uintptr_t>());
}

inline Plan plan_of(const pybind11::dict& spec) {
  Plan plan;
  const auto layers = spec["layers"].cast<std::vector<pybind11::dict>>();
  if (layers.size() > size_t(kMostLayers)) throw std::invalid_argument("too many layers");
  for (const pybind11::dict& given : layers) {
    Layer& layer = plan.layers[plan.layer_count++];
    layer.in = given["in"].cast<int64_t>();
    layer.out = given["out"].cast<int64_t>();
    layer.condition = given["condition"].cast<int64_t>();
    layer.weight = given["weight"].cast<int64_t>();
    layer.bias = given["bias"].cast<int64_t>();
    layer.after = Activation(given["after"].cast<int>());
  }
  plan.encoder_layers = spec["encoder_layers"].cast<int>();
  plan.latent = spec["latent"].cast<int64_t>();
  plan.sampled = spec["sampled"].cast<bool>();
  plan.columns = spec["columns"].cast<int64_t>();
  plan.condition = spec["condition"].cast<int64_t>();
  plan.likelihood = spec["likelihood"].cast<int>();
  plan.bf16 = spec["bf16"].cast<bool>();
  const auto params = spec["params"].cast<std::vector<pybind11::dict>>();
  if (params.size() > size_t(kMostParams)) throw std::invalid_argument("too many parameters");
  for (const pybind11::dict& given : params) {
    Param& param = plan.params[plan.param_count++];
    param.source = Source(given["source"].cast<int>());
    param.transform = Transform(given["transform"].cast<int>());
    param.factor = given["factor"].cast<float>();
    param.least = given["least"].cast<float>();
    param.value = given["value"].cast<float>();
    param.plane = given["plane"].cast<int64_t>();
    param.place = given["place"].cast<int64_t>();
    param.count = given["count"].cast<int64_t>();
    plan.network_params += param.source == Source::network;
  }
  return plan;
}

inline pybind11::tuple take(Native& native, const pybind11::dict& given) {
  Call call;
  call.samples = given["samples"].cast<int64_t>();
  call.data = address<const void>(given["data"]);
  call.dtype = DType(given["dtype"].cast<int>());
  call.index = address<const int64_t>(given["index"]);
  call.binary_key = address<const int64_t>(given["binary_key"]);
  call.first_row = given["first_row"].cast<int64_t>();
  call.condition = address<const float>(given["condition"]);
  call.key[0] = given["key"].cast<std::pair<int64_t, int64_t>>().first;
  call.key[1] = given["key"].cast<std::pair<int64_t, int64_t>>().second;
  call.beta = given["beta"].cast<double>();
  call.scale = given["scale"].cast<double>();
  call.weights = address<float>(given["weights"]);
  call.gradients = address<float>(given["gradients"]);
  call.first = address<float>(given["first"]);
  call.second = address<float>(given["second"]);
  call.average = address<float>(given["average"]);
  call.average_weight = given["average_weight"].cast<double>();
  call.lr = given["lr"].cast<double>();
  call.beta1 = given["beta1"].cast<double>();
  call.beta2 = given["beta2"].cast<double>();
  call.eps = given["eps"].cast<double>();
  call.weight_decay = given["weight_decay"].cast<double>();
  call.bias1 = given["bias1"].cast<double>();
  call.bias2 = given["bias2"].cast<double>();
  call.decoupled = given["decoupled"].cast<bool>();
  call.maximize = given["maximize"].cast<bool>();
  call.clip = given["clip"].cast<double>();
  call.limit = given["limit"].cast<double>();
  call.update = given["update"].cast<bool>();
  Result result;
  {
    const pybind11::gil_scoped_release released;
    result = native.take(call, cpu::torch_rounds);
  }
  return pybind11::make_tuple(result.loss, result.recon, result.kl, result.norm, result.skipped);
}

inline void bind(pybind11::module_& m) {
  m.def("step_likelihoods", &likelihood_names);
  pybind11::class_<Native>(m, "Step", pybind11::module_local())
      .def(pybind11::init([](const pybind11::dict& spec) { return new Native(plan_of(spec)); }))
      .def("take", &take)
      .def("weights_changed", &Native::weights_changed)
      .def("z", [](const Native& native) {
        return std::make_pair(reinterpret_cast<uintptr_t>(native.z().data), native.z().stride);
      });
}

}  // namespace vae_fast::step
