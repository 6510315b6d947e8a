// BCE + beta * KL on the CPU: both extents in one parallel loop, one wake-up of the threads.
#pragma once

#include "cpu/bernoulli.h"
#include "cpu/gaussian.h"

namespace vae_fast::cpu {

template <class M>
void bce_kl_driver(const BceKl& args, const Threads& threads) {
  using Acc = typename M::Element;
  const Bernoulli& recon = args.recon;
  const int64_t rows = recon.rows, n = rows * recon.cols, latents = rows * args.kl_cols;
  double beta = args.beta;
  if (args.beta_tensor != nullptr) beta *= *args.beta_tensor;

  // Either is null where its tensor is empty.
  const bool grad = recon.grad != nullptr || args.grad_mu != nullptr;

  const auto run = [&](auto recon_span, auto kl_span) {
    Acc *loss_out = static_cast<Acc*>(args.loss), *recon_out = static_cast<Acc*>(recon.nll),
        *kl_out = static_cast<Acc*>(args.kl);
    const auto recon_factor = [&](int64_t row) {
      return grad ? coefficient<Acc>(recon.grad_nll, row) : 0.0;
    };
    const auto kl_factor = [&](int64_t row) {
      return grad ? coefficient<Acc>(args.grad_kl, row) : 0.0;
    };
    if (recon.grad_nll.per_row || recon.reduction == Reduction::none) {
      parallel(threads, rows, recon.cols + args.kl_cols, [&](int64_t row) {
        const double r =
            recon_span(row * recon.cols, (row + 1) * recon.cols, recon_factor(row));
        const double k = kl_span(row * args.kl_cols, (row + 1) * args.kl_cols, kl_factor(row));
        if (loss_out == nullptr) return;
        loss_out[row] = Acc(r + beta * k);
        recon_out[row] = Acc(r);
        kl_out[row] = Acc(k);
      });
      return;
    }
    const int64_t chunks = chunks_of(n), kl_chunks = chunks_of(latents);
    const double recon_whole = recon_factor(0), kl_whole = kl_factor(0);
    Partials partials(chunks + kl_chunks);
    parallel(threads, chunks + kl_chunks, kChunk, [&](int64_t item) {
      const bool is_recon = item < chunks;
      const int64_t begin = (is_recon ? item : item - chunks) * kChunk;
      const int64_t extent = is_recon ? n : latents;
      const int64_t end = begin + kChunk < extent ? begin + kChunk : extent;
      partials[item] =
          is_recon ? recon_span(begin, end, recon_whole) : kl_span(begin, end, kl_whole);
    });
    if (loss_out == nullptr) return;
    const double scale = mean_scale(recon.reduction, rows);
    const double r = partials.sum(0, chunks) * scale;
    const double k = partials.sum(chunks, chunks + kl_chunks) * scale;
    *loss_out = Acc(r + beta * k);
    *recon_out = Acc(r);
    *kl_out = Acc(k);
  };

  with_outputs(args.loss != nullptr, grad, [&](auto value, auto grads) {
    constexpr bool kValue = decltype(value)::value, kGrad = decltype(grads)::value;
    with_floating_storage<M>(args.kl_dtype, [&](auto latent) {
      using L = typename decltype(latent)::type;
      const auto kl_span = [&](int64_t begin, int64_t end, double factor) {
        return standard_kl_span<M, kValue, kGrad>(
            static_cast<const L*>(args.mu) + begin, static_cast<const L*>(args.logvar) + begin,
            kGrad ? static_cast<L*>(args.grad_mu) + begin : nullptr,
            kGrad ? static_cast<L*>(args.grad_logvar) + begin : nullptr, end - begin, factor);
      };
      with_bernoulli_storage<M>(recon, [&](auto x, auto y) {
        run(BernoulliSpan<M, typename decltype(x)::type, typename decltype(y)::type, kValue,
                          kGrad>{recon},
            kl_span);
      });
    });
  });
}

}  // namespace vae_fast::cpu
