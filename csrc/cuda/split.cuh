// How a problem is cut into tasks: by its size alone, never by the GPU. So sums have one order.
//
// A problem is `segments` runs of `length` elements each: the whole tensor at once, or its rows
// when each row has a sum or an upstream gradient of its own. A segment is cut into parts of whole
// groups, and a part is the task of a team: some lanes of a warp, or a block.
#pragma once

#include "cuda/memory.cuh"
#include "cuda/reduce.cuh"
#include "math/macros.h"

namespace vae_fast::cuda {

// Partial sums of a problem. Few enough that a block's fixed cost, mostly its sum, is small
// compared with its elements', and enough to fill the largest GPU several times.
constexpr int64_t kMaxParts = 2048;
constexpr int64_t kMaxBlocks = 1 << 20;  // of a grid; more tasks than that, and blocks take several
// Below this many elements a block is 2 warps, so that a small problem has more blocks than the
// largest GPU has multiprocessors, or as many as possible.
constexpr int64_t kSmall = int64_t{1} << 20;
constexpr int kSmallThreads = 64;

inline int threads_for(int64_t elements) { return elements < kSmall ? kSmallThreads : kThreads; }

// A task's elements are those from origin + begin to origin + end; origin is a group's first.
struct Range {
  int64_t segment, origin;
  int begin, end;
};

template <int V>
VF_FN int64_t group_of(int64_t element) {
  return static_cast<int64_t>(static_cast<uint64_t>(element) / V);
}

struct Split {
  int64_t segments, length;
  int64_t parts = 1;       // of a segment
  int64_t groups = 0;      // of a part
  int threads = kThreads;  // of a block
  int lanes = kThreads;    // of a team: all of a block's threads, or a power of two up to a warp
  int log2_lanes = 8;

  VF_FN int64_t tasks() const { return segments * parts; }
  VF_FN int teams() const { return threads >> log2_lanes; }
  int64_t blocks() const {
    const int64_t needed = (tasks() + teams() - 1) / teams();
    return needed < kMaxBlocks ? needed : kMaxBlocks;
  }

  template <int V>
  VF_DEVICE Range range(int64_t task) const {
    int64_t segment = 0, part = task;
    if (segments > 1 && parts == 1) {
      segment = task, part = 0;
    } else if (segments > 1) {  // at most kMaxParts tasks: a short division
      segment = static_cast<uint32_t>(task) / static_cast<uint32_t>(parts);
      part = task - segment * parts;
    }
    int64_t begin = segment * length, end = begin + length;
    const int64_t first = group_of<V>(begin) + part * groups;
    if (part > 0) begin = first * V < end ? first * V : end;
    if (part + 1 < parts && (first + groups) * V < end) end = (first + groups) * V;
    const int64_t origin = group_of<V>(begin) * V;
    return {segment, origin, static_cast<int>(begin - origin), static_cast<int>(end - origin)};
  }
};

template <class B>
Split make_split(int64_t segments, int64_t length, int threads = kThreads) {
  Split split{segments, length};
  const auto take_lanes = [&](int lanes) {
    split.lanes = lanes;
    split.log2_lanes = 0;
    while (1 << split.log2_lanes < lanes) ++split.log2_lanes;
  };
  split.threads = threads;
  take_lanes(threads);
  const auto ceil_div = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
  // A segment that starts within a group touches one more than its length needs.
  const bool crooked = segments > 1 && length % B::V != 0;
  const int64_t groups = ceil_div(length, B::V) + (crooked ? 1 : 0);
  const int64_t tile = int64_t{threads} * B::U;
  split.groups = groups;
  if (segments > 1 && groups <= 4 * kWarp * B::U) {
    int lanes = 1;
    while (lanes < kWarp && lanes * B::U < groups) lanes *= 2;
    take_lanes(lanes);
    return split;
  }
  const int64_t most = segments < kMaxParts ? kMaxParts / (segments < 1 ? 1 : segments) : 1;
  const int64_t parts = ceil_div(groups, tile) < most ? ceil_div(groups, tile) : most;
  if (parts > 1) {
    split.groups = ceil_div(ceil_div(groups, parts), tile) * tile;
    split.parts = ceil_div(groups, split.groups);
  }
  return split;
}

// Gives each team its tasks. `body(range, lane, lanes)` is a lane's work and returns its share of
// the sum; `done(task, sum)` is called by one lane of the team. The caller is `block` of `blocks`.
template <int V, bool SUM, class Body, class Done>
VF_DEVICE void for_each_task(const Split& split, int64_t block, int64_t blocks, const Body& body,
                             const Done& done) {
  const int lanes = split.lanes;
  const int lane = static_cast<int>(threadIdx.x) & (lanes - 1);
  const int team = static_cast<int>(threadIdx.x) >> split.log2_lanes;
  const int64_t tasks = split.tasks();
  // The loop is the same for all threads of a block: they meet in the sums.
  for (int64_t first = block * split.teams(); first < tasks; first += blocks * split.teams()) {
    const int64_t task = first + team;
    double sum = 0.0;
    if (task < tasks) sum = body(split.range<V>(task), lane, lanes);
    if constexpr (SUM) {
      sum = lanes > kWarp ? block_sum(sum) : team_sum(sum, lanes);
      if (lane == 0 && task < tasks) done(task, sum);
    }
  }
}

}  // namespace vae_fast::cuda
