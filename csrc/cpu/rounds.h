// Rounds of pieces: work for a thread pool in which each round depends on the one before.
#pragma once

#include <cstdint>

namespace vae_fast::cpu {

// Pieces of one round are independent; a round begins when the one before is done.
struct Rounds {
  int count;
  const int64_t* pieces;  // of each round
  void (*piece)(int round, int64_t piece, void* context);
  // Called when a round is done, by the thread that did its last piece, alone; or null.
  void (*after)(int round, void* context);
  void* context;
};

// Runs them on the caller's thread pool.
using RunRounds = void (*)(const Rounds& rounds);

}  // namespace vae_fast::cpu
