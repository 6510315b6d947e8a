// The drivers over all likelihoods: -log p, and -log p + beta * KL in one pass.
//
// A problem is cut into items whose borders its size alone decides. Each item leaves its sum, and
// the sums are added in order. Where rows share a parameter, its gradient is a sum over rows: the
// items are dealt out in pieces, each with sums of its own, and those are added in order too.
#pragma once

#include "cpu/gaussian.h"
#include "cpu/likelihood.h"
#include "cpu/planes.h"

namespace vae_fast::cpu {

// The likelihoods over planes stand behind the others.
#define VF_ONE(name, L) +1
constexpr int kElementwise = 0 VF_LIKELIHOODS(VF_ONE);
#undef VF_ONE
VF_FN bool is_over_planes(int id) { return id >= kElementwise; }

// One extent's items: the whole in chunks, or every row in chunks of its own.
struct Items {
  int64_t rows, cols, n, chunk, per_row;
  bool by_row;
  int64_t count;

  VF_FN Items(int64_t rows, int64_t cols, bool by_row, int64_t chunk = kChunk)
      : rows(rows), cols(cols), n(rows * cols), chunk(chunk),
        per_row(cols <= chunk ? 1 : (cols + chunk - 1) / chunk), by_row(by_row),
        count(by_row ? rows * per_row : (n + chunk - 1) / chunk) {}

  VF_FN int64_t row(int64_t item) const { return by_row ? item / per_row : 0; }
  VF_FN int64_t begin(int64_t item) const {
    return by_row ? row(item) * cols + item % per_row * chunk : item * chunk;
  }
  VF_FN int64_t end(int64_t item) const {
    const int64_t end = begin(item) + chunk, last = by_row ? (row(item) + 1) * cols : n;
    return end < last ? end : last;
  }
  // Elements of an item, about: what `parallel` weighs.
  VF_FN int64_t cost() const { return by_row ? cols / per_row : chunk; }
};

// The items of a likelihood: of its elements, or of its positions if it is one over planes.
VF_FN Items items_of(const Likelihood& args, bool over_planes, bool by_row) {
  if (over_planes) return Items(args.rows, args.inner, by_row, positions_of(args.planes));
  return Items(args.rows, args.planes * args.inner, by_row);
}

// The gradients of parameters that rows share.
template <class M>
class SharedGrads {
 public:
  SharedGrads(const Likelihood& args, bool wants_grad, int64_t items) : args_(args) {
    for (int j = 0; wants_grad && j < kMaxParams; ++j) {
      const Operand& o = args.grads[j];
      if (o.data == nullptr) continue;
      // Shared by zero rows too: then the gradient is an empty sum, 0.
      const bool shared = (o.row == 0 && args.rows != 1) || (o.plane == 0 && args.planes != 1) ||
                          (o.step == 0 && args.inner != 1);
      if (!shared) continue;
      sizes_[j] = (o.row == 0 ? 1 : args.rows) * (o.plane == 0 ? 1 : args.planes) *
                  (o.step == 0 ? 1 : args.inner);
      offsets_[j] = total_;
      total_ += sizes_[j];
    }
    // At most 16 pieces, since their sums have to be added up, and no more memory for the sums than the
    // problem has elements.
    pieces_ = items;
    if (total_ == 0) return;
    const int64_t n = args.rows * args.planes * args.inner;
    if (pieces_ > 16) pieces_ = 16;
    if (pieces_ > 1 + n / (2 * total_)) pieces_ = 1 + n / (2 * total_);
    sums_ = new double[pieces_ * total_]();
  }
  ~SharedGrads() { delete[] sums_; }
  SharedGrads(const SharedGrads&) = delete;
  SharedGrads& operator=(const SharedGrads&) = delete;

  int64_t pieces() const { return pieces_; }
  SharedSums of(int64_t piece) {
    SharedSums sums;
    for (int j = 0; j < kMaxParams; ++j) {
      if (sizes_[j] > 0) sums.of[j] = sums_ + piece * total_ + offsets_[j];
    }
    return sums;
  }
  // Adds the pieces up and writes the gradients.
  void finish() {
    using E = typename M::Element;
    for (int j = 0; j < kMaxParams; ++j) {
      for (int64_t first = 0; first < sizes_[j]; first += kBlock<M>) {
        double sums[kBlock<M>] = {};
        E block[kBlock<M>];
        const int64_t n = sizes_[j] - first < kBlock<M> ? sizes_[j] - first : kBlock<M>;
        for (int64_t p = 0; p < pieces_; ++p) {
          const double* piece = sums_ + p * total_ + offsets_[j] + first;
          for (int64_t i = 0; i < n; ++i) sums[i] += piece[i];
        }
        for (int64_t i = 0; i < n; ++i) block[i] = E(sums[i]);
        write<M>(args_.dtype, args_.grads[j].data, first, n, block);
      }
    }
  }

 private:
  const Likelihood& args_;
  int64_t sizes_[kMaxParams] = {}, offsets_[kMaxParams] = {}, total_ = 0, pieces_ = 0;
  double* sums_ = nullptr;
};

// body(item, shared sums) for every item, piece by piece; `extra` more items belong to no piece.
template <class M, class Body>
void for_items(SharedGrads<M>& shared, int64_t items, int64_t extra, int64_t cost,
               const Threads& threads, const Body& body) {
  const int64_t pieces = shared.pieces();
  if (pieces == items) {
    parallel(threads, items + extra, cost,
             [&](int64_t item) { body(item, item < items ? shared.of(item) : SharedSums{}); });
    return;
  }
  parallel(threads, pieces + extra, cost * (items / pieces), [&](int64_t piece) {
    if (piece >= pieces) return body(items + piece - pieces, SharedSums{});
    const SharedSums sums = shared.of(piece);
    for (int64_t item = piece * items / pieces; item < (piece + 1) * items / pieces; ++item) {
      body(item, sums);
    }
  });
}

VF_FN bool wants_grad(const Likelihood& args) {
  for (const Operand& grad : args.grads) {
    if (grad.data != nullptr) return true;
  }
  return false;
}

template <class M>
void nll_driver(const Likelihood& args, const Spans& spans, bool over_planes,
                const Threads& threads) {
  using Acc = typename M::Element;
  const bool grad = wants_grad(args);
  const Span span = spans(args.nll != nullptr, grad);
  const Items items =
      items_of(args, over_planes, args.grad_nll.per_row || args.reduction == Reduction::none);
  const int64_t cost = items.cost() * (over_planes ? args.planes : 1);
  const double whole = grad && !items.by_row ? coefficient<Acc>(args.grad_nll, 0) : 0.0;
  SharedGrads<M> shared(args, grad, items.count);
  Partials partials(items.count);
  for_items(shared, items.count, 0, cost, threads, [&](int64_t item, const SharedSums& sums) {
    const double factor =
        grad && items.by_row ? coefficient<Acc>(args.grad_nll, items.row(item)) : whole;
    partials[item] = span(args, items.begin(item), items.end(item), factor, sums);
  });
  shared.finish();
  if (args.nll == nullptr) return;
  Acc* nll = static_cast<Acc*>(args.nll);
  if (!items.by_row) {
    nll[0] = Acc(partials.sum() * mean_scale(args.reduction, args.rows));
    return;
  }
  for (int64_t row = 0; row < args.rows; ++row) {
    nll[row] = Acc(partials.sum(row * items.per_row, (row + 1) * items.per_row));
  }
}

// The KL's sum over elements [begin, end), and its gradients times `factor`.
using KlSpan = double (*)(const Elbo& args, int64_t begin, int64_t end, double factor);

template <class M, bool VALUE, bool GRAD, class S>
double kl_span(const Elbo& args, int64_t begin, int64_t end, double factor) {
  return standard_kl_span<M, VALUE, GRAD>(
      static_cast<const S*>(args.mu) + begin, static_cast<const S*>(args.logvar) + begin,
      GRAD ? static_cast<S*>(args.grad_mu) + begin : nullptr,
      GRAD ? static_cast<S*>(args.grad_logvar) + begin : nullptr, end - begin, factor);
}

template <class M>
KlSpan kl_span_of(DType dtype, bool value, bool grad) {
  KlSpan span = nullptr;
  with_floating_storage<M>(dtype, [&](auto storage) {
    using S = typename decltype(storage)::type;
    span = !grad   ? kl_span<M, true, false, S>
           : value ? kl_span<M, true, true, S>
                   : kl_span<M, false, true, S>;
  });
  return span;
}

template <class M>
void elbo_driver(const Elbo& args, const Spans& spans, bool over_planes, const Threads& threads) {
  using Acc = typename M::Element;
  const Likelihood& recon = args.recon;
  // Either is null where its tensor is empty.
  const bool grad = wants_grad(recon) || args.grad_mu != nullptr;
  const Span span = spans(args.loss != nullptr, grad);
  const KlSpan kl_span = kl_span_of<M>(args.kl_dtype, args.loss != nullptr, grad);
  double beta = args.beta;
  if (args.beta_tensor != nullptr) beta *= *args.beta_tensor;

  const bool by_row = recon.grad_nll.per_row || recon.reduction == Reduction::none;
  const Items items = items_of(recon, over_planes, by_row);
  const int64_t cost = items.cost() * (over_planes ? recon.planes : 1);
  const Items kl_items(recon.rows, args.kl_cols, by_row);
  const auto factor = [&](const Upstream& up, const Items& of, int64_t item) {
    return grad ? coefficient<Acc>(up, of.row(item)) : 0.0;
  };
  const double recon_whole = by_row ? 0.0 : factor(recon.grad_nll, items, 0);
  const double kl_whole = by_row ? 0.0 : factor(args.grad_kl, kl_items, 0);
  SharedGrads<M> shared(recon, grad, items.count);
  Partials partials(items.count + kl_items.count);
  for_items(shared, items.count, kl_items.count, cost, threads,
            [&](int64_t item, const SharedSums& sums) {
              if (item < items.count) {
                const double f = by_row ? factor(recon.grad_nll, items, item) : recon_whole;
                partials[item] = span(recon, items.begin(item), items.end(item), f, sums);
              } else {
                const int64_t k = item - items.count;
                const double f = by_row ? factor(args.grad_kl, kl_items, k) : kl_whole;
                partials[item] = kl_span(args, kl_items.begin(k), kl_items.end(k), f);
              }
            });
  shared.finish();
  if (args.loss == nullptr) return;
  Acc *loss = static_cast<Acc*>(args.loss), *nll = static_cast<Acc*>(recon.nll),
      *kl = static_cast<Acc*>(args.kl);
  const int64_t results = by_row ? recon.rows : 1;
  const double scale = mean_scale(recon.reduction, recon.rows);
  for (int64_t row = 0; row < results; ++row) {
    const double r = scale * (by_row ? partials.sum(row * items.per_row, (row + 1) * items.per_row)
                                     : partials.sum(0, items.count));
    const int64_t first = items.count + row * kl_items.per_row;
    const double k = scale * (by_row ? partials.sum(first, first + kl_items.per_row)
                                     : partials.sum(items.count, items.count + kl_items.count));
    loss[row] = Acc(r + beta * k);
    nll[row] = Acc(r);
    kl[row] = Acc(k);
  }
}

}  // namespace vae_fast::cpu
