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

constexpr int64_t kMaxParts = 8192;     // of the problem: what the second stage adds up
constexpr int64_t kMaxBlocks = 1 << 20;  // of a grid; more tasks than that, and blocks take several

struct Range {
  int64_t segment, begin, end;  // elements [begin, end) of it
};

struct Split {
  int64_t segments, length;
  int64_t parts = 1;   // of a segment
  int64_t groups = 0;  // of a part
  int lanes = kThreads;  // of a team: kThreads, or a power of two up to a warp

  VF_FN int64_t tasks() const { return segments * parts; }
  VF_FN int teams() const { return kThreads / lanes; }
  int64_t blocks() const {
    const int64_t needed = (tasks() + teams() - 1) / teams();
    return needed < kMaxBlocks ? needed : kMaxBlocks;
  }

  template <int V>
  VF_DEVICE Range range(int64_t task) const {
    const int64_t segment = parts == 1 ? task : task / parts;
    const int64_t part = task - segment * parts;
    int64_t begin = segment * length, end = begin + length;
    const int64_t first = begin / V + part * groups;
    if (part > 0) begin = first * V < end ? first * V : end;
    if (part + 1 < parts && (first + groups) * V < end) end = (first + groups) * V;
    return {segment, begin, end};
  }
};

template <class B>
Split make_split(int64_t segments, int64_t length) {
  Split split{segments, length};
  const auto ceil_div = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
  // A segment that starts within a group touches one more than its length needs.
  const bool crooked = segments > 1 && length % B::V != 0;
  const int64_t groups = ceil_div(length, B::V) + (crooked ? 1 : 0);
  const int64_t tile = int64_t{kThreads} * B::U;
  split.groups = groups;
  if (segments > 1 && groups <= 4 * kWarp * B::U) {
    split.lanes = 1;
    while (split.lanes < kWarp && split.lanes * B::U < groups) split.lanes *= 2;
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

// A problem of two blocks is done by one, which can then add up by itself, in the same launch.
inline int64_t stage_one_blocks(int64_t blocks) { return blocks <= 2 && blocks > 0 ? 1 : blocks; }

// Gives each team its tasks. `body(range, lane, lanes)` is a lane's work and returns its share of
// the sum; `done(task, sum)` is called by one lane of the team. The caller is `block` of `blocks`.
template <int V, bool SUM, class Body, class Done>
VF_DEVICE void for_each_task(const Split& split, int64_t block, int64_t blocks, const Body& body,
                             const Done& done) {
  const int lanes = split.lanes;
  const int lane = static_cast<int>(threadIdx.x) & (lanes - 1);
  const int team = static_cast<int>(threadIdx.x) / lanes;
  const int64_t tasks = split.tasks();
  // The loop is the same for all threads of a block: they meet in the sums.
  for (int64_t first = block * split.teams(); first < tasks; first += blocks * split.teams()) {
    const int64_t task = first + team;
    double sum = 0.0;
    if (task < tasks) sum = body(split.range<V>(task), lane, lanes);
    if constexpr (SUM) {
      sum = lanes == kThreads ? block_sum(sum) : team_sum(sum, lanes);
      if (lane == 0 && task < tasks) done(task, sum);
    }
  }
}

}  // namespace vae_fast::cuda
