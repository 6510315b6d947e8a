// A pool of threads that nobody can hold up.
//
// A problem is cut into pieces by its size alone. The caller takes part: it does whatever piece
// nobody has begun, so a helper that the scheduler has put aside holds up at most the one piece
// that it is in. Which thread does a piece changes no result. Where one round of pieces follows on
// another, whoever does a round's last piece opens the next, so helpers go on while the caller is off
// its processor. Idle helpers spin for a moment, then sleep until they are woken.
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

// As run_pieces, round after round; pieces are as they are given.
void run_rounds(const Rounds& rounds, int threads);

// run_rounds with as many threads as torch has (library.cpp).
void torch_rounds(const Rounds& rounds);


// Processors that the calling thread may use: by its affinity, and by the quotas of the process's
// control groups, of which half a processor counts as one.
int usable_cpus();

// What the quotas of control groups (v1 and v2) allow, rounded up, or 0 for no limit. `root` is
// where they are mounted, `membership` the text of /proc/self/cgroup.
int quota_cpus(const std::string& root, const std::string& membership);

// For tests: as if `count` processors were usable; 0 ends that.
void pretend_cpus(int count);

}  // namespace vae_fast::cpu
