#include "step/native.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <utility>

#include "cpu/pool.h"
#include "likelihoods/list.h"

namespace vae_fast::step {
namespace {

constexpr int64_t kLine = 16;  // floats of a cache line, and of the widest vector
constexpr int64_t kWidestPanel = 48;
constexpr int64_t kNarrowestPanel = 8;

int64_t rounded(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

// Rows that begin at different sets of a cache, were there a power of two of them.
int64_t stride_of(int64_t columns) {
  const int64_t lines = rounded(columns, kLine) / kLine;
  return (lines % 8 == 0 ? lines + 1 : lines) * kLine;
}

// Hands out parts of a buffer, or counts what they need.
struct Arena {
  float* begin;
  int64_t used = 0;

  float* take(int64_t count) {
    float* const part = begin == nullptr ? nullptr : begin + used;
    used += rounded(count, kLine);
    return part;
  }
  Matrix matrix(int64_t rows, int64_t columns) {
    return {take(rows * stride_of(columns)), stride_of(columns)};
  }
};

void lay_out(Plan& plan, Arena& arena) {
  const int64_t rows = plan.capacity;
  for (int i = 0; i < plan.layer_count; ++i) {
    Layer& layer = plan.layers[i];
    layer.panels = arena.take(rounded(layer.out, kWidestPanel) * layer.in);
    layer.padded_bias = arena.take(rounded(layer.out, kWidestPanel));
    const bool padded = layer.in % kLine != 0;
    layer.row_stride = padded ? stride_of(layer.in) : layer.in;
    layer.rows =
        (padded || plan.bf16) && i > 0 ? arena.take(layer.out * layer.row_stride) : nullptr;
    layer.input = arena.matrix(rows, layer.in);
    layer.grad = arena.matrix(rows, layer.out);
    if (layer.after == Activation::silu) layer.before = arena.matrix(rows, layer.out);
  }
  for (int i = 0; i < plan.layer_count; ++i) {
    const bool to_sampling = i == plan.encoder_layers - 1 && plan.sampled;
    const bool last = i == plan.layer_count - 1;
    Matrix& output = plan.layers[i].output;
    if (to_sampling) {
      output = arena.matrix(rows, plan.layers[i].out);
    } else if (!last) {
      output = plan.layers[i + 1].input;
    }
  }
  if (plan.counts || plan.bf16) plan.target = arena.matrix(rows, plan.columns);
  for (int j = 0; j < plan.param_count; ++j) {
    Param& param = plan.params[j];
    if (param.source != Source::learned) continue;
    param.values = arena.take(rounded(plan.columns, kLine));
    param.slopes = arena.take(rounded(plan.columns, kLine));
    param.grad = arena.matrix(rows, plan.columns);
  }
  if (plan.sampled) {
    plan.slope = arena.matrix(rows, plan.latent);
    plan.grad_z = arena.matrix(rows, plan.latent);
  }
}

}  // namespace

const std::vector<std::string>& likelihood_names() {
#define VF_ONE(name, L) #name,
  static const std::vector<std::string> names{VF_LIKELIHOODS(VF_ONE)};
#undef VF_ONE
  return names;
}

Native::Native(const Plan& plan) : plan_(plan) {
#define VF_ONE(name, L) likelihoods::L::target,
  constexpr likelihoods::Target targets[] = {VF_LIKELIHOODS(VF_ONE)};
#undef VF_ONE
  plan_.counts = targets[plan.likelihood] == likelihoods::Target::count;
}

void Native::make_room(int64_t samples) {
  if (samples <= plan_.capacity) return;
  plan_.capacity = rounded(samples, kTileRows);
  Arena counted{nullptr};
  lay_out(plan_, counted);
  const size_t bytes = size_t(counted.used) * sizeof(float);
  floats_.reset();  // before the new one: there need not be room for both
  const int64_t capacity = std::exchange(plan_.capacity, 0);  // until there is memory for it
  floats_ = {static_cast<float*>(cpu::take_buffer(bytes)),
             [bytes](float* data) { cpu::return_buffer(data, bytes); }};
  std::memset(floats_.get(), 0, bytes);
  packed_for_ = nullptr;

  int64_t widest = 0, squares = kMostParams;
  for (int i = 0; i < plan_.layer_count; ++i) {
    const Layer& layer = plan_.layers[i];
    widest = std::max(widest, layer.out);
    squares += (layer.in / kNarrowestPanel + 1) * (layer.out / 64 + 1) + 1;
  }
  const int64_t blocks = capacity / kRowBlock;
  const int64_t recon = blocks * (widest / kNarrowestPanel + 1);
  sums_.assign(size_t(recon + blocks + squares), 0.0);
  plan_.capacity = capacity;
  Arena handed{floats_.get()};
  lay_out(plan_, handed);
  plan_.recon = sums_.data();
  plan_.kl = plan_.recon + recon;
  plan_.squares = plan_.kl + blocks;
}

Result Native::take(const Call& call, cpu::RunRounds rounds) {
  if (call.samples < 1) throw std::invalid_argument("a step needs at least one sample");
  make_room(call.samples);
  const cpu::Level& level = cpu::level();
  if (packed_for_ != &level) {
    level.step->pack(plan_, call, rounds);
    packed_for_ = &level;
  }
  Result result{};
  level.step->take(plan_, call, result, rounds);
  return result;
}

}  // namespace vae_fast::step
