// The emulated GPU: fibers for a block's threads, and checked memory.
#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "cuda_runtime.h"

dim3 threadIdx, blockIdx, blockDim, gridDim;

// The linker's names for the ends of the section that holds all shared variables.
extern "C" char __start_emulated_shared[] __attribute__((visibility("hidden")));
extern "C" char __stop_emulated_shared[] __attribute__((visibility("hidden")));

namespace emulation {
namespace {

constexpr unsigned kMaxThreads = 1024, kWarp = 32;
constexpr size_t kStack = 256 * 1024;

// --- what the test declared and wants to know ---

enum class Kind { input, output, counter, changed };

// Who wrote a byte last, and when.
struct Write {
  int launch;
  unsigned block, thread, barriers;  // the barriers that the thread had passed
  uint64_t time;
};

struct Region {
  const char* begin;
  size_t bytes;
  Kind kind;
  std::vector<uint8_t> writes;  // how often each byte was written
  std::vector<Write> last;
  std::vector<Write> read;  // of what is changed: who read a byte last, before it is written
};

std::vector<Region> regions;
std::vector<Region> symbols;  // which stay from test to test
bool capturing;
std::string error;
unsigned order_seed;
int launches;
bool lockstep;  // lanes go from one access to the next together
uint64_t clock_time, blocks_run;

void complain(const std::string& what) {
  if (error.empty()) {
    error = what + " (block " + std::to_string(blockIdx.x) + ", thread " +
            std::to_string(threadIdx.x) + ")";
  }
}

// --- fibers ---

enum class State { ready, at_block_barrier, at_exchange, done };

// A fiber is made once and kept from block to block. Its first entry is by ucontext, which gives
// it its stack; from then on setjmp and longjmp switch, which need no system call.
struct Fiber {
  ucontext_t entry;
  jmp_buf place;
  bool made;
  State state;
  unsigned mask;        // of the exchange it waits in
  uint64_t offered[2];  // two exchanges in turn: a lane may be one ahead of its readers
  unsigned exchanges;
  unsigned barriers;
  uint64_t fence;  // when it last passed one, and how many barriers it had passed then
  unsigned barriers_at_fence;
  bool has_counted;  // it has read the counter, and so may see what blocks before have released
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

// What a block made visible to the others, by a fence and then the counter.
struct Release {
  bool any;
  unsigned thread, barriers;
  uint64_t fence;
};
std::vector<Release> releases;
// The thread of the running block that has seen the counter and then passed a fence.
bool acquired;
unsigned acquirer, acquired_after;

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
  for (unsigned t = 0; t < threads; ++t) {
    fibers[t].state = State::ready;
    ++fibers[t].barriers;
  }
  return true;
}

// Each warp runs as far as it can before the next one does: a missing barrier gives a wrong result in
// one order of the warps or another.
bool run_block(unsigned threads, std::vector<unsigned>& warps, std::vector<unsigned>& lanes,
               std::mt19937& random) {
  std::memset(__start_emulated_shared, 0xff, __stop_emulated_shared - __start_emulated_shared);
  for (unsigned t = 0; t < threads; ++t) {
    fibers[t].state = State::ready;
    Fiber& fiber = fibers[t];
    fiber.exchanges = fiber.barriers = fiber.barriers_at_fence = 0;
    fiber.fence = 0;
    fiber.has_counted = false;
  }
  acquired = false;
  ++blocks_run;
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
    const auto is_ready = [](const Fiber& fiber) { return fiber.state == State::ready; };
    if (lockstep && std::any_of(fibers, fibers + threads, is_ready)) continue;
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
  releases.assign(grid.x, {});
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

void complain(const char* what) { complain(std::string(what)); }

void give_way() {
  if (lockstep) wait(State::ready);
}

uint64_t block_serial() { return blocks_run; }
unsigned thread_now() { return current; }
unsigned barriers_passed() { return fibers[current].barriers; }

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

namespace {

// Whether what was written is ordered before what the current thread does now.
bool is_ordered(const Write& write) {
  if (write.launch != launches) return true;
  const Fiber& own = fibers[current];
  if (write.block == blockIdx.x) return write.thread == current || write.barriers < own.barriers;
  const Release& release = releases[write.block];
  const bool released =
      release.any && (write.thread == release.thread ? write.time < release.fence
                                                     : write.barriers < release.barriers);
  return released && acquired && (acquirer == current || acquired_after < own.barriers);
}

Region* region_of(const void* p, size_t bytes) {
  const char* at = static_cast<const char*>(p);
  if (reinterpret_cast<uintptr_t>(p) % bytes != 0) {
    complain("misaligned access of " + std::to_string(bytes) + " bytes");
    return nullptr;
  }
  for (Region& region : regions) {
    if (at >= region.begin && at + bytes <= region.begin + region.bytes) return &region;
  }
  for (Region& region : symbols) {
    if (at >= region.begin && at + bytes <= region.begin + region.bytes) return &region;
  }
  complain("access of " + std::to_string(bytes) + " bytes out of bounds");
  return nullptr;
}

}  // namespace

bool check(const void* p, size_t bytes, Access access) {
  give_way();
  Region* region = region_of(p, bytes);
  if (region == nullptr) return false;
  if (region->kind == Kind::counter) {
    complain("a counter is accessed, but not by an atomic instruction");
    return false;
  }
  if (region->kind == Kind::input) {
    if (access == Access::write) complain("write to an input");
    return access != Access::write;
  }
  if (access == Access::read_only) {
    complain("memory that the kernel writes is read as if it did not");
    return false;
  }
  const size_t offset = static_cast<const char*>(p) - region->begin;
  const Write now{launches, blockIdx.x, current, fibers[current].barriers, ++clock_time};
  for (size_t i = offset; i < offset + bytes; ++i) {
    const bool as_it_was = region->kind == Kind::changed && region->writes[i] == 0;
    if (access == Access::write) {
      if (as_it_was && region->read[i].launch != 0 && !is_ordered(region->read[i])) {
        complain("write to memory whose read is not ordered before");
      }
      region->writes[i] = static_cast<uint8_t>(std::min(255, region->writes[i] + 1));
      region->last[i] = now;
    } else if (as_it_was) {
      region->read[i] = now;
    } else if (region->writes[i] == 0) {
      complain("read of memory that nothing has written");
      return false;
    } else if (!is_ordered(region->last[i])) {
      complain("read of memory whose write is not ordered before");
      return false;
    }
  }
  return true;
}

unsigned atomic_inc(unsigned* p, unsigned limit) {
  give_way();
  Region* region = region_of(p, sizeof *p);
  if (region == nullptr) return 0;
  if (region->kind != Kind::counter) {
    complain("an atomic instruction on what is no counter");
    return 0;
  }
  Fiber& own = fibers[current];
  own.has_counted = true;
  releases[blockIdx.x] = {own.fence != 0, current, own.barriers_at_fence, own.fence};
  const unsigned before = *p;
  *p = before >= limit ? 0 : before + 1;
  return before;
}

void fence() {
  Fiber& own = fibers[current];
  own.fence = ++clock_time;
  own.barriers_at_fence = own.barriers;
  if (own.has_counted && !acquired) {
    acquired = true;
    acquirer = current;
    acquired_after = own.barriers;
  }
}

void trap() {
  complain("trap");
  fibers[current].made = false;  // it never comes back
  wait(State::done);
}

}  // namespace emulation

// --- of the runtime ---

extern "C" cudaError_t cudaGetLastError() { return cudaSuccess; }
extern "C" cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
extern "C" cudaError_t cudaStreamGetId(cudaStream_t stream, unsigned long long* id) {
  return *id = reinterpret_cast<uintptr_t>(stream), cudaSuccess;
}
extern "C" cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  *status = emulation::capturing ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
cudaError_t emulated_symbol(void** address, void* symbol, size_t bytes) {
  *address = symbol;
  emulation::symbols.push_back({static_cast<const char*>(symbol), bytes, emulation::Kind::counter,
                                {}, {}, {}});
  return cudaSuccess;
}

// --- for ctypes ---

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT void emulation_reset(unsigned order) {
  emulation::regions.clear();
  emulation::error.clear();
  emulation::launches = 0;
  emulation::order_seed = order;
}
EXPORT void emulation_capturing(int on) { emulation::capturing = on != 0; }
EXPORT void emulation_lockstep(int on) { emulation::lockstep = on != 0; }
// 0: only read. 1: written once, and then perhaps read. 2: a counter. 3: read, and perhaps then
// written, once.
EXPORT void emulation_declare(const void* p, size_t bytes, int kind) {
  const size_t watched = kind == 1 || kind == 3 ? bytes : 0;
  emulation::regions.push_back({static_cast<const char*>(p), bytes,
                                static_cast<emulation::Kind>(kind), std::vector<uint8_t>(watched),
                                std::vector<emulation::Write>(watched),
                                std::vector<emulation::Write>(kind == 3 ? bytes : 0)});
}
// The fewest and the most writes of a byte of the i-th declared region.
EXPORT void emulation_writes(int i, int* fewest, int* most) {
  const std::vector<uint8_t>& writes = emulation::regions[i].writes;
  *fewest = writes.empty() ? 1 : *std::min_element(writes.begin(), writes.end());
  *most = writes.empty() ? 1 : *std::max_element(writes.begin(), writes.end());
}
EXPORT const char* emulation_error() { return emulation::error.c_str(); }
EXPORT int emulation_launches() { return emulation::launches; }
EXPORT int emulation_blocks() { return static_cast<int>(gridDim.x); }  // of the latest launch
