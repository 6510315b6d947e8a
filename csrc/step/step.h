// The training step, for one SIMD level: rounds of pieces, one round after another.
//
//   x, forward, loss, backward   samples in blocks; large layers by panels of features as well
//   gradients of weights         by panels and rows
//   Adam                         by panels, which it writes for the next step
//
// A round's pieces are cut by the sizes alone and are independent. Each partial sum is kept
// separately, and they are added in order. So threads and load change no bit.
#pragma once

#include "cpu/float_mode.h"
#include "cpu/gather.h"
#include "cpu/likelihood.h"
#include "cpu/normal.h"
#include "ops/gather.h"
#include "ops/gaussian.h"
#include "step/plan.h"
#include "step/product.h"

namespace vae_fast::step {

VF_FN int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
VF_FN int64_t parts(int64_t count, int64_t size) { return (count + size - 1) / size; }

template <class M>
class Step {
 public:
  using T = typename M::T;
  static constexpr int64_t W = M::width, P = kPanel<M>, R = kTile<M>;

  VF_FN Step(Plan& plan, const Call& call)
      : plan_(plan), call_(call), blocks_(parts(call.samples, kRowBlock)) {
    for (int i = 0; i < plan_.layer_count; ++i) {
      const Layer& l = layer(i);
      panel_starts_[i + 1] = panel_starts_[i] + panels(l);
      grad_starts_[i + 1] = grad_starts_[i] + parts(l.in, P) * parts(l.out, kGradRows) + 1;
    }
  }

  void run(Result& result, cpu::RunRounds rounds) {
    result_ = &result;
    for (int j = 0; j < plan_.param_count; ++j) {
      if (plan_.params[j].source != Source::learned) continue;
      make_learned(plan_.params[j]);
      learned_[learned_count_++] = j;
    }
    plan_forward_and_backward();
    add_round(Kind::gradients, grad_starts_[plan_.layer_count] + learned_count_);
    if (call_.update) add_round(Kind::update, panel_starts_[plan_.layer_count] + learned_count_);
    run_rounds(rounds);
  }

  // Writes everything that is derived from the weights, after they were changed from outside.
  void pack(cpu::RunRounds rounds) {
    add_round(Kind::pack, panel_starts_[plan_.layer_count]);
    run_rounds(rounds);
  }

 private:
  Plan& plan_;
  const Call& call_;
  int64_t blocks_;
  Result* result_ = nullptr;
  float multiplier_ = 1.0f;                       // of gradients, by clipping
  int learned_[kMostParams], learned_count_ = 0;  // of the likelihood's parameters
  // Pieces of the layers before each: panels of weights, and parts of their gradients.
  int64_t panel_starts_[kMostLayers + 1] = {}, grad_starts_[kMostLayers + 1] = {};

  static VF_FN bool small(const Layer& layer) { return layer.in * layer.out <= kSmall; }
  static VF_FN int64_t panels(const Layer& layer) { return parts(layer.out, P); }
  VF_FN Layer& layer(int i) { return plan_.layers[i]; }
  VF_FN int layer_of(const int64_t (&starts)[kMostLayers + 1], int64_t piece) const {
    int i = 0;
    while (piece >= starts[i + 1]) ++i;
    return i;
  }
  VF_FN bool loss_with_layer() const { return plan_.network_params == 1; }
  VF_FN int64_t recon_parts() {
    return blocks_ * (loss_with_layer() ? panels(layer(plan_.layer_count - 1)) : 1);
  }

  // --- rounds ------------------------------------------------------------------------------------

  // What a work does: up to latent on a block of samples, from gradients on with parts of weights.
  enum class Kind { input, forward, sample, loss, backward, latent, gradients, update, pack };
  struct Work {
    Kind kind;
    int layer;
  };
  // Works [begin, end), one after another: several works of blocks of samples, or a single work.
  struct Round {
    int begin, end;
  };
  static constexpr int kMostWorks = 2 * kMostLayers + 8;
  Work works_[kMostWorks];
  Round rounds_[kMostWorks];
  int64_t pieces_[kMostWorks];
  int work_count_ = 0, round_count_ = 0;

  void add_round(Kind kind, int64_t pieces, int layer = 0) {
    works_[work_count_] = {kind, layer};
    rounds_[round_count_] = {work_count_, work_count_ + 1};
    pieces_[round_count_++] = pieces;
    ++work_count_;
  }

  // Consecutive works of blocks of samples are one round.
  void add(Kind kind, int l = 0) {
    if ((kind == Kind::forward || kind == Kind::backward) && !small(layer(l))) {
      const int64_t across = kind == Kind::forward ? panels(layer(l)) : parts(made_inputs(l), P);
      return add_round(kind, parts(call_.samples, kTileRows) * across, l);
    }
    if (round_count_ > 0 && is_of_blocks(rounds_[round_count_ - 1])) {
      works_[work_count_++] = {kind, l};
      rounds_[round_count_ - 1].end = work_count_;
      return;
    }
    add_round(kind, blocks_, l);
  }
  VF_FN bool is_of_blocks(const Round& round) {
    const Work& work = works_[round.begin];
    if (work.kind == Kind::forward || work.kind == Kind::backward) return small(layer(work.layer));
    return work.kind < Kind::gradients;
  }

  void plan_forward_and_backward() {
    const int layers = plan_.layer_count, encoder = plan_.encoder_layers;
    add(Kind::input);
    for (int i = 0; i < layers; ++i) {
      if (i == encoder && plan_.sampled) add(Kind::sample);
      add(Kind::forward, i);
    }
    if (!loss_with_layer()) add(Kind::loss);
    for (int i = layers - 1; i > 0; --i) {
      add(Kind::backward, i);
      if (i == encoder && plan_.sampled) add(Kind::latent);
    }
  }

  void run_rounds(cpu::RunRounds run) {
    run({round_count_, pieces_,
         [](int round, int64_t piece, void* step) {
           static_cast<Step*>(step)->do_piece(round, piece);
         },
         [](int round, void* step) { static_cast<Step*>(step)->after(round); }, this});
  }

  void do_piece(int number, int64_t piece) {
    const Round& round = rounds_[number];
    const Work& work = works_[round.begin];
    if (work.kind == Kind::gradients) return gradient_piece(piece);
    if (work.kind == Kind::update) return update_piece(piece);
    if (work.kind == Kind::pack) return pack_piece(piece);
    if (!is_of_blocks(round)) return large_piece(work, piece);
    const int64_t from = piece * kRowBlock, to = least(from + kRowBlock, call_.samples);
    for (int w = round.begin; w < round.end; ++w) take(works_[w], from, to);
  }

  void after(int number) {
    if (works_[rounds_[number].begin].kind != Kind::gradients) return;
    const double samples = double(call_.samples);
    double recon = 0.0, kl = 0.0, squares = 0.0;
    for (int64_t i = 0; i < recon_parts(); ++i) recon += plan_.recon[i];
    for (int64_t i = 0; i < blocks_ && plan_.sampled; ++i) kl += plan_.kl[i];
    const int64_t parts = grad_starts_[plan_.layer_count] + learned_count_;
    for (int64_t i = 0; i < parts; ++i) squares += plan_.squares[i];
    Result& result = *result_;
    result.recon = recon / samples;
    result.kl = kl / samples;
    result.loss = (recon + call_.beta * kl) * call_.scale;
    const bool finite = std::isfinite(float(result.loss));
    result.norm = finite ? std::sqrt(squares) : std::numeric_limits<double>::quiet_NaN();
    result.skipped = !(result.norm <= call_.limit);
    double divisor = 1.0;
    if (call_.clip > 0 && result.norm > call_.clip) divisor = result.norm / call_.clip;
    multiplier_ = float(1.0 / divisor);
  }

  // --- forward and backward ----------------------------------------------------------------------

  void take(const Work& work, int64_t from, int64_t to) {
    switch (work.kind) {
      case Kind::input: return input(from, to);
      case Kind::forward:
        for (int64_t p = 0; p < panels(layer(work.layer)); ++p) forward(work.layer, p, from, to);
        return;
      case Kind::sample: return sample(from, to);
      case Kind::loss: return loss(from, to, 0, plan_.columns, from / kRowBlock);
      case Kind::backward:
        for (int64_t p = 0; p < parts(made_inputs(work.layer), P); ++p) {
          backward(work.layer, p, from, to);
        }
        return;
      default: return latent(from, to);
    }
  }

  // Consecutive pieces are groups of samples of one panel, whose weights are then in the cache.
  void large_piece(const Work& work, int64_t piece) {
    const int64_t groups = parts(call_.samples, kTileRows);
    const int64_t panel = piece / groups, from = piece % groups * kTileRows;
    const int64_t to = least(from + kTileRows, call_.samples);
    if (work.kind == Kind::forward) {
      forward(work.layer, panel, from, to);
    } else {
      backward(work.layer, panel, from, to);
    }
  }

  // How many inputs of a layer come from another layer or from the sampling.
  VF_FN int64_t made_inputs(int i) { return layer(i).in - layer(i).condition; }

  VF_FN T rounded(T x) const {
    if (!plan_.bf16) return x;
    const auto bits = M::bits(x);
    const auto nearest = (bits + (0x7fffu + ((bits >> 16) & 1u))) & 0xffff0000u;
    return M::select(x == x, M::from_bits(nearest), x);
  }

  void input(int64_t from, int64_t to) {
    const int64_t columns = plan_.columns;
    const bool is_input = plan_.target.data == nullptr;
    const Matrix& x = is_input ? layer(0).input : plan_.target;
    for (int64_t r = from; r < to; ++r) {
      float* out = x.data + r * x.stride;
      read_sample(r, out);
      if (is_input) continue;
      float* const input = layer(0).input.data + r * layer(0).input.stride;
      for (int64_t i = 0; i < columns; i += W) {
        const T v = load_some<M>(out + i, columns - i);
        store_some<M>(rounded(plan_.counts ? M::log1p(v) : v), input + i, columns - i);
      }
    }
    if (plan_.condition == 0) return;
    for (int i = 0; i < plan_.layer_count; ++i) {
      const Layer& l = layer(i);
      for (int64_t r = from; r < to && l.condition > 0; ++r) {
        std::memcpy(l.input.data + r * l.input.stride + l.in - l.condition,
                    call_.condition + r * l.condition, size_t(l.condition) * sizeof(float));
      }
    }
  }

  void read_sample(int64_t r, float* out) {
    const int64_t columns = plan_.columns;
    const int64_t begin = (call_.index == nullptr ? r : call_.index[r]) * columns;
    const DType dtype = call_.dtype;
    const bool is_bytes = dtype == DType::u8 || dtype == DType::boolean;
    if (plan_.counts || !is_bytes) {
      return cpu::read<M>(dtype, call_.data, begin, columns, !plan_.counts, out);
    }
    const uint8_t* bytes = static_cast<const uint8_t*>(call_.data) + begin;
    if (call_.binary_key == nullptr) {
      return cpu::scale_bytes<M>(bytes, out, columns, dtype == DType::boolean);
    }
    constexpr int64_t kRun = 1024;
    uint8_t drawn[kRun];
    const cpu::Philox<M> philox(call_.binary_key);
    for (int64_t at = 0; at < columns; at += kRun) {
      const int64_t run = least(kRun, columns - at);
      cpu::binarize<M>(philox, (call_.first_row + r) * columns + at, bytes + at, drawn, run);
      cpu::scale_bytes<M>(drawn, out + at, run, true);
    }
  }

  void forward(int i, int64_t panel, int64_t from, int64_t to) {
    const Layer& l = layer(i);
    const bool last = i == plan_.layer_count - 1;
    const int64_t column = panel * P, columns = least(P, l.out - column);
    with_columns<M>(columns, [&](auto n) {
      constexpr int N = decltype(n)::count;
      multiply_tiles<M, N>(parts(to - from, R), l.input.data + from * l.input.stride,
                           l.input.stride, 1, l.panels + panel * P * l.in, P, l.in,
                           [&](int64_t tile, auto& c) {
                             const int64_t row = from + tile * R;
#pragma GCC unroll 3
                             for (int j = 0; j < N; ++j) {
                               const T bias = M::load(l.padded_bias + column + j * W);
                               const int64_t left = columns - j * W;
#pragma GCC unroll 8
                               for (int r = 0; r < R; ++r) {
                                 const int64_t at = column + j * W;
                                 finish_forward(l, last, row + r, at, left, c.v[r][j] + bias);
                               }
                             }
                           });
    });
    if (last && loss_with_layer()) {
      // While the logits are in the cache. Their gradient overwrites them.
      for (int64_t block = from; block < to; block += kRowBlock) {
        loss(block, least(block + kRowBlock, to), column, column + columns,
             block / kRowBlock * panels(l) + panel);
      }
    }
  }

  static VF_FN T sigmoid(T x) {
    const T e = M::exp_nonpositive(-M::abs(x));
    return M::select(x >= 0.0f, M::splat(1.0f), e) / (1.0f + e);
  }

  VF_FN void finish_forward(const Layer& l, bool last, int64_t row, int64_t at, int64_t left, T v) {
    const Matrix& to = last ? l.grad : l.output;
    v = rounded(v);
    if (l.after == Activation::relu) {
      v = M::at_least(v, 0.0f);
    } else if (l.after == Activation::silu) {
      store_some<M>(v, l.before.data + row * l.before.stride + at, left);
      v = rounded(v * sigmoid(v));
    }
    store_some<M>(v, to.data + row * to.stride + at, left);
  }

  // The gradient of the layer's inputs, and from it the gradient before their activation.
  void backward(int i, int64_t panel, int64_t from, int64_t to) {
    const Layer& l = layer(i);
    const int64_t column = panel * P, columns = least(P, made_inputs(i) - column);
    const bool to_z = i == plan_.encoder_layers && plan_.sampled;
    const Layer& below = layer(i - 1);
    const float* weight = l.rows == nullptr ? call_.weights + l.weight : l.rows;
    with_columns<M>(columns, [&](auto n) {
      constexpr int N = decltype(n)::count;
      multiply_tiles<M, N>(parts(to - from, R), l.grad.data + from * l.grad.stride, l.grad.stride,
                           1, weight + column, l.row_stride, l.out, [&](int64_t tile, auto& c) {
                             const int64_t row = from + tile * R;
#pragma GCC unroll 8
                             for (int r = 0; r < R; ++r) {
#pragma GCC unroll 3
                               for (int j = 0; j < N; ++j) {
                                 const int64_t at = column + j * W;
                                 finish_backward(below, to_z, row + r, at, columns - j * W,
                                                 c.v[r][j]);
                               }
                             }
                           });
    });
  }

  VF_FN void finish_backward(const Layer& below, bool to_z, int64_t row, int64_t at, int64_t left,
                             T g) {
    if (to_z)
      return store_some<M>(rounded(g), plan_.grad_z.data + row * plan_.grad_z.stride + at, left);
    if (below.after == Activation::relu) {
      const T h = load_some<M>(below.output.data + row * below.output.stride + at, left);
      g = M::select(h <= 0.0f, T{}, g);
    } else if (below.after == Activation::silu) {
      const T v = load_some<M>(below.before.data + row * below.before.stride + at, left);
      const T s = sigmoid(v);
      g = g * (s * (1.0f + v * (1.0f - s)));
    }
    store_some<M>(rounded(g), below.grad.data + row * below.grad.stride + at, left);
  }

  // --- likelihood --------------------------------------------------------------------------------

  // The likelihood of columns [begin, end) of x. The parameters' gradients overwrite them.
  void loss(int64_t from, int64_t to, int64_t begin, int64_t end, int64_t part) {
    using Span = void (Step::*)(int64_t, int64_t, int64_t, int64_t, int64_t);
#define VF_ONE(name, L) &Step::template loss_of<likelihoods::L>,
    static constexpr Span spans[] = {VF_LIKELIHOODS(VF_ONE)};
#undef VF_ONE
    (this->*spans[plan_.likelihood])(from, to, begin, end, part);
  }

  template <class L>
  void loss_of(int64_t from, int64_t to, int64_t begin, int64_t end, int64_t part) {
    constexpr int count = L::params;
    const Matrix& x = plan_.target.data == nullptr ? layer(0).input : plan_.target;
    const T scale = M::splat(float(call_.scale));
    if constexpr (cpu::kHasNonzeroPart<L>) {
      constexpr int64_t kRun = 256;
      float values[count][kRun] = {}, slopes[count][kRun] = {}, grads[count][kRun] = {};
      const float* p[kMaxParams] = {};
      float* g[kMaxParams] = {};
      for (int j = 0; j < count; ++j) {
        p[j] = values[j];
        g[j] = grads[j];
      }
      cpu::Sums<L, M, true> sums;
      for (int64_t r = from; r < to; ++r) {
        for (int64_t first = begin; first < end; first += kRun) {
          const int64_t n = least(kRun, end - first);
          for (int j = 0; j < count; ++j) {
            for (int64_t i = 0; i < n; i += W) {
              T slope;
              M::store(param(j, r, first + i, n - i, slope), values[j] + i);
              M::store(slope, slopes[j] + i);
            }
          }
          sums.begin_block();
          cpu::block<L, M, true, true, false>(p, x.data + r * x.stride + first, g, n, scale, sums);
          for (int j = 0; j < count; ++j) {
            for (int64_t i = 0; i < n; i += W) {
              keep(j, r, first + i, n - i, M::load(grads[j] + i) * M::load(slopes[j] + i));
            }
          }
        }
      }
      plan_.recon[part] = sums.total();
    } else {
      typename M::Sum sum;
      for (int64_t r = from; r < to; ++r) {
        const float* const target = x.data + r * x.stride;
        const auto at = [&](int64_t i, int64_t left) __attribute__((always_inline)) {
          T p[count], slopes[count], grad[count], nll;
          for (int j = 0; j < count; ++j) p[j] = param(j, r, i, left, slopes[j]);
          T t = load_some<M>(target + i, left);
          if constexpr (L::target == likelihoods::Target::level) t = nearest_level(t);
          L::template term<M, true, true>(p, t, nll, grad);
          for (int j = 0; j < count; ++j) keep(j, r, i, left, scale * grad[j] * slopes[j]);
          sum.add(left < W ? M::first(left, nll) : nll);
        };
        int64_t i = begin;
        for (; i + W <= end; i += W) at(i, W);
        if (i < end) at(i, end - i);
      }
      plan_.recon[part] = sum.total();
    }
  }

  // 255 x to the nearest integer; halves to even.
  static VF_FN T nearest_level(T x) {
    const float shift = 0x1.8p23f;
    return (255.0f * x + shift) - shift;
  }

  // Parameter j of elements i, ... of sample r, and its derivative in the value it is computed
  // from.
  VF_FN T param(int j, int64_t r, int64_t i, int64_t left, T& slope) {
    const Param& of = plan_.params[j];
    slope = M::splat(1.0f);
    if (of.source == Source::fixed) return M::splat(of.value);
    if (of.source == Source::learned) {
      slope = load_some<M>(of.slopes + i, left);
      return load_some<M>(of.values + i, left);
    }
    const Matrix& made = layer(plan_.layer_count - 1).grad;
    return transformed(
        of, load_some<M>(made.data + r * made.stride + of.plane * plan_.columns + i, left), slope);
  }

  static VF_FN T transformed(const Param& of, T v, T& slope) {
    slope = M::splat(of.factor);
    if (of.transform == Transform::none) return of.factor * v;
    if (of.transform == Transform::exp) return slope = of.factor * M::exp(v);
    const T above = v - of.least;
    const T e = M::exp_nonpositive(-M::abs(above));
    slope = of.factor * (M::select(above >= 0.0f, M::splat(1.0f), e) / (1.0f + e));
    return of.factor * (of.least + (M::at_least(above, 0.0f) + M::log1p_unit(e)));
  }

  // Keeps the loss's gradient in the value that parameter j is computed from.
  VF_FN void keep(int j, int64_t r, int64_t i, int64_t left, T grad) {
    const Param& of = plan_.params[j];
    if (of.source == Source::network) {
      const Matrix& to = layer(plan_.layer_count - 1).grad;
      float* const at = to.data + r * to.stride + of.plane * plan_.columns + i;
      store_some<M>(rounded(grad), at, left);
    } else if (of.source == Source::learned) {
      store_some<M>(grad, of.grad.data + r * of.grad.stride + i, left);
    }
  }

  void make_learned(const Param& of) {
    const int64_t each = plan_.columns / of.count;  // features that share a value
    const float* const weights = call_.weights + of.place;
    for (int64_t i = 0; i < plan_.columns; i += W) {
      float v[W];
      const int64_t last = plan_.columns - 1;
      for (int64_t k = 0; k < W; ++k) v[k] = weights[least(i + k, last) / each];
      T slope;
      M::store(transformed(of, M::load(v), slope), of.values + i);
      M::store(slope, of.slopes + i);
    }
  }

  // Returns the sum of its squares.
  double learned_gradient(const Param& of) {
    const int64_t each = plan_.columns / of.count;
    double squares = 0.0;
    for (int64_t k = 0; k < of.count; k += each == 1 ? W : 1) {
      float* const out = call_.gradients + of.place + k;
      const int64_t begin = k * each, end = each == 1 ? least(k + W, of.count) : begin + each;
      typename M::Sum total;
      for (int64_t i = begin; i < end; i += W) {
        T sum = {};
        for (int64_t r = 0; r < call_.samples; ++r) {
          sum += load_some<M>(of.grad.data + r * of.grad.stride + i, end - i);
        }
        if (end - i < W) sum = M::first(end - i, sum);
        if (each == 1) store_some<M>(sum, out, end - i);
        total.add(each == 1 ? sum * sum : sum);
      }
      if (each == 1) {
        squares += total.total();
      } else {
        *out = float(total.total());
        squares += double(*out) * double(*out);
      }
    }
    return squares;
  }

  // --- the latent --------------------------------------------------------------------------------

  void sample(int64_t from, int64_t to) {
    const int64_t L = plan_.latent;
    const Matrix& made = layer(plan_.encoder_layers - 1).output;
    const Matrix& z = layer(plan_.encoder_layers).input;
    const cpu::Philox<M> philox(call_.key);
    constexpr int64_t kRun = 256;
    float noise[cpu::noise_capacity<M>(kRun)];
    typename M::Sum kl;
    for (int64_t r = from; r < to; ++r) {
      const float* mu = made.data + r * made.stride;
      const float* logvar = mu + L;
      for (int64_t begin = 0; begin < L; begin += kRun) {
        const int64_t run = least(kRun, L - begin);
        const float* eps = cpu::normals<M>(philox, r * L + begin, run, noise) - begin;
        for (int64_t i = begin; i < begin + run; i += W) {
          const int64_t left = begin + run - i;
          const T m = load_some<M>(mu + i, left), lv = load_some<M>(logvar + i, left);
          const T sigma = gaussian::standard_deviation<M>(lv), e = load_some<M>(eps + i, left);
          store_some<M>(rounded(gaussian::sample<M>(m, sigma, e)), z.data + r * z.stride + i, left);
          store_some<M>(gaussian::sample_grad_logvar<M>(sigma, e),
                        plan_.slope.data + r * plan_.slope.stride + i, left);
          const T term = gaussian::kl_standard<M>(m, lv, M::exp(lv));
          kl.add(left < W ? M::first(left, term) : term);
        }
      }
    }
    plan_.kl[from / kRowBlock] = kl.total();
  }

  void latent(int64_t from, int64_t to) {
    const int64_t L = plan_.latent;
    const Layer& below = layer(plan_.encoder_layers - 1);
    const float weight = float(call_.beta * call_.scale);
    for (int64_t r = from; r < to; ++r) {
      const float* mu = below.output.data + r * below.output.stride;
      const float* grad_z = plan_.grad_z.data + r * plan_.grad_z.stride;
      const float* slope = plan_.slope.data + r * plan_.slope.stride;
      float* grad = below.grad.data + r * below.grad.stride;
      for (int64_t i = 0; i < L; i += W) {
        const int64_t left = L - i;
        const T g = load_some<M>(grad_z + i, left), s = load_some<M>(slope + i, left);
        const T variance = M::exp(load_some<M>(mu + L + i, left));
        store_some<M>(rounded(g + weight * load_some<M>(mu + i, left)), grad + i, left);
        store_some<M>(rounded(g * s + weight * gaussian::kl_standard_grad_logvar<M>(variance)),
                      grad + L + i, left);
      }
    }
  }

  // --- gradients of weights ----------------------------------------------------------------------

  static constexpr int64_t kGradRows = 64;

  void gradient_piece(int64_t piece) {
    const int64_t beyond = piece - grad_starts_[plan_.layer_count];
    if (beyond >= 0) {
      plan_.squares[piece] = learned_gradient(plan_.params[learned_[beyond]]);
      return;
    }
    const int i = layer_of(grad_starts_, piece);
    const int64_t within = piece - grad_starts_[i], down = parts(layer(i).out, kGradRows);
    const Layer& l = layer(i);
    if (piece == grad_starts_[i + 1] - 1) {
      plan_.squares[piece] = l.bias < 0 ? 0.0 : bias_gradient(l);
    } else {
      plan_.squares[piece] = weight_gradient(l, within / down, within % down);
    }
  }

  double weight_gradient(const Layer& l, int64_t panel, int64_t chunk) {
    const int64_t column = panel * P, columns = least(P, l.in - column);
    const int64_t first = chunk * kGradRows, last = least(first + kGradRows, l.out);
    double squares = 0.0;
    with_columns<M>(columns, [&](auto n) {
      constexpr int N = decltype(n)::count;
      typename M::Sum sum;
      for (int64_t begin = 0; begin < call_.samples; begin += 128) {
        const int64_t samples = least(128, call_.samples - begin);
        const bool ends = begin + samples == call_.samples;
        for (int64_t row = first; row < last; row += R) {
          float* const out = call_.gradients + l.weight + row * l.in + column;
          const int64_t rows = least(R, last - row);
          Accumulators<M, N> c = {};
          if (begin > 0) {
            for (int r = 0; r < rows; ++r) {
              for (int j = 0; j < N; ++j) {
                c.v[r][j] = load_some<M>(out + r * l.in + j * W, columns - j * W);
              }
            }
          }
          multiply<M, N>(l.grad.data + begin * l.grad.stride + row, 1, l.grad.stride,
                         l.input.data + begin * l.input.stride + column, l.input.stride, samples,
                         c);
          for (int r = 0; r < rows; ++r) {
            T square = {};
            for (int j = 0; j < N; ++j) {
              const int64_t left = columns - j * W;
              const T g = left < W ? M::first(left, c.v[r][j]) : c.v[r][j];
              store_some<M>(g, out + r * l.in + j * W, left);
              square += g * g;
            }
            if (ends) sum.add(square);
          }
        }
      }
      squares = sum.total();
    });
    return squares;
  }

  double bias_gradient(const Layer& l) {
    typename M::Sum squares;
    for (int64_t i = 0; i < l.out; i += W) {
      T sum = {};
      for (int64_t r = 0; r < call_.samples; ++r)
        sum += M::load(l.grad.data + r * l.grad.stride + i);
      if (l.out - i < W) sum = M::first(l.out - i, sum);
      store_some<M>(sum, call_.gradients + l.bias + i, l.out - i);
      squares.add(sum * sum);
    }
    return squares.total();
  }

  // --- Adam --------------------------------------------------------------------------------------

  void update_piece(int64_t piece) {
    const bool skipped = result_->skipped;
    if (skipped && call_.average == nullptr) return;
    // A ReLU that is off for all samples has a gradient of zero. Its first moment shrinks by a
    // tenth with every step, and is subnormal after some 800. Arithmetic on subnormal numbers takes
    // a hundred times as long, and made a step half as long again. They are negligible beside a
    // usual eps.
    const cpu::FlushSubnormals flushed(!without_eps());
    const int64_t beyond = piece - panel_starts_[plan_.layer_count];
    if (beyond >= 0) {
      const Param& of = plan_.params[learned_[beyond]];
      return update_part(of.place, of.count, skipped);
    }
    const int i = layer_of(panel_starts_, piece);
    Layer& l = layer(i);
    const int64_t panel = piece - panel_starts_[i];
    const int64_t row = panel * P, rows = least(P, l.out - row);
    update_part(l.weight + row * l.in, rows * l.in, skipped);
    if (l.bias >= 0) update_part(l.bias + row, rows, skipped);
    if (!skipped) pack_panel(l, panel);
  }

  VF_FN void update_part(int64_t place, int64_t count, bool skipped) {
    if (!skipped) adam(place, count, multiplier_);
    if (call_.average != nullptr) average(place, count);
  }

  void pack_piece(int64_t piece) {
    const int i = layer_of(panel_starts_, piece);
    pack_panel(layer(i), piece - panel_starts_[i]);
  }

  // Whether eps is too small to hide the errors of estimates, and of zeros for subnormal numbers.
  VF_FN bool without_eps() const { return !(call_.eps >= 1e-15); }

  // Kingma & Ba 2015; decoupled: Loshchilov & Hutter 2019.
  void adam(int64_t place, int64_t count, float multiplier) {
    float* const weights = call_.weights + place;
    const float* const gradients = call_.gradients + place;
    float* const firsts = call_.first + place;
    float* const seconds = call_.second + place;
    const float sign = call_.maximize ? -multiplier : multiplier;
    const float toward_first = float(1.0 - call_.beta1);
    const float beta2 = float(call_.beta2), toward_second = float(1.0 - call_.beta2);
    const float keep = call_.decoupled ? float(1.0 - call_.lr * call_.weight_decay) : 1.0f;
    const float decay = call_.decoupled ? 0.0f : float(call_.weight_decay);
    const float size = float(call_.lr / call_.bias1), eps = float(call_.eps);
    const float root = float(1.0 / std::sqrt(call_.bias2));
    const bool exact = without_eps();
    const auto at = [&](int64_t i, int64_t left) __attribute__((always_inline)) {
      T w = load_some<M>(weights + i, left) * keep;
      const T g = sign * load_some<M>(gradients + i, left) + decay * w;
      T m = load_some<M>(firsts + i, left), v = load_some<M>(seconds + i, left);
      m = m + toward_first * (g - m);
      v = beta2 * v + toward_second * g * g;
      const T step = exact ? m / (M::sqrt(v) * root + eps) : quotient(m, v, root, eps);
      store_some<M>(w - size * step, weights + i, left);
      store_some<M>(m, firsts + i, left);
      store_some<M>(v, seconds + i, left);
    };
    int64_t i = 0;
    for (; i + W <= count; i += W) at(i, W);
    if (i < count) at(i, count - i);
  }

  // m / (sqrt(v) root + eps). Levels with good estimates use them with Newton steps: square root
  // and division would take as long as everything else together.
  static VF_FN T quotient(T m, T v, float root, float eps) {
    if constexpr (M::width == 16) {
      const float most = std::numeric_limits<float>::max();
      const T quotient = m * M::reciprocal(M::sqrt_positive(M::at_most(v, most)) * root + eps);
      return M::select(v > most, T{}, quotient);
    } else {
      return m / (M::sqrt(v) * root + eps);
    }
  }

  void average(int64_t place, int64_t count) {
    const float weight = float(call_.average_weight);
    float* const to = call_.average + place;
    const float* const from = call_.weights + place;
    for (int64_t i = 0; i < count; i += W) {
      const T a = load_some<M>(to + i, count - i), w = load_some<M>(from + i, count - i);
      store_some<M>(a + weight * (w - a), to + i, count - i);
    }
  }

  void pack_panel(Layer& l, int64_t panel) {
    const float* const weight = call_.weights + l.weight;
    float* const out = l.panels + panel * P * l.in;
    for (int64_t group = 0; group < kVectors<M>; ++group) {
      const int64_t row = panel * P + group * W;
      for (int64_t k = 0; k < l.in; k += W) {
        T block[W];
        for (int64_t r = 0; r < W; ++r) {
          block[r] = row + r < l.out ? load_some<M>(weight + (row + r) * l.in + k, l.in - k) : T{};
        }
        transpose(block);
        const int64_t left = least(W, l.in - k);
        for (int64_t r = 0; r < left; ++r) {
          M::store(rounded(block[r]), out + (k + r) * P + group * W);
        }
      }
    }
    for (int64_t r = panel * P; r < least((panel + 1) * P, l.out); ++r) {
      if (l.bias >= 0) l.padded_bias[r] = rounded(M::splat(call_.weights[l.bias + r]))[0];
      for (int64_t k = 0; k < l.in && l.rows != nullptr; k += W) {
        const int64_t left = l.in - k;
        store_some<M>(rounded(load_some<M>(weight + r * l.in + k, left)),
                      l.rows + r * l.row_stride + k, left);
      }
    }
  }

  // Each stage interleaves the two halves; after log2(W) stages rows are columns.
  static VF_FN void transpose(T (&block)[W]) {
#pragma GCC unroll 4
    for (int64_t stage = 1; stage < W; stage *= 2) {
      T next[W];
#pragma GCC unroll 8
      for (int i = 0; i < W / 2; ++i) {
        next[2 * i] = M::template zip<false>(block[i], block[i + W / 2]);
        next[2 * i + 1] = M::template zip<true>(block[i], block[i + W / 2]);
      }
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i) block[i] = next[i];
    }
  }
};

template <class M>
constexpr Kernels kernels() {
  return {kPanel<M>,
          [](Plan& plan, const Call& call, Result& result, cpu::RunRounds rounds) {
            Step<M>(plan, call).run(result, rounds);
          },
          [](Plan& plan, const Call& call, cpu::RunRounds rounds) {
            Step<M>(plan, call).pack(rounds);
          }};
}

}  // namespace vae_fast::step
