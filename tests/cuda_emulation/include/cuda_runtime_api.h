// A stand-in for CUDA's runtime header: as much of it as csrc/cuda uses, to run on the host.
//
// The emulation compiles the very same .cu files with a C++ compiler. A kernel runs block by
// block; a block's threads are fibers that switch at barriers and shuffles. What a GPU would
// punish is found here: accesses out of bounds or off their alignment, memory read before it was
// written, barriers that not all threads reach, shared memory used before it is filled.
#pragma once

#include <cstddef>
#include <cstdint>

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorLaunchFailure = 719,
};

typedef struct CUstream_st* cudaStream_t;

enum cudaStreamCaptureStatus { cudaStreamCaptureStatusNone = 0, cudaStreamCaptureStatusActive = 1 };

// One device, and a stream's address for its id.
extern "C" cudaError_t cudaGetLastError();
extern "C" cudaError_t cudaGetDevice(int* device);
extern "C" cudaError_t cudaStreamGetId(cudaStream_t stream, unsigned long long* id);
extern "C" cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status);
