// Counters in device memory, by which a launch's last block knows that it is the last.
#pragma once

#include <cuda_runtime.h>

namespace vae_fast::cuda {

// A counter that is 0 whenever no launch of its stream is using it: launches on a stream follow each
// other, and every launch leaves its counter at 0 again. A launch that a graph captures has one of its
// own, as replays may overlap with anything. Null where none is left.
unsigned* take_counter(cudaStream_t stream);

}  // namespace vae_fast::cuda
