// The emulated GPU: fibers for a block's threads, checked memory, and the drivers as C functions.
#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <numeric>
#include <random>
#include <string>
#include <type_traits>
#include <vector>

#include "cuda/drivers.h"
#include "cuda/split.cuh"
#include "cuda_runtime.h"
#include "ops/fields.h"

dim3 threadIdx, blockIdx, blockDim, gridDim;

// The linker's names for the ends of the section that holds all shared variables.
extern "C" char __start_emulated_shared[] __attribute__((visibility("hidden")));
extern "C" char __stop_emulated_shared[] __attribute__((visibility("hidden")));

namespace emulation {
namespace {

constexpr unsigned kMaxThreads = 1024, kWarp = 32;
constexpr size_t kStack = 256 * 1024;

// --- what the test declared and wants to know ---

struct Region {
  const char* begin;
  size_t bytes;
  bool writable;
  std::vector<uint8_t> writes;  // how often each byte was written
};

std::vector<Region> regions;
std::string error;
unsigned order_seed;
int launches;

void complain(const std::string& what) {
  if (error.empty()) {
    error = what + " (block " + std::to_string(blockIdx.x) + ", thread " +
            std::to_string(threadIdx.x) + ")";
  }
}

// --- fibers ---

enum class State { ready, at_block_barrier, at_exchange, done };

// Made once, and kept from block to block. The first entry of a fiber is by ucontext, which gives
// it its stack; from then on setjmp and longjmp switch, which need no system call.
struct Fiber {
  ucontext_t entry;
  jmp_buf place;
  bool made;
  State state;
  unsigned mask;        // of the exchange it waits in
  uint64_t offered[2];  // two exchanges in turn: a lane may be one ahead of its readers
  unsigned exchanges;
};

Fiber fibers[kMaxThreads];
char* stacks;
jmp_buf scheduler;
unsigned current;
const std::function<void()>* body;

void wait(State state) {
  Fiber& fiber = fibers[current];
  fiber.state = state;
  if (_setjmp(fiber.place) == 0) _longjmp(scheduler, 1);
}

void fiber_main() {
  for (;;) {
    (*body)();
    wait(State::done);
  }
}

void resume(unsigned t) {
  current = t;
  threadIdx = dim3(t, 0, 0);
  Fiber& fiber = fibers[t];
  if (_setjmp(scheduler) != 0) return;
  if (fiber.made) _longjmp(fiber.place, 1);
  fiber.made = true;
  getcontext(&fiber.entry);
  fiber.entry.uc_stack.ss_sp = stacks + t * kStack;
  fiber.entry.uc_stack.ss_size = kStack;
  fiber.entry.uc_link = nullptr;
  makecontext(&fiber.entry, fiber_main, 0);
  setcontext(&fiber.entry);
}

// Wakes the lanes of a warp whose exchange is complete; false if there are none.
bool release_exchange(unsigned warp, unsigned lanes) {
  bool any = false;
  for (unsigned lane = 0; lane < lanes; ++lane) {
    const Fiber& fiber = fibers[warp + lane];
    if (fiber.state != State::at_exchange) continue;
    const unsigned mask = fiber.mask;
    bool complete = true;
    for (unsigned other = 0; other < kWarp && complete; ++other) {
      if ((mask >> other & 1u) == 0) continue;
      complete = other < lanes && fibers[warp + other].state == State::at_exchange &&
                 fibers[warp + other].mask == mask &&
                 fibers[warp + other].exchanges == fiber.exchanges;
    }
    if (!complete) continue;
    for (unsigned other = 0; other < lanes; ++other) {
      if (mask >> other & 1u) fibers[warp + other].state = State::ready;
    }
    any = true;
  }
  return any;
}

// A thread that has returned never comes to a barrier: as on a GPU, nobody may wait for it.
bool release_barrier(unsigned threads) {
  for (unsigned t = 0; t < threads; ++t) {
    if (fibers[t].state != State::at_block_barrier) return false;
  }
  for (unsigned t = 0; t < threads; ++t) fibers[t].state = State::ready;
  return true;
}

// Each warp runs as far as it can before the next one does: what a missing barrier leaves open
// goes wrong in one order of the warps or another.
bool run_block(unsigned threads, std::vector<unsigned>& warps, std::vector<unsigned>& lanes,
               std::mt19937& random) {
  std::memset(__start_emulated_shared, 0xff, __stop_emulated_shared - __start_emulated_shared);
  for (unsigned t = 0; t < threads; ++t) {
    fibers[t].state = State::ready;
    fibers[t].exchanges = 0;
  }
  unsigned left = threads;
  while (left > 0) {
    if (order_seed > 1) {
      std::shuffle(warps.begin(), warps.end(), random);
      std::shuffle(lanes.begin(), lanes.end(), random);
    }
    for (const unsigned warp : warps) {
      const unsigned count = std::min(kWarp, threads - warp);
      do {
        for (const unsigned lane : lanes) {
          if (lane >= count || fibers[warp + lane].state != State::ready) continue;
          resume(warp + lane);
          if (fibers[warp + lane].state == State::done) --left;
        }
      } while (release_exchange(warp, count));
    }
    if (left > 0 && !release_barrier(threads)) {
      complain("threads wait at a barrier that the others never reach");
      for (unsigned t = 0; t < threads; ++t) fibers[t].made = false;  // they never come back
      return false;
    }
  }
  return true;
}

}  // namespace

cudaError_t run(dim3 grid, dim3 threads, const std::function<void()>& kernel) {
  if (grid.x == 0 || threads.x == 0 || threads.x > kMaxThreads || grid.x > 0x7fffffffu) {
    return cudaErrorInvalidConfiguration;
  }
  if (stacks == nullptr) {
    void* memory = mmap(nullptr, kMaxThreads * kStack, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) return cudaErrorLaunchFailure;
    stacks = static_cast<char*>(memory);
  }
  ++launches;
  gridDim = grid;
  blockDim = threads;
  body = &kernel;
  // No order of blocks or threads may change a result: 0 is forward, 1 backward, others shuffle.
  std::mt19937 random(order_seed);
  std::vector<unsigned> blocks(grid.x), warps((threads.x + kWarp - 1) / kWarp), lanes(kWarp);
  std::iota(blocks.begin(), blocks.end(), 0u);
  std::iota(lanes.begin(), lanes.end(), 0u);
  for (unsigned w = 0; w < warps.size(); ++w) warps[w] = w * kWarp;
  if (order_seed == 1) {
    for (std::vector<unsigned>* order : {&blocks, &warps, &lanes}) {
      std::reverse(order->begin(), order->end());
    }
  }
  if (order_seed > 1) std::shuffle(blocks.begin(), blocks.end(), random);
  for (const unsigned block : blocks) {
    blockIdx = dim3(block, 0, 0);
    if (!run_block(threads.x, warps, lanes, random) || !error.empty()) {
      return cudaErrorLaunchFailure;
    }
  }
  return cudaSuccess;
}

void block_barrier() { wait(State::at_block_barrier); }

uint64_t exchange(unsigned mask, uint64_t value, int source) {
  Fiber& own = fibers[current];
  const unsigned warp = current / kWarp * kWarp, turn = own.exchanges & 1u;
  if ((mask >> (current % kWarp) & 1u) == 0) complain("a lane outside a shuffle's mask calls it");
  own.mask = mask;
  own.offered[turn] = value;
  ++own.exchanges;
  wait(State::at_exchange);
  if ((mask >> source & 1u) == 0) {
    complain("a shuffle reads a lane outside its mask");
    return 0;
  }
  return fibers[warp + source].offered[turn];
}

bool check(const void* p, size_t bytes, bool write) {
  const char* at = static_cast<const char*>(p);
  if (reinterpret_cast<uintptr_t>(p) % bytes != 0) {
    complain("misaligned access of " + std::to_string(bytes) + " bytes");
    return false;
  }
  for (Region& region : regions) {
    if (at < region.begin || at + bytes > region.begin + region.bytes) continue;
    const size_t offset = at - region.begin;
    if (!region.writable) {
      if (write) complain("write to an input");
      return !write;
    }
    for (size_t i = offset; i < offset + bytes; ++i) {
      if (write) {
        region.writes[i] = static_cast<uint8_t>(std::min(255, region.writes[i] + 1));
      } else if (region.writes[i] == 0) {
        complain("read of memory that nothing has written");
        return false;
      }
    }
    return true;
  }
  complain(std::string(write ? "write" : "read") + " of " + std::to_string(bytes) +
           " bytes out of bounds");
  return false;
}

void trap() {
  complain("trap");
  fibers[current].made = false;  // it never comes back
  wait(State::done);
}

}  // namespace emulation

using namespace vae_fast;

// --- for ctypes ---

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT void emulation_reset(unsigned order) {
  emulation::regions.clear();
  emulation::error.clear();
  emulation::launches = 0;
  emulation::order_seed = order;
}
EXPORT void emulation_declare(const void* p, size_t bytes, int writable) {
  emulation::regions.push_back({static_cast<const char*>(p), bytes, writable != 0,
                                std::vector<uint8_t>(writable != 0 ? bytes : 0)});
}
// The fewest and the most writes of a byte of the i-th declared region.
EXPORT void emulation_writes(int i, int* fewest, int* most) {
  const std::vector<uint8_t>& writes = emulation::regions[i].writes;
  *fewest = writes.empty() ? 1 : *std::min_element(writes.begin(), writes.end());
  *most = writes.empty() ? 1 : *std::max_element(writes.begin(), writes.end());
}
EXPORT const char* emulation_error() { return emulation::error.c_str(); }
EXPORT int emulation_launches() { return emulation::launches; }

// How ctypes spells a field's type: a format character, or a struct's name.
template <class T>
struct Spelling {
  static std::string of() { return std::is_pointer_v<T> ? "P" : std::is_enum_v<T> ? "i" : "?"; }
};
#define SPELLING(T, text)                      \
  template <>                                  \
  struct Spelling<T> {                         \
    static std::string of() { return text; }   \
  };
#define SPELLED_STRUCT(T) SPELLING(T, #T)
#define NOTHING(...)
SPELLING(int, "i")
SPELLING(int64_t, "q")
SPELLING(double, "d")
SPELLING(bool, "?")
VF_ARGS(SPELLED_STRUCT, NOTHING, NOTHING)

// The structs of args.h as text: a line "struct NAME SIZE" and, for each field, "NAME OFFSET TYPE
// COUNT", COUNT being 0 of what is no array.
EXPORT const char* emulated_layout() {
  static std::string text;
  text.clear();
#define LAYOUT_STRUCT(S) text += "struct " #S " " + std::to_string(sizeof(S)) + "\n";
#define LAYOUT_FIELD(S, field)                                                       \
  text += #field " " + std::to_string(offsetof(S, field)) + " " +                    \
          Spelling<std::remove_all_extents_t<decltype(S::field)>>::of() + " " +      \
          std::to_string(std::extent_v<decltype(S::field)>) + "\n";
  VF_ARGS(LAYOUT_STRUCT, LAYOUT_FIELD, NOTHING)
  return text.c_str();
}
EXPORT int emulated_likelihoods(const char** names, bool* reads_half) {
  return cuda::likelihoods_on_cuda(names, reads_half);
}
EXPORT const char* emulated_refusal(const Likelihood* args) { return cuda::refusal(*args); }
EXPORT size_t emulated_gaussian_workspace(const GaussianForward* args) {
  return cuda::gaussian_workspace(*args);
}
EXPORT int emulated_gaussian_forward(const GaussianForward* args, void* workspace) {
  return cuda::gaussian_forward(*args, workspace, nullptr);
}
EXPORT int emulated_gaussian_backward(const GaussianBackward* args) {
  return cuda::gaussian_backward(*args, nullptr);
}
EXPORT size_t emulated_nll_workspace(const Likelihood* args) { return cuda::nll_workspace(*args); }
EXPORT int emulated_nll(const Likelihood* args, void* workspace) {
  return cuda::nll(*args, workspace, nullptr);
}
EXPORT size_t emulated_elbo_workspace(const Elbo* args) { return cuda::elbo_workspace(*args); }
EXPORT int emulated_elbo(const Elbo* args, void* workspace) {
  return cuda::elbo(*args, workspace, nullptr);
}
EXPORT int emulated_gather(const Gather* args) { return cuda::gather(*args, nullptr); }
// How a problem is cut: tasks, lanes of a team and blocks; and one task's segment, begin and end.
EXPORT void emulated_split(int64_t segments, int64_t length, int half, int64_t* cut, int64_t task,
                           int64_t* range) {
  const cuda::Split split = half != 0 ? cuda::make_split<cuda::Batch<8, 2>>(segments, length)
                                      : cuda::make_split<cuda::Batch<4, 4>>(segments, length);
  cut[0] = split.tasks(), cut[1] = split.lanes, cut[2] = split.blocks();
  const cuda::Range r = half != 0 ? split.range<8>(task) : split.range<4>(task);
  range[0] = r.segment, range[1] = r.begin, range[2] = r.end;
}
EXPORT int emulated_philox_words(const int64_t* key, uint64_t first, int64_t counters,
                                 uint32_t* words) {
  return cuda::philox_words(key, first, counters, words, nullptr);
}
