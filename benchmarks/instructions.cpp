// Calls one op's CPU driver once, on one thread, for callgrind to count (see instructions.py).
//
//   instructions LEVEL OP ELEMENTS
//
// Kernels need no torch, so neither does this: it is built from csrc/cpu alone.
#include <valgrind/callgrind.h>

#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <string>
#include <vector>

#include "cpu/drivers.h"

namespace {

using namespace vae_fast;

// Kernels have no branch on values, so zeros are as good as any numbers.
std::vector<char> zeros(int64_t bytes) { return std::vector<char>(bytes + 64); }

int64_t size_of(DType dtype) {
  switch (dtype) {
    case DType::f64:
      return 8;
    case DType::f32:
      return 4;
    case DType::bf16:
    case DType::f16:
      return 2;
    default:
      return 1;
  }
}

const cpu::Threads kOneThread{
    [](int64_t begin, int64_t end, int64_t, cpu::Threads::Body body, void* context) {
      body(begin, end, context);
    }};

// Only the driver is counted, not the making of its buffers.
template <class Call>
void counted(Call&& call) {
  CALLGRIND_TOGGLE_COLLECT;
  call();
  CALLGRIND_TOGGLE_COLLECT;
}

struct Run {
  const cpu::Level& level;
  int64_t n;
  int64_t key[2] = {1, 2};
  double sum[2] = {};

  void gaussian(DType dtype, bool sample, bool kl, bool backward) {
    auto mu = zeros(n * size_of(dtype)), logvar = mu, z = mu, grad_z = mu, grad = mu, other = mu;
    if (!backward) {
      GaussianForward args{};
      args.dtype = dtype, args.rows = 1, args.cols = n;
      args.mu = mu.data(), args.logvar = logvar.data();
      if (sample) args.key = key, args.z = z.data();
      if (kl) args.kl = sum;
      counted([&] { level.gaussian_forward(args, kOneThread); });
      return;
    }
    GaussianBackward args{};
    args.dtype = dtype, args.rows = 1, args.cols = n;
    args.mu = mu.data(), args.logvar = logvar.data();
    if (sample) args.key = key, args.grad_z = grad_z.data();
    args.has_kl = kl;
    args.grad_mu = grad.data(), args.grad_logvar = other.data();
    counted([&] { level.gaussian_backward(args, kOneThread); });
  }

  void bernoulli(DType dtype, DType target_dtype, bool value, bool gradient, bool from_logits) {
    auto logits = zeros(n * size_of(dtype)), grad = logits;
    auto target = zeros(n * size_of(target_dtype));
    Bernoulli args{};
    args.dtype = dtype, args.target_dtype = target_dtype, args.rows = 1, args.cols = n;
    args.logits = logits.data(), args.target = target.data(), args.from_logits = from_logits;
    if (value) args.nll = sum;
    if (gradient) args.grad = grad.data();
    counted([&] { level.bernoulli(args, kOneThread); });
  }

  // n pixels and n / 16 latent dimensions, about the tutorial's proportion; value and gradient.
  void bce_kl(DType dtype, DType target_dtype) {
    const int64_t latents = n / 16;
    auto logits = zeros(n * size_of(dtype)), grad = logits;
    auto target = zeros(n * size_of(target_dtype));
    auto mu = zeros(latents * size_of(dtype)), logvar = mu, grad_mu = mu, grad_logvar = mu;
    double kl[2] = {}, loss[2] = {};
    BceKl args{};
    args.recon.dtype = dtype, args.recon.target_dtype = target_dtype;
    args.recon.rows = 1, args.recon.cols = n;
    args.recon.logits = logits.data(), args.recon.target = target.data();
    args.recon.nll = sum, args.recon.grad = grad.data();
    args.kl_dtype = dtype, args.kl_cols = latents;
    args.mu = mu.data(), args.logvar = logvar.data();
    args.kl = kl, args.loss = loss;
    args.grad_mu = grad_mu.data(), args.grad_logvar = grad_logvar.data();
    counted([&] { level.bce_kl(args, kOneThread); });
  }
};

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) {
    std::cerr << "instructions LEVEL OP ELEMENTS\n";
    return 2;
  }
  cpu::use_level(argv[1]);
  Run run{cpu::level(), std::atoll(argv[3])};
  const std::string op = argv[2];
  const auto has = [&](const char* word) { return op.find(word) != std::string::npos; };
  const DType dtype = has("bfloat16") ? DType::bf16 : has("float16") ? DType::f16 : DType::f32;
  const bool forward = has("/value"), backward = has("/gradient");  // neither: both at once
  const DType target = has("uint8") ? DType::u8 : dtype;
  if (has("bce_kl_loss")) {
    run.bce_kl(dtype, target);
  } else if (has("sample_and_kl")) {
    run.gaussian(dtype, true, true, backward);
  } else if (has("reparameterize")) {
    run.gaussian(dtype, true, false, backward);
  } else if (has("gaussian_kl")) {
    run.gaussian(dtype, false, true, backward);
  } else if (has("bernoulli_nll")) {
    run.bernoulli(dtype, target, !backward, !forward, !has("probability"));
  } else {
    std::cerr << "instructions: no op " << op << "\n";
    return 2;
  }
  return run.sum[0] == run.sum[0] ? 0 : 1;
}
