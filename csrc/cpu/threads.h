// A pool of threads that a busy machine does not hold up.
//
// A problem is cut into pieces by its size alone. The caller takes part: it does the pieces that no
// thread has begun, so a helper that the scheduler has suspended delays at most the piece that it is
// in. Results do not depend on which thread does a piece. Between rounds, the thread that finishes a
// round's last piece opens the next round, so helpers go on while the caller is off its processor.
// Idle helpers spin for a moment, then sleep until they are woken.
#pragma once

#include <cstdint>
#include <string>

#include "cpu/drivers.h"
#include "cpu/rounds.h"

namespace vae_fast::cpu {

// Runs body(begin, end, context) over [begin, end) in pieces of `grain` (of more, if there would be
// too many), on the caller and at most `threads` - 1 helpers, and no more than the processors that
// the caller may use (`usable_cpus`). Calls from within a piece run on the thread that makes them.
// An exception of a piece is thrown on the caller, once no piece is running.
void run_pieces(int64_t begin, int64_t end, int64_t grain, Threads::Body body, void* context,
                int threads);

// Like run_pieces, one round after another. The rounds say what their pieces are.
void run_rounds(const Rounds& rounds, int threads);

// run_rounds with as many threads as torch has (library.cpp).
void torch_rounds(const Rounds& rounds);

// Processors that the calling thread may use, by its affinity and by the quotas of the process's
// control groups. A quota of half a processor counts as one.
int usable_cpus();

// What the quotas of control groups (v1 and v2) allow, rounded up, or 0 for no limit. `root` is
// where they are mounted, `membership` the text of /proc/self/cgroup.
int quota_cpus(const std::string& root, const std::string& membership);

// For tests: as if `count` processors were usable; 0 ends that.
void pretend_cpus(int count);

}  // namespace vae_fast::cpu
