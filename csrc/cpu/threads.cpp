#include "cpu/threads.h"

#include "cpu/float_mode.h"

#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstring>
#include <exception>
#include <fstream>
#include <mutex>
#include <sstream>
#include <thread>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace vae_fast::cpu {
namespace {

constexpr int kJobs = 8;  // callers at once; one more does its work alone
constexpr int kMostThreads = 64;
constexpr int64_t kMostPieces = 1024;
// Waking a thread costs the caller 2 to 50 us, by the machine. So a helper stays awake over the gaps
// between the ops of a step: it spins for kSpin, then yields. If another process ran meanwhile, it goes
// to sleep: the scheduler favours threads that wake up.
constexpr auto kSpin = std::chrono::microseconds(5);
constexpr auto kAwake = std::chrono::microseconds(2000);
constexpr auto kElsewhere = std::chrono::microseconds(50);   // a longer yield: another process ran
constexpr auto kCallerSpin = std::chrono::microseconds(20);  // the rest of a helper's last piece
// No thread yields between two pieces: Linux (6.18) takes away the rest of its time slice, which beside
// two busy processes cost two fifths of a training step's speed.
constexpr int64_t kWorthWaking = 4;  // pieces; fewer are done before a helper has woken up

void pause() {
#if defined(__x86_64__)
  _mm_pause();
#endif
}

// Sleeps while `word` is `value`; those that wait with one of the bits `who` are woken.
void futex_wait(std::atomic<uint32_t>& word, uint32_t value, uint32_t who = ~0u) {
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAIT_BITSET_PRIVATE, value, nullptr,
          nullptr, who);
}
void futex_wake(std::atomic<uint32_t>& word, int count, uint32_t who = ~0u) {
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAKE_BITSET_PRIVATE, count, nullptr,
          nullptr, who);
}

// Waits awake until done(), or for `most` at most, giving way after `alone`; returns whether it is
// done.
template <class Done>
bool wait_awake(std::chrono::nanoseconds alone, std::chrono::nanoseconds most, const Done& done) {
  using Clock = std::chrono::steady_clock;
  const auto begin = Clock::now();
  for (auto now = begin; now - begin < most;) {
    const bool gave_way = now - begin >= alone;
    if (gave_way) sched_yield();
    for (int i = 0; i < 16; ++i) {
      if (done()) return true;
      pause();
    }
    const auto before = std::exchange(now, Clock::now());
    if (gave_way && now - before > kElsewhere) break;
  }
  return done();
}

// Rounding and the treatment of subnormals are settings of a thread; a piece runs with its caller's.
uint32_t float_mode() {
#if defined(__x86_64__)
  return _mm_getcsr() & ~uint32_t{_MM_EXCEPT_MASK};
#else
  return 0;
#endif
}
void set_float_mode(uint32_t mode) {
#if defined(__x86_64__)
  if (mode != float_mode()) _mm_setcsr(mode);
#else
  (void)mode;
#endif
}

// Pieces [begin, end) that no thread has begun, and for how many threads they are, in one word: a
// thread takes a piece by changing the word.
struct alignas(64) Share {
  std::atomic<uint64_t> left{0};

  static uint64_t word(int64_t threads, int64_t begin, int64_t end) {
    return uint64_t(threads) << 48 | uint64_t(begin) << 24 | uint64_t(end);
  }
  // The owner takes from the front, the others from the back: a thread mostly has the same part
  // of a problem in one call and the next, and finds it in its cache.
  bool take(int thread, bool front, int64_t& piece) {
    uint64_t now = left.load(std::memory_order_relaxed);
    for (;;) {
      const int64_t threads = int64_t(now >> 48);
      const int64_t begin = int64_t(now >> 24 & 0xffffff), end = int64_t(now & 0xffffff);
      if (begin >= end || thread >= threads) return false;
      const uint64_t next = front ? word(threads, begin + 1, end) : word(threads, begin, end - 1);
      // A success makes the job's fields visible, and they stay until this piece is done.
      if (left.compare_exchange_weak(now, next, std::memory_order_acquire)) {
        piece = front ? begin : end - 1;
        return true;
      }
    }
  }
};

// The processors that the calling thread may run on, where that is known.
struct Affinity {
  cpu_set_t cpus;
  bool known;
};

// A slot for one parallel call. Jobs change, the slot stays: a helper that comes late finds no piece
// to take, or a piece of a later job, which it may take too.
struct Job {
  std::atomic<bool> taken{false};
  std::atomic<int> threads{0};      // of the latest call
  std::atomic<uint32_t> done{0};    // pieces of the round
  std::atomic<uint32_t> opened{0};  // changes with every round, and at the end
  std::atomic<bool> finished{false}, waiting{false}, failed{false};
  // Written by whoever opens a round, before there is a piece to take.
  const Rounds* rounds;
  int round;
  uint32_t pieces, float_mode;
  Affinity affinity;
  std::exception_ptr error;  // of the first that failed
  Share shares[kMostThreads];
};

Job jobs[kJobs];
std::atomic<uint32_t> calls{0};  // what sleeping helpers wait on
std::atomic<int> sleeping{0};
std::atomic<int> helpers{0};
std::atomic<int> pretended{0};
thread_local bool within = false;  // a piece is being done by this thread

// Never destroyed: helpers outlive every static of this library.
std::mutex& making_helpers() {
  static std::mutex* const mutex = new std::mutex;
  return *mutex;
}

// Offers the next round's pieces. No other thread uses the job's fields at this point.
void open(Job& job) {
  const int threads = job.threads.load(std::memory_order_relaxed);
  const int64_t pieces = job.rounds->pieces[job.round];
  job.done = 0;
  job.pieces = uint32_t(pieces);
  for (int i = 0; i < threads; ++i) {
    const uint64_t share = Share::word(threads, pieces * i / threads, pieces * (i + 1) / threads);
    job.shares[i].left.store(share, std::memory_order_release);
  }
  calls.fetch_add(1);
  job.opened.fetch_add(1);
  if (pieces >= kWorthWaking && sleeping.load() > 0) {
    const uint32_t who = threads > 32 ? ~0u : (1u << (threads - 1)) - 1;
    futex_wake(calls, threads - 1, who);
  }
  if (job.waiting.load()) futex_wake(job.opened, 1);
}

template <class Body>
void unless_failed(Job& job, const Body& body) {
  if (job.failed.load(std::memory_order_relaxed)) return;
  try {
    body();
  } catch (...) {
    if (!job.failed.exchange(true)) job.error = std::current_exception();
  }
}

// Opens the first round from job.round on that has pieces, or ends the job.
void open_next(Job& job) {
  const Rounds& rounds = *job.rounds;
  for (; job.round < rounds.count && !job.failed; ++job.round) {
    if (rounds.pieces[job.round] > 0) return open(job);
    if (rounds.after != nullptr) {
      unless_failed(job, [&] { rounds.after(job.round, rounds.context); });
    }
  }
  job.finished = true;  // from here on the slot may serve another call
  job.opened.fetch_add(1);
  if (job.waiting.load()) futex_wake(job.opened, 1);
}

void do_piece(Job& job, int64_t piece) {
  const uint32_t pieces = job.pieces;
  const Rounds& rounds = *job.rounds;
  unless_failed(job, [&] { rounds.piece(job.round, piece, rounds.context); });
  if (job.done.fetch_add(1) + 1 < pieces) return;
  if (rounds.after != nullptr) {
    unless_failed(job, [&] { rounds.after(job.round, rounds.context); });
  }
  ++job.round;
  open_next(job);
}

// Does pieces until all are taken; returns whether it did any. `before` is called ahead of each, since
// the next piece may belong to another call in the same slot.
template <class Before>
bool work(Job& job, int own, int threads, const Before& before) {
  bool any = false;
  int64_t piece;
  for (int i = 0; i < threads; ++i) {
    const int share = (own + i) % threads;
    while (job.shares[share].take(own, share == own, piece)) {
      any = true;
      before(job);
      do_piece(job, piece);
    }
  }
  return any;
}

void help(int number) {
  within = true;
  Affinity own{};
  for (;;) {
    const uint32_t seen = calls.load();
    bool any = false;
    for (Job& job : jobs) {
      const int threads = job.threads.load(std::memory_order_relaxed);
      if (number >= threads) continue;
      any |= work(job, number, threads, [&](const Job& begun) {
        set_float_mode(begun.float_mode);
        if (begun.affinity.known && !(own.known && CPU_EQUAL(&own.cpus, &begun.affinity.cpus))) {
          own = begun.affinity;
          own.known = sched_setaffinity(0, sizeof own.cpus, &own.cpus) == 0;
        }
      });
    }
    const auto called = [&] { return calls.load(std::memory_order_relaxed) != seen; };
    if (any || wait_awake(kSpin, kAwake, called)) continue;
    sleeping.fetch_add(1);
    if (calls.load() == seen) futex_wait(calls, seen, 1u << (number - 1) % 32);
    sleeping.fetch_sub(1);
  }
}

void after_fork_in_child() {
  // Of all threads only this one is left.
  for (Job& job : jobs) {
    job.taken = false;
    for (Share& share : job.shares) share.left = 0;
  }
  helpers = 0;
  sleeping = 0;
  making_helpers().unlock();
}

void make_helpers(int wanted) {
  if (helpers.load(std::memory_order_acquire) >= wanted) return;
  const std::lock_guard<std::mutex> lock(making_helpers());
  static const int registered = pthread_atfork(
      [] { making_helpers().lock(); }, [] { making_helpers().unlock(); }, after_fork_in_child);
  (void)registered;
  // Signals are for the program's own threads.
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  try {
    for (int made = helpers.load(); made < wanted; ++made) {
      std::thread thread(help, made + 1);
      pthread_setname_np(thread.native_handle(), "vae_fast");
      thread.detach();
      helpers.store(made + 1, std::memory_order_release);
    }
  } catch (const std::exception&) {  // NOLINT(bugprone-empty-catch)
    // The system has no more threads: those that exist do the work.
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

Job* take_job() {
  for (Job& job : jobs) {
    if (!job.taken.load(std::memory_order_relaxed) && !job.taken.exchange(true)) return &job;
  }
  return nullptr;
}

std::string text_of(const std::string& path) {
  std::ifstream file(path);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

// The smaller of two limits, of which 0 is none.
double smaller(double a, double b) { return a > 0 && (b <= 0 || a < b) ? a : b; }

// The quota of a group and of all that it is in. `read` gives a folder's, or 0.
template <class Read>
double smallest_quota(const std::string& mount, std::string group, const Read& read) {
  double least = read(mount);  // in a container the group's path may be the host's
  while (!group.empty() && group != "/") {
    least = smaller(least, read(mount + group));
    group.resize(group.rfind('/') == std::string::npos ? 0 : group.rfind('/'));
  }
  return least;
}

double quota_v2(const std::string& folder) {
  std::istringstream text(text_of(folder + "/cpu.max"));  // "max 100000" or "50000 100000"
  double quota = 0, period = 0;
  return text >> quota >> period && quota > 0 && period > 0 ? quota / period : 0;
}

double quota_v1(const std::string& folder) {
  std::istringstream quotas(text_of(folder + "/cpu.cfs_quota_us"));
  std::istringstream periods(text_of(folder + "/cpu.cfs_period_us"));
  double quota = 0, period = 0;
  return quotas >> quota && periods >> period && quota > 0 && period > 0 ? quota / period : 0;
}

int allowed_by_quota() {
  static const int allowed = quota_cpus("/sys/fs/cgroup", text_of("/proc/self/cgroup"));
  return allowed;
}

Affinity affinity_of_caller() {
  Affinity found;
  found.known = sched_getaffinity(0, sizeof found.cpus, &found.cpus) == 0;
  return found;
}

int usable(const Affinity& found) {
  if (const int count = pretended.load(std::memory_order_relaxed)) return count;
  int count = found.known ? CPU_COUNT(&found.cpus) : int(std::thread::hardware_concurrency());
  if (const int quota = allowed_by_quota()) count = std::min(count, quota);
  return std::max(count, 1);
}

}  // namespace

int quota_cpus(const std::string& root, const std::string& membership) {
  double least = 0;
  std::istringstream lines(membership);
  for (std::string line; std::getline(lines, line);) {  // hierarchy:controllers:path
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string names = line.substr(first + 1, second - first - 1);
    const std::string group = line.substr(second + 1);
    if (names.empty()) {
      for (const char* mount : {"", "/unified"}) {
        least = smaller(least, smallest_quota(root + mount, group, quota_v2));
      }
    } else if (("," + names + ",").find(",cpu,") != std::string::npos) {
      for (const std::string& mount : {std::string("cpu"), names}) {
        least = smaller(least, smallest_quota(root + "/" + mount, group, quota_v1));
      }
    }
  }
  return int(std::ceil(least));
}

FlushSubnormals::FlushSubnormals(bool wanted) : before_(float_mode()) {
#if defined(__x86_64__)
  if (wanted) set_float_mode(before_ | _MM_FLUSH_ZERO_ON | _MM_DENORMALS_ZERO_ON);
#endif
}
FlushSubnormals::~FlushSubnormals() { set_float_mode(before_); }

int usable_cpus() { return usable(affinity_of_caller()); }

void pretend_cpus(int count) { pretended = count; }

void run_rounds(const Rounds& rounds, int threads) {
  int64_t most = 0;
  for (int i = 0; i < rounds.count; ++i) most = std::max(most, rounds.pieces[i]);
  threads = int(std::min<int64_t>({threads, most, kMostThreads}));
  if (within) threads = 1;
  Affinity own{};
  if (threads > 1) {
    own = affinity_of_caller();
    threads = std::min(threads, usable(own));
  }
  Job* const job = threads > 1 ? take_job() : nullptr;
  if (job == nullptr) {
    for (int i = 0; i < rounds.count; ++i) {
      for (int64_t piece = 0; piece < rounds.pieces[i]; ++piece) {
        rounds.piece(i, piece, rounds.context);
      }
      if (rounds.after != nullptr) rounds.after(i, rounds.context);
    }
    return;
  }
  make_helpers(threads - 1);
  job->rounds = &rounds;
  job->round = 0;
  job->float_mode = float_mode();
  job->affinity = own;
  job->finished = false;
  job->failed = false;
  job->threads.store(threads, std::memory_order_relaxed);
  open_next(*job);

  while (!job->finished) {
    const uint32_t seen = job->opened.load();
    within = true;
    work(*job, 0, threads, [](const Job&) {});
    within = false;
    const auto goes_on = [&] { return job->finished || job->opened.load() != seen; };
    if (wait_awake(kCallerSpin, kCallerSpin, goes_on)) continue;
    job->waiting = true;
    if (!goes_on()) futex_wait(job->opened, seen);
    job->waiting = false;
  }
  std::exception_ptr error;
  std::swap(error, job->error);
  job->taken.store(false, std::memory_order_release);
  if (error) std::rethrow_exception(error);
}

void run_pieces(int64_t begin, int64_t end, int64_t grain, Threads::Body body, void* context,
                int threads) {
  if (end <= begin) return;
  struct Range {
    int64_t begin, end, grain;
    Threads::Body body;
    void* context;
  } range{begin, end, grain, body, context};
  range.grain = std::max({grain, int64_t{1}, (end - begin + kMostPieces - 1) / kMostPieces});
  const int64_t pieces = (end - begin + range.grain - 1) / range.grain;
  const auto run = [](int, int64_t piece, void* of) {
    const Range& range = *static_cast<const Range*>(of);
    const int64_t first = range.begin + piece * range.grain;
    range.body(first, std::min(first + range.grain, range.end), range.context);
  };
  run_rounds({1, &pieces, run, nullptr, &range}, threads);
}

}  // namespace vae_fast::cpu
