// What the CPU drivers share: storage types, tails, upstream gradients, chunks and their sums.
//
// A driver walks its elements in chunks whose borders depend on the problem's size alone; each
// chunk leaves a partial sum in double, and the partials are added in order. So results are the
// same for every number of threads.
//
// Functions that are no template over the policy are VF_FN, always inlined. The linker would keep one
// level's copy of an ordinary inline function, which another machine may not be able to run.
#pragma once

#include "cpu/prelude.h"

namespace vae_fast::cpu {

constexpr int64_t kChunk = 4096;  // elements between partial sums
// Elements between widenings of a sum, and elements of noise made at once. There is no wider type for
// float64's sums: its blocks are short, and their sums are added with compensation.
template <class M>
constexpr int64_t kBlock = M::width == 1 ? 32 : 1024;
constexpr int64_t kParallel = 1 << 15;  // elements that are worth waking a thread for

// --- dispatch over storage types -----------------------------------------------------------------

template <class S>
struct Storage {
  using type = S;
};

// Calls body(Storage<S>{}) for the storage type of a half- or single-precision dtype.
template <class Body>
void with_storage(DType dtype, Body&& body) {
  if (dtype == DType::bf16) return body(Storage<bf16>{});
  if (dtype == DType::f16) return body(Storage<f16>{});
  return body(Storage<float>{});
}

// --- tails ---------------------------------------------------------------------------------------

template <class M, class S>
VF_FN typename M::T load_tail(const S* p, int64_t count) {
  S buffer[M::width] = {};
  std::memcpy(buffer, p, count * sizeof(S));
  return M::load(buffer);
}

template <class M, class S>
VF_FN void store_tail(typename M::T x, S* p, int64_t count) {
  S buffer[M::width];
  M::store(x, buffer);
  std::memcpy(p, buffer, count * sizeof(S));
}

// Walks [begin, end): step(i, lane) for each whole vector, tail(i, count) for the rest. A turn of the
// loop has four vectors, lanes 0 to 3, so that their latencies overlap. Vectors that do not fill a
// turn are taken one by one.
constexpr int kAlone = 4;

template <class M, class Step, class Tail>
VF_FN void walk(int64_t begin, int64_t end, Step&& step, Tail&& tail) {
  constexpr int64_t w = M::width;
  int64_t i = begin;
  for (; i + 4 * w <= end; i += 4 * w) {
    step(i, 0);
    step(i + w, 1);
    step(i + 2 * w, 2);
    step(i + 3 * w, 3);
  }
  for (; i + w <= end; i += w) step(i, kAlone);
  if (i < end) tail(i, end - i);
}

// --- upstream gradients --------------------------------------------------------------------------

// The upstream gradient of a part of sample `row` (see args.h). Acc is the accumulator type.
template <class Acc>
VF_FN double coefficient(const Upstream& up, int64_t row) {
  double weight = up.weight;
  if (up.weight_tensor != nullptr) weight *= *up.weight_tensor;
  if (up.loss == nullptr && up.part == nullptr) return up.scale * weight;
  const int64_t r = up.per_row ? row : 0;
  double sum = 0.0;
  if (up.loss != nullptr) sum += weight * static_cast<const Acc*>(up.loss)[r];
  if (up.part != nullptr) sum += static_cast<const Acc*>(up.part)[r];
  return up.scale * sum;
}

// --- parallel loops ------------------------------------------------------------------------------

// Calls body(i) for i in [0, count), in parallel if count * cost elements are worth it.
template <class Body>
void parallel(const Threads& threads, int64_t count, int64_t cost, const Body& body) {
  if (count * cost < 2 * kParallel || count < 2) {
    for (int64_t i = 0; i < count; ++i) body(i);
    return;
  }
  const int64_t grain = cost >= kParallel ? 1 : kParallel / (cost < 1 ? 1 : cost);
  threads.run(
      0, count, grain,
      [](int64_t begin, int64_t end, void* context) {
        const Body& body = *static_cast<const Body*>(context);
        for (int64_t i = begin; i < end; ++i) body(i);
      },
      const_cast<void*>(static_cast<const void*>(&body)));
}

VF_FN int64_t chunks_of(int64_t n) { return (n + kChunk - 1) / kChunk; }

// Partial sums, on the stack for small problems.
class Partials {
 public:
  VF_FN explicit Partials(int64_t count)
      : count_(count), data_(count <= kInline ? inline_ : new double[count]) {}
  VF_FN ~Partials() {
    if (data_ != inline_) delete[] data_;
  }
  Partials(const Partials&) = delete;
  Partials& operator=(const Partials&) = delete;

  VF_FN double& operator[](int64_t i) { return data_[i]; }
  VF_FN double sum(int64_t begin, int64_t end) const {
    double total = 0.0;
    for (int64_t i = begin; i < end; ++i) total += data_[i];
    return total;
  }
  VF_FN double sum() const { return sum(0, count_); }

 private:
  static constexpr int64_t kInline = 256;
  int64_t count_;
  double inline_[kInline];
  double* data_;
};

VF_FN double mean_scale(Reduction reduction, int64_t rows) {
  return reduction == Reduction::batchmean ? 1.0 / double(rows) : 1.0;
}

}  // namespace vae_fast::cpu
