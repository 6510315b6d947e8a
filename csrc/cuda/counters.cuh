// Counters in device memory, by which a launch's last block knows that it is the last.
#pragma once

#include <cuda_runtime.h>

namespace vae_fast::cuda {

// The counter for a launch on a stream; null if none is left. It is 0 whenever no launch uses it:
// launches on a stream follow each other, and each leaves its counter at 0. A launch that a graph
// captures has a separate counter, because replays may overlap with any other launch.
unsigned* take_counter(cudaStream_t stream);

}  // namespace vae_fast::cuda
