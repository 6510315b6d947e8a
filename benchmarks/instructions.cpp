// Counts the instructions of one call of an op's CPU driver, on one thread (see instructions.py).
//
//   instructions LEVEL OP ELEMENTS
//   instructions levels              those that this machine runs
//
// The call runs in a child process that this one steps through, an instruction at a time: slow, but
// exact, and good for any instruction set that the processor has. Kernels need no torch, so neither
// does this: it is built from csrc/cpu alone.
#include <sched.h>
#include <signal.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <iterator>
#include <string>
#include <vector>

#include "cpu/drivers.h"
#include "likelihoods/list.h"

namespace {

using namespace vae_fast;

// Kernels have no branch on values, so zeros are as good as any numbers.
std::vector<char> zeros(int64_t bytes) { return std::vector<char>(bytes + 64); }

struct Info {
  const char* name;
  int params;
};
#define VF_INFO(name, L) {#name, likelihoods::L::params},
constexpr Info kLikelihoods[] = {VF_LIKELIHOODS(VF_INFO)};
#undef VF_INFO

// The likelihood that an op's name begins with: NAME_nll/... or NAME_elbo/...
int likelihood_of(const std::string& op, const char* suffix) {
  for (int id = 0; id < int(std::size(kLikelihoods)); ++id) {
    if (op.rfind(std::string(kLikelihoods[id].name) + suffix + "/", 0) == 0) return id;
  }
  return -1;
}

const cpu::Threads kOneThread{
    [](int64_t begin, int64_t end, int64_t, cpu::Threads::Body body, void* context) {
      body(begin, end, context);
    }};

// Only the driver is counted, not the making of its buffers. (The signals' own instructions are the
// same for every size, and cancel.)
constexpr int kMark = SIGUSR1;

template <class Call>
void counted(Call&& call) {
  raise(kMark);
  call();
  raise(kMark);
}

struct Run {
  const cpu::Level& level;
  int64_t n;
  int64_t key[2] = {1, 2};
  double sum[2] = {};

  // kept: with the slope that forward keeps for backward.
  void gaussian(DType dtype, bool sample, bool kl, bool backward, bool kept = false) {
    auto mu = zeros(n * size_of(dtype)), logvar = mu, z = mu, grad_z = mu, grad = mu, other = mu;
    auto slope = mu;
    if (!backward) {
      GaussianForward args{};
      args.dtype = dtype, args.rows = 1, args.cols = n;
      args.mu = mu.data(), args.logvar = logvar.data();
      if (sample) args.key = key, args.z = z.data();
      if (kept) args.slope = slope.data();
      if (kl) args.kl = sum;
      counted([&] { level.gaussian_forward(args, kOneThread); });
      return;
    }
    GaussianBackward args{};
    args.dtype = dtype, args.rows = 1, args.cols = n;
    args.mu = mu.data(), args.logvar = logvar.data();
    if (sample) args.key = key, args.grad_z = grad_z.data();
    if (kept) args.slope = slope.data();
    args.has_kl = kl;
    args.grad_mu = grad.data(), args.grad_logvar = other.data();
    counted([&] { level.gaussian_backward(args, kOneThread); });
  }

  // A problem of one row, with every operand dense. `memory` owns what the arguments point to.
  struct Memory {
    std::vector<std::vector<char>> params, grads;
    std::vector<char> target;
  };

  Likelihood likelihood(int id, int params, DType dtype, DType target, bool value, bool gradient,
                        Memory& memory) {
    Likelihood args{};
    args.id = id, args.dtype = dtype, args.target_dtype = target;
    args.rows = args.target_rows = args.planes = 1, args.inner = n;
    memory.target = zeros(n * size_of(target));
    args.target = memory.target.data();
    for (int j = 0; j < params; ++j) {
      memory.params.push_back(zeros(n * size_of(dtype)));
      memory.grads.push_back(zeros(n * size_of(dtype)));
      args.params[j] = {memory.params[j].data(), n, 0, 1};
      if (gradient) args.grads[j] = {memory.grads[j].data(), n, 0, 1};
    }
    if (value) args.nll = sum;
    return args;
  }

  void nll(int id, int params, DType dtype, DType target, bool value, bool gradient) {
    Memory memory;
    const Likelihood args = likelihood(id, params, dtype, target, value, gradient, memory);
    counted([&] { level.nll(args, kOneThread); });
  }

  // n pixels and n / 16 latent dimensions, about the tutorial's proportion; value and gradient.
  void elbo(int id, int params, DType dtype, DType target) {
    const int64_t latents = n / 16;
    auto mu = zeros(latents * size_of(dtype)), logvar = mu, grad_mu = mu, grad_logvar = mu;
    double kl[2] = {}, loss[2] = {};
    Memory memory;
    Elbo args{};
    args.recon = likelihood(id, params, dtype, target, true, true, memory);
    args.kl_dtype = dtype, args.kl_cols = latents;
    args.mu = mu.data(), args.logvar = logvar.data();
    args.kl = kl, args.loss = loss;
    args.grad_mu = grad_mu.data(), args.grad_logvar = grad_logvar.data();
    counted([&] { level.elbo(args, kOneThread); });
  }
};

// Runs the op; what it returns is the process's exit status.
int call(const std::string& level, const std::string& op, int64_t elements) {
  cpu::use_level(level.c_str());
  Run run{cpu::level(), elements};
  const auto has = [&](const char* word) { return op.find(word) != std::string::npos; };
  const DType dtype = has("bfloat16") ? DType::bf16 : has("float16") ? DType::f16 : DType::f32;
  const bool forward = has("/value"), backward = has("/gradient");  // neither: both at once
  const DType target = has("uint8") ? DType::u8 : dtype;
  if (const int id = likelihood_of(op, "_elbo"); id >= 0) {
    run.elbo(id, kLikelihoods[id].params, dtype, target);
  } else if (const int id = likelihood_of(op, "_nll"); id >= 0) {
    run.nll(id, kLikelihoods[id].params, dtype, target, !backward, !forward);
  } else if (has("sample_and_kl")) {
    run.gaussian(dtype, true, true, backward, has("/kept"));
  } else if (has("reparameterize")) {
    run.gaussian(dtype, true, false, backward);
  } else if (has("gaussian_kl")) {
    run.gaussian(dtype, false, true, backward);
  } else {
    std::cerr << "instructions: no op " << op << "\n";
    return 2;
  }
  return run.sum[0] == run.sum[0] ? 0 : 1;
}

// Lets the child run to its next signal, or by one instruction; the signal, or 0 after its end.
int resume(pid_t child, __ptrace_request how) {
  int status = 0;
  if (ptrace(how, child, nullptr, nullptr) != 0 || waitpid(child, &status, 0) != child) return 0;
  return WIFSTOPPED(status) ? WSTOPSIG(status) : 0;
}

int64_t steps_between_marks(pid_t child) {
  int64_t steps = 0;
  if (resume(child, PTRACE_CONT) != kMark) return 0;
  while (resume(child, PTRACE_SINGLESTEP) == SIGTRAP) ++steps;
  return steps;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 2 && argv[1] == std::string("levels")) {
    for (const char* const* name = cpu::supported_levels(); *name != nullptr; ++name) {
      std::cout << *name << "\n";
    }
    return 0;
  }
  if (argc != 4) {
    std::cerr << "instructions LEVEL OP ELEMENTS | instructions levels\n";
    return 2;
  }
  // On one processor: a step that wakes the other process on another takes up to three times as long.
  cpu_set_t here;
  CPU_ZERO(&here);
  CPU_SET(sched_getcpu(), &here);
  sched_setaffinity(0, sizeof here, &here);
  const pid_t child = fork();
  if (child == 0) {
    if (ptrace(PTRACE_TRACEME, 0, nullptr, nullptr) != 0) return 3;
    raise(SIGSTOP);
    return call(argv[1], argv[2], std::atoll(argv[3]));
  }
  int status = 0;
  if (child < 0 || waitpid(child, &status, 0) != child || !WIFSTOPPED(status)) {
    std::cerr << "instructions: this system doesn't let a process step through another\n";
    return 3;
  }
  const int64_t steps = steps_between_marks(child);
  ptrace(PTRACE_CONT, child, nullptr, nullptr);
  if (waitpid(child, &status, 0) != child || !WIFEXITED(status) || WEXITSTATUS(status) != 0) {
    return 1;
  }
  std::cout << steps << "\n";
  return 0;
}
