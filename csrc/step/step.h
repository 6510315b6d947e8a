// The training step, for one SIMD level: rounds of pieces, one round after another.
//
//   x, forward, loss, backward   samples in blocks; large layers by panels of features as well
//   gradients of weights         by panels and rows
//   Adam                         by panels, which it writes for the next step
//
// A round's pieces are cut by sizes alone and touch nothing of one another; partial sums have a place
// each and are added in order. So threads and load change no bit.
#pragma once

#include "cpu/gather.h"
#include "cpu/normal.h"
#include "likelihoods/list.h"
#include "ops/gather.h"
#include "ops/gaussian.h"
#include "step/plan.h"
#include "step/product.h"

namespace vae_fast::step {

using cpu::Threads;

// The likelihoods that a step may have, in the order of names in native.cpp.
template <class Body>
void with_likelihood(int which, const Body& body) {
  switch (which) {
    case 0: return body(likelihoods::Bernoulli{});
    case 1: return body(likelihoods::Gaussian{});
    default: return body(likelihoods::Laplace{});
  }
}

// body(piece) for each piece of a round.
template <class Body>
void round(const Threads& threads, int64_t pieces, const Body& body) {
  threads.run(
      0, pieces, 1,
      [](int64_t begin, int64_t end, void* context) {
        for (int64_t i = begin; i < end; ++i) (*static_cast<const Body*>(context))(i);
      },
      const_cast<void*>(static_cast<const void*>(&body)));
}

VF_FN int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
VF_FN int64_t parts(int64_t count, int64_t size) { return (count + size - 1) / size; }

template <class M>
class Step {
 public:
  using T = typename M::T;
  static constexpr int64_t W = M::width, P = kPanel<M>, R = kTile<M>;

  VF_FN Step(Plan& plan, const Call& call, const Threads& threads)
      : plan_(plan), call_(call), threads_(threads), blocks_(parts(call.samples, kRowBlock)) {}

  void run(Result& result) {
    forward_and_backward();
    const int64_t count = weight_gradients();
    const double samples = double(call_.samples);
    double recon = 0.0, kl = 0.0, squares = 0.0;
    for (int64_t i = 0; i < recon_parts(); ++i) recon += plan_.recon[i];
    for (int64_t i = 0; i < blocks_ && plan_.sampled; ++i) kl += plan_.kl[i];
    for (int64_t i = 0; i < count; ++i) squares += plan_.squares[i];
    result.recon = recon / samples;
    result.kl = kl / samples;
    result.loss = (recon + call_.beta * kl) * call_.scale;
    const bool finite = std::isfinite(float(result.loss));
    result.norm = finite ? std::sqrt(squares) : std::numeric_limits<double>::quiet_NaN();
    result.skipped = !(result.norm <= call_.limit);
    if (!call_.update) return;
    double divisor = 1.0;
    if (call_.clip > 0 && result.norm > call_.clip) divisor = result.norm / call_.clip;
    if (!result.skipped || call_.average != nullptr) update(result.skipped, float(1.0 / divisor));
  }

  // Writes what is made of the weights, after something else has changed them.
  void pack() {
    each_panel([&](Layer& layer, int64_t panel) { pack_panel(layer, panel); });
  }

 private:
  Plan& plan_;
  const Call& call_;
  const Threads& threads_;
  int64_t blocks_;

  static VF_FN bool small(const Layer& layer) { return layer.in * layer.out <= kSmall; }
  static VF_FN int64_t panels(const Layer& layer) { return parts(layer.out, P); }
  VF_FN Layer& layer(int i) { return plan_.layers[i]; }
  VF_FN bool loss_with_layer() const { return plan_.network_params == 1; }
  VF_FN int64_t recon_parts() {
    return blocks_ * (loss_with_layer() ? panels(layer(plan_.layer_count - 1)) : 1);
  }

  // --- forward and backward ----------------------------------------------------------------------

  // What a piece of samples goes through, in order: the place of x, a layer forward, and so on.
  enum class Kind { input, forward, sample, loss, backward, latent };
  struct Work {
    Kind kind;
    int layer;
  };

  void forward_and_backward() {
    Work works[4 * kMostLayers];
    int count = 0;
    const int layers = plan_.layer_count, encoder = plan_.encoder_layers;
    works[count++] = {Kind::input, 0};
    for (int i = 0; i < layers; ++i) {
      if (i == encoder && plan_.sampled) works[count++] = {Kind::sample, 0};
      works[count++] = {Kind::forward, i};
    }
    if (!loss_with_layer()) works[count++] = {Kind::loss, 0};
    for (int i = layers - 1; i > 0; --i) {
      works[count++] = {Kind::backward, i};
      if (i == encoder && plan_.sampled) works[count++] = {Kind::latent, 0};
    }
    for (int begin = 0; begin < count;) {
      if (is_large(works[begin])) {
        large_round(works[begin++]);
        continue;
      }
      int end = begin;
      while (end < count && !is_large(works[end])) ++end;
      round(threads_, blocks_, [&](int64_t block) {
        const int64_t from = block * kRowBlock, to = least(from + kRowBlock, call_.samples);
        for (int w = begin; w < end; ++w) take(works[w], from, to);
      });
      begin = end;
    }
  }

  VF_FN bool is_large(const Work& work) {
    return (work.kind == Kind::forward || work.kind == Kind::backward) &&
           !small(layer(work.layer));
  }

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
      case Kind::latent: return latent(from, to);
    }
  }

  void large_round(const Work& work) {
    const bool is_forward = work.kind == Kind::forward;
    const int64_t groups = parts(call_.samples, kTileRows);
    const int64_t across =
        is_forward ? panels(layer(work.layer)) : parts(made_inputs(work.layer), P);
    // One panel's groups of samples follow one another: its weights are in the cache by then.
    round(threads_, groups * across, [&](int64_t piece) {
      const int64_t panel = piece / groups, from = piece % groups * kTileRows;
      const int64_t to = least(from + kTileRows, call_.samples);
      if (is_forward) {
        forward(work.layer, panel, from, to);
      } else {
        backward(work.layer, panel, from, to);
      }
    });
  }

  // The inputs of a layer that another layer, or the sampling, has made.
  VF_FN int64_t made_inputs(int i) { return layer(i).in - layer(i).condition; }

  void input(int64_t from, int64_t to) {
    const int64_t columns = plan_.columns;
    const Matrix& x = layer(0).input;
    for (int64_t r = from; r < to; ++r) {
      const int64_t row = call_.index == nullptr ? r : call_.index[r];
      float* out = x.data + r * x.stride;
      if (call_.dtype == DType::f32) {
        std::memcpy(out, static_cast<const float*>(call_.data) + row * columns,
                    size_t(columns) * sizeof(float));
        continue;
      }
      const uint8_t* bytes = static_cast<const uint8_t*>(call_.data) + row * columns;
      if (call_.binary_key == nullptr) {
        cpu::scale_bytes<M>(bytes, out, columns, call_.dtype == DType::boolean);
        continue;
      }
      constexpr int64_t kRun = 1024;
      uint8_t drawn[kRun];
      const cpu::Philox<M> philox(call_.binary_key);
      for (int64_t begin = 0; begin < columns; begin += kRun) {
        const int64_t run = least(kRun, columns - begin);
        cpu::binarize<M>(philox, (call_.first_row + r) * columns + begin, bytes + begin, drawn,
                         run);
        cpu::scale_bytes<M>(drawn, out + begin, run, true);
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

  void forward(int i, int64_t panel, int64_t from, int64_t to) {
    const Layer& l = layer(i);
    const bool last = i == plan_.layer_count - 1;
    const int64_t column = panel * P, columns = least(P, l.out - column);
    with_columns<M>(columns, [&](auto n) {
      constexpr int N = decltype(n)::count;
      multiply_tiles<M, N>(
          parts(to - from, R), l.input.data + from * l.input.stride, l.input.stride, 1,
          l.panels + panel * P * l.in, P, l.in, [&](int64_t tile, auto& c) {
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
      // While the logits are in the cache; their gradient takes their place.
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
    if (l.after == Activation::relu) {
      v = M::at_least(v, 0.0f);
    } else if (l.after == Activation::silu) {
      store_some<M>(v, l.before.data + row * l.before.stride + at, left);
      v = v * sigmoid(v);
    }
    store_some<M>(v, to.data + row * to.stride + at, left);
  }

  // Gradient of the layer's inputs, and from it that before the activation that made them.
  void backward(int i, int64_t panel, int64_t from, int64_t to) {
    const Layer& l = layer(i);
    const int64_t column = panel * P, columns = least(P, made_inputs(i) - column);
    const bool to_z = i == plan_.encoder_layers && plan_.sampled;
    const Layer& below = layer(i - 1);
    const float* weight = l.rows == nullptr ? call_.weights + l.weight : l.rows;
    with_columns<M>(columns, [&](auto n) {
      constexpr int N = decltype(n)::count;
      multiply_tiles<M, N>(
          parts(to - from, R), l.grad.data + from * l.grad.stride, l.grad.stride, 1,
          weight + column, l.row_stride, l.out, [&](int64_t tile, auto& c) {
            const int64_t row = from + tile * R;
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) {
#pragma GCC unroll 3
              for (int j = 0; j < N; ++j) {
                const int64_t at = column + j * W;
                finish_backward(below, to_z, row + r, at, columns - j * W, c.v[r][j]);
              }
            }
          });
    });
  }

  VF_FN void finish_backward(const Layer& below, bool to_z, int64_t row, int64_t at, int64_t left,
                             T g) {
    if (to_z) return store_some<M>(g, plan_.grad_z.data + row * plan_.grad_z.stride + at, left);
    if (below.after == Activation::relu) {
      const T h = load_some<M>(below.output.data + row * below.output.stride + at, left);
      g = M::select(h <= 0.0f, T{}, g);
    } else if (below.after == Activation::silu) {
      const T v = load_some<M>(below.before.data + row * below.before.stride + at, left);
      const T s = sigmoid(v);
      g = g * (s * (1.0f + v * (1.0f - s)));
    }
    store_some<M>(g, below.grad.data + row * below.grad.stride + at, left);
  }

  // The likelihood of columns [begin, end) of x; the parameters' gradients take their place.
  void loss(int64_t from, int64_t to, int64_t begin, int64_t end, int64_t part) {
    with_likelihood(plan_.likelihood, [&](auto likelihood) {
      loss_of<decltype(likelihood)>(from, to, begin, end, part);
    });
  }

  template <class L>
  void loss_of(int64_t from, int64_t to, int64_t begin, int64_t end, int64_t part) {
    constexpr int count = L::params;
    const Matrix& params = layer(plan_.layer_count - 1).grad;
    const Matrix& x = layer(0).input;
    const float scale = float(call_.scale);
    const int given = plan_.network_params;
    typename M::Sum sum;
    for (int64_t r = from; r < to; ++r) {
      float* const row = params.data + r * params.stride;
      const float* const target = x.data + r * x.stride;
      const auto at = [&](int64_t i, int64_t left) __attribute__((always_inline)) {
        T p[count], grad[count], nll;
        for (int j = 0; j < count; ++j) {
          p[j] = j < given ? load_some<M>(row + j * plan_.columns + i, left)
                           : M::splat(plan_.fixed_params[j]);
        }
        L::template term<M, true, true>(p, load_some<M>(target + i, left), nll, grad);
        for (int j = 0; j < count; ++j) {
          if (j < given) store_some<M>(scale * grad[j], row + j * plan_.columns + i, left);
        }
        sum.add(left < W ? M::first(left, nll) : nll);
      };
      int64_t i = begin;
      for (; i + W <= end; i += W) at(i, W);
      if (i < end) at(i, end - i);
    }
    plan_.recon[part] = sum.total();
  }

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
          store_some<M>(gaussian::sample<M>(m, sigma, e), z.data + r * z.stride + i, left);
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
        store_some<M>(g + weight * load_some<M>(mu + i, left), grad + i, left);
        store_some<M>(g * s + weight * gaussian::kl_standard_grad_logvar<M>(variance),
                      grad + L + i, left);
      }
    }
  }

  // --- gradients of weights ----------------------------------------------------------------------

  static constexpr int64_t kGradRows = 64;

  // Returns how many partial sums of squares there are.
  int64_t weight_gradients() {
    int64_t starts[kMostLayers + 1], count = 0;
    for (int i = 0; i < plan_.layer_count; ++i) {
      starts[i] = count;
      count += parts(layer(i).in, P) * parts(layer(i).out, kGradRows) + 1;
    }
    starts[plan_.layer_count] = count;
    round(threads_, count, [&](int64_t piece) {
      int i = 0;
      while (piece >= starts[i + 1]) ++i;
      const int64_t within = piece - starts[i], down = parts(layer(i).out, kGradRows);
      const Layer& l = layer(i);
      if (piece == starts[i + 1] - 1) {
        plan_.squares[piece] = l.bias < 0 ? 0.0 : bias_gradient(l);
      } else {
        plan_.squares[piece] = weight_gradient(l, within / down, within % down);
      }
    });
    return count;
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
      for (int64_t r = 0; r < call_.samples; ++r) sum += M::load(l.grad.data + r * l.grad.stride + i);
      if (l.out - i < W) sum = M::first(l.out - i, sum);
      store_some<M>(sum, call_.gradients + l.bias + i, l.out - i);
      squares.add(sum * sum);
    }
    return squares.total();
  }

  // --- Adam --------------------------------------------------------------------------------------

  template <class Body>
  void each_panel(const Body& body) {
    int64_t starts[kMostLayers + 1], count = 0;
    for (int i = 0; i < plan_.layer_count; ++i) {
      starts[i] = count;
      count += panels(layer(i));
    }
    starts[plan_.layer_count] = count;
    round(threads_, count, [&](int64_t piece) {
      int i = 0;
      while (piece >= starts[i + 1]) ++i;
      body(layer(i), piece - starts[i]);
    });
  }

  void update(bool skipped, float multiplier) {
    each_panel([&](Layer& l, int64_t panel) {
      const int64_t row = panel * P, rows = least(P, l.out - row);
      const int64_t places[2] = {l.weight + row * l.in, l.bias + row};
      const int64_t counts[2] = {rows * l.in, l.bias < 0 ? 0 : rows};
      for (int part = 0; part < 2; ++part) {
        if (!skipped) adam(places[part], counts[part], multiplier);
        if (call_.average != nullptr) average(places[part], counts[part]);
      }
      if (!skipped) pack_panel(l, panel);
    });
  }

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
    const bool exact = !(call_.eps >= 1e-15);
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

  // m / (sqrt(v) root + eps), by estimates and Newton steps where the level has good ones: square
  // root and division would take as long as all else together.
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
        for (int64_t r = 0; r < left; ++r) M::store(block[r], out + (k + r) * P + group * W);
      }
    }
    for (int64_t r = panel * P; r < least((panel + 1) * P, l.out); ++r) {
      if (l.bias >= 0) l.padded_bias[r] = call_.weights[l.bias + r];
      if (l.rows != nullptr) {
        std::memcpy(l.rows + r * l.row_stride, weight + r * l.in, size_t(l.in) * sizeof(float));
      }
    }
  }

  // Each stage interleaves the two halves; after log2(W) of them rows are columns.
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
          [](Plan& plan, const Call& call, Result& result, const Threads& threads) {
            Step<M>(plan, call, threads).run(result);
          },
          [](Plan& plan, const Call& call, const Threads& threads) {
            Step<M>(plan, call, threads).pack();
          }};
}

}  // namespace vae_fast::step
