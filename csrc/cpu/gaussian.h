// The Gaussian family on the CPU: sampling and KL in one pass, forward and backward.
//
// Bytes per element in float32: forward, 8 read and 4 written; backward, 12 read and 8 written.
// The noise is made block by block into a buffer that stays in the first-level cache. Making it is
// most of the arithmetic: where a tensor is small enough for the caches, forward keeps the slope
// dz/dlogvar, 4 bytes more, and backward reads that instead of making the noise again.
#pragma once

#include "cpu/normal.h"
#include "ops/gaussian.h"

namespace vae_fast::cpu {

// --- KL of a standard-normal prior, value and gradient (bce_kl's second extent) ------------------

template <class M, bool VALUE, bool GRAD, class S>
VF_FN double standard_kl_span(const S* mu, const S* logvar, S* grad_mu, S* grad_logvar, int64_t n,
                              double factor) {
  using T = typename M::T;
  const T scale = M::splat(typename M::Element(factor));
  typename M::Sum sum;
  for (int64_t block = 0; block < n; block += kBlock<M>) {
    T partial[4] = {};
    walk<M>(
        block, block + kBlock<M> < n ? block + kBlock<M> : n,
        [&](int64_t i, int lane) __attribute__((always_inline)) {
          const T m = M::load(mu + i), l = M::load(logvar + i), variance = M::exp(l);
          if constexpr (VALUE) partial[lane & 3] += gaussian::kl_standard<M>(m, l, variance);
          if constexpr (GRAD) {
            M::store(m * scale, grad_mu + i);
            M::store(gaussian::kl_standard_grad_logvar<M>(variance) * scale, grad_logvar + i);
          }
        },
        [&](int64_t i, int64_t count) {
          const T m = load_tail<M>(mu + i, count), l = load_tail<M>(logvar + i, count);
          const T variance = M::exp(l);
          if constexpr (VALUE) {
            partial[0] += M::first(count, gaussian::kl_standard<M>(m, l, variance));
          }
          if constexpr (GRAD) {
            store_tail<M>(m * scale, grad_mu + i, count);
            store_tail<M>(gaussian::kl_standard_grad_logvar<M>(variance) * scale, grad_logvar + i,
                          count);
          }
        });
    if constexpr (VALUE) sum.add((partial[0] + partial[1]) + (partial[2] + partial[3]));
  }
  return VALUE ? sum.total() : 0.0;
}

// --- forward -------------------------------------------------------------------------------------

// z and the KL's sum over elements [begin, end) of sample-set k.
template <class M, class S, bool SAMPLE, bool KL, bool PRIOR>
VF_FN double gaussian_forward_span(const GaussianForward& args, int64_t k, int64_t begin,
                                   int64_t end) {
  using T = typename M::T;
  const int64_t n = args.rows * args.cols;
  const S *mu = static_cast<const S*>(args.mu), *logvar = static_cast<const S*>(args.logvar);
  const S *prior_mu = static_cast<const S*>(args.prior_mu),
          *prior_logvar = static_cast<const S*>(args.prior_logvar);
  S* z = SAMPLE ? static_cast<S*>(args.z) + k * n : nullptr;
  S* slope = SAMPLE && args.slope != nullptr ? static_cast<S*>(args.slope) + k * n : nullptr;
  constexpr int64_t kNoKey[2] = {};
  const Philox<M> philox(SAMPLE ? args.key : kNoKey);
  typename M::Element noise[noise_capacity<M>(kBlock<M>)];
  typename M::Sum sum;
  for (int64_t block = begin; block < end; block += kBlock<M>) {
    const int64_t stop = block + kBlock<M> < end ? block + kBlock<M> : end;
    const typename M::Element* eps = nullptr;
    if constexpr (SAMPLE) eps = normals<M>(philox, k * n + block, stop - block, noise);
    T partial[4] = {};
    const auto element = [&](T m, T l, T e, T pm, T pl, T& kl, T& sloped) {
      T sigma{};
      if constexpr (SAMPLE) sigma = gaussian::standard_deviation<M>(l);
      if constexpr (KL && PRIOR) {
        kl = gaussian::Two<M>(m, l, pm, pl).kl();
      } else if constexpr (KL) {
        kl = gaussian::kl_standard<M>(m, l, SAMPLE ? sigma * sigma : M::exp(l));
      }
      if constexpr (SAMPLE) sloped = gaussian::sample_grad_logvar<M>(sigma, e);
      return SAMPLE ? gaussian::sample<M>(m, sigma, e) : sigma;
    };
    walk<M>(
        block, stop,
        [&](int64_t i, int lane) __attribute__((always_inline)) {
          T kl{}, sloped{};
          const T value = element(M::load(mu + i), M::load(logvar + i),
                                  SAMPLE ? M::load(eps + (i - block)) : T{},
                                  PRIOR ? M::load(prior_mu + i) : T{},
                                  PRIOR ? M::load(prior_logvar + i) : T{}, kl, sloped);
          if constexpr (SAMPLE) M::store(value, z + i);
          if (slope != nullptr) M::store(sloped, slope + i);
          if constexpr (KL) partial[lane & 3] += kl;
        },
        [&](int64_t i, int64_t count) {
          T kl{}, sloped{};
          const T value = element(load_tail<M>(mu + i, count), load_tail<M>(logvar + i, count),
                                  SAMPLE ? load_tail<M>(eps + (i - block), count) : T{},
                                  PRIOR ? load_tail<M>(prior_mu + i, count) : T{},
                                  PRIOR ? load_tail<M>(prior_logvar + i, count) : T{}, kl, sloped);
          if constexpr (SAMPLE) store_tail<M>(value, z + i, count);
          if (slope != nullptr) store_tail<M>(sloped, slope + i, count);
          if constexpr (KL) partial[0] += M::first(count, kl);
        });
    if constexpr (KL) sum.add((partial[0] + partial[1]) + (partial[2] + partial[3]));
  }
  return KL ? sum.total() : 0.0;
}

// Calls body(Storage<S>) for the policy's storage of a floating dtype.
template <class M, class Body>
void with_floating_storage(DType dtype, Body&& body) {
  if constexpr (M::width == 1) {
    body(Storage<double>{});
  } else {
    with_storage(dtype, body);
  }
}

template <class Body>
void with_flags(bool a, bool b, Body&& body) {
  if (a && b) return body(std::true_type{}, std::true_type{});
  if (a) return body(std::true_type{}, std::false_type{});
  if (b) return body(std::false_type{}, std::true_type{});
  return body(std::false_type{}, std::false_type{});
}

template <class M>
void gaussian_forward_driver(const GaussianForward& args, const Threads& threads) {
  using Acc = typename M::Element;
  const int64_t n = args.rows * args.cols;
  const bool has_kl = args.kl != nullptr;
  with_floating_storage<M>(args.dtype, [&](auto storage) {
    using S = typename decltype(storage)::type;
    const auto run = [&](auto span) {
      if (has_kl && args.reduction == Reduction::none) {
        parallel(threads, args.rows, args.cols, [&](int64_t row) {
          static_cast<Acc*>(args.kl)[row] =
              Acc(span(int64_t{0}, row * args.cols, (row + 1) * args.cols));
        });
        return;
      }
      const int64_t chunks = chunks_of(n);
      Partials partials(has_kl ? chunks : 0);
      parallel(threads, chunks * args.num_samples, kChunk, [&](int64_t item) {
        const int64_t k = item / chunks, begin = item % chunks * kChunk;
        const double sum = span(k, begin, begin + kChunk < n ? begin + kChunk : n);
        if (has_kl) partials[item] = sum;
      });
      if (has_kl) {
        *static_cast<Acc*>(args.kl) = Acc(partials.sum() * mean_scale(args.reduction, args.rows));
      }
    };
    const auto with = [&](auto sample, auto kl, auto prior) {
      run([&](int64_t k, int64_t begin, int64_t end) {
        return gaussian_forward_span<M, S, decltype(sample)::value, decltype(kl)::value,
                                     decltype(prior)::value>(args, k, begin, end);
      });
    };
    const std::true_type yes;
    const std::false_type no;
    if (!has_kl) return with(yes, no, no);
    with_flags(args.z != nullptr, args.prior_mu != nullptr,
               [&](auto sample, auto prior) { with(sample, yes, prior); });
  });
}

// --- backward ------------------------------------------------------------------------------------

// Where backward gets the noise of z's gradient: not needed (z has no gradient), the slope that forward
// kept, generated again for one sample, or generated again and summed over several samples.
enum class Noise { none, kept, one, several };

template <class M, class S, Noise NOISE, bool PRIOR>
VF_FN void gaussian_backward_span(const GaussianBackward& args, int64_t begin, int64_t end,
                                  double factor) {
  using T = typename M::T;
  using Float = typename M::Element;
  constexpr bool kMakesNoise = NOISE == Noise::one || NOISE == Noise::several;
  const int64_t n = args.rows * args.cols;
  const S *mu = static_cast<const S*>(args.mu), *logvar = static_cast<const S*>(args.logvar);
  const S *prior_mu = static_cast<const S*>(args.prior_mu),
          *prior_logvar = static_cast<const S*>(args.prior_logvar);
  const S *grad_z = static_cast<const S*>(args.grad_z), *slope = static_cast<const S*>(args.slope);
  S *grad_mu = static_cast<S*>(args.grad_mu), *grad_logvar = static_cast<S*>(args.grad_logvar);
  S *grad_prior_mu = static_cast<S*>(args.grad_prior_mu),
    *grad_prior_logvar = static_cast<S*>(args.grad_prior_logvar);
  const T scale = M::splat(Float(factor));
  const bool has_kl = args.has_kl;
  constexpr int64_t kNoKey[2] = {};
  const Philox<M> philox(kMakesNoise ? args.key : kNoKey);
  Float noise[kMakesNoise ? noise_capacity<M>(kBlock<M>) : 1];
  // The sums over samples of grad_z and of grad_z * eps, padded to whole vectors.
  constexpr int64_t kSums = NOISE == Noise::several ? kBlock<M> + M::width : 1;
  Float sum_g[kSums], sum_ge[kSums];

  for (int64_t block = begin; block < end; block += kBlock<M>) {
    const int64_t stop = block + kBlock<M> < end ? block + kBlock<M> : end;
    const Float* eps = nullptr;
    if constexpr (NOISE == Noise::one) eps = normals<M>(philox, block, stop - block, noise);
    if constexpr (NOISE == Noise::several) {
      for (int64_t k = 0; k < args.num_samples; ++k) {
        eps = normals<M>(philox, k * n + block, stop - block, noise);
        const S* gz = grad_z + k * n;
        const auto add = [&](int64_t i, T g, T e) __attribute__((always_inline)) {
          T ge = g * e;
          if (k > 0) {
            g = g + M::load(sum_g + (i - block));
            ge = ge + M::load(sum_ge + (i - block));
          }
          M::store(g, sum_g + (i - block));
          M::store(ge, sum_ge + (i - block));
        };
        walk<M>(
            block, stop,
            [&](int64_t i, int) __attribute__((always_inline)) {
              add(i, M::load(gz + i), M::load(eps + (i - block)));
            },
            [&](int64_t i, int64_t count) {
              add(i, load_tail<M>(gz + i, count), load_tail<M>(eps + (i - block), count));
            });
      }
    }
    struct Grads {
      T mu, logvar, prior_mu, prior_logvar;
    };
    // `read` loads a vector, or a part of one at the end.
    const auto element = [&](int64_t i, auto read) __attribute__((always_inline)) {
      Grads g{};
      const T l = read(logvar + i);
      T variance{};
      if constexpr (NOISE == Noise::kept) {
        g.mu = read(grad_z + i);
        g.logvar = g.mu * read(slope + i);
      } else if constexpr (kMakesNoise) {
        const T sigma = gaussian::standard_deviation<M>(l);
        T ge;
        if constexpr (NOISE == Noise::one) {
          g.mu = read(grad_z + i);
          ge = g.mu * read(eps + (i - block));
        } else {
          g.mu = M::load(sum_g + (i - block));
          ge = M::load(sum_ge + (i - block));
        }
        g.logvar = gaussian::sample_grad_logvar<M>(sigma, ge);
        variance = sigma * sigma;
      }
      if (has_kl) {
        const T m = read(mu + i);
        if constexpr (PRIOR) {
          const gaussian::Two<M> two(m, l, read(prior_mu + i), read(prior_logvar + i));
          const T d = two.grad_mu() * scale;
          g.mu = g.mu + d;
          g.logvar = g.logvar + two.grad_logvar() * scale;
          g.prior_mu = -d;
          g.prior_logvar = two.grad_prior_logvar() * scale;
        } else {
          if constexpr (!kMakesNoise) variance = M::exp(l);
          g.mu = g.mu + m * scale;
          g.logvar = g.logvar + gaussian::kl_standard_grad_logvar<M>(variance) * scale;
        }
      }
      return g;
    };
    walk<M>(
        block, stop,
        [&](int64_t i, int) __attribute__((always_inline)) {
          const Grads g = element(i, [](auto* p) { return M::load(p); });
          M::store(g.mu, grad_mu + i);
          M::store(g.logvar, grad_logvar + i);
          if constexpr (PRIOR) {
            M::store(g.prior_mu, grad_prior_mu + i);
            M::store(g.prior_logvar, grad_prior_logvar + i);
          }
        },
        [&](int64_t i, int64_t count) {
          const Grads g = element(i, [=](auto* p) { return load_tail<M>(p, count); });
          store_tail<M>(g.mu, grad_mu + i, count);
          store_tail<M>(g.logvar, grad_logvar + i, count);
          if constexpr (PRIOR) {
            store_tail<M>(g.prior_mu, grad_prior_mu + i, count);
            store_tail<M>(g.prior_logvar, grad_prior_logvar + i, count);
          }
        });
  }
}

// Calls body(constant) with the Noise that the arguments ask for.
template <class Body>
void with_noise(const GaussianBackward& args, Body&& body) {
  if (args.grad_z == nullptr) return body(std::integral_constant<Noise, Noise::none>{});
  if (args.slope != nullptr) return body(std::integral_constant<Noise, Noise::kept>{});
  if (args.num_samples == 1) return body(std::integral_constant<Noise, Noise::one>{});
  return body(std::integral_constant<Noise, Noise::several>{});
}

template <class M>
void gaussian_backward_driver(const GaussianBackward& args, const Threads& threads) {
  using Acc = typename M::Element;
  const int64_t n = args.rows * args.cols;
  const auto run = [&](auto span) {
    const auto factor = [&](int64_t row) {
      return args.has_kl ? coefficient<Acc>(args.grad_kl, row) : 0.0;
    };
    if (args.has_kl && args.grad_kl.per_row) {
      parallel(threads, args.rows, args.cols,
               [&](int64_t row) { span(row * args.cols, (row + 1) * args.cols, factor(row)); });
      return;
    }
    const double whole = factor(0);
    parallel(threads, chunks_of(n), kChunk * args.num_samples, [&](int64_t c) {
      span(c * kChunk, (c + 1) * kChunk < n ? (c + 1) * kChunk : n, whole);
    });
  };
  with_floating_storage<M>(args.dtype, [&](auto storage) {
    using S = typename decltype(storage)::type;
    with_noise(args, [&](auto noise) {
      const auto with = [&](auto prior) {
        run([&](int64_t begin, int64_t end, double factor) {
          gaussian_backward_span<M, S, decltype(noise)::value, decltype(prior)::value>(args, begin,
                                                                                       end, factor);
        });
      };
      args.prior_mu != nullptr ? with(std::true_type{}) : with(std::false_type{});
    });
  });
}

}  // namespace vae_fast::cpu
