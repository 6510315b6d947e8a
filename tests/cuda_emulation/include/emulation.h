// The emulation's functions that a kernel on the host calls. Each kernel's PTX includes this file.
#pragma once

#include <cstddef>
#include <cstdint>

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
extern dim3 threadIdx, blockIdx, blockDim, gridDim;  // of the running fiber

namespace emulation {

void block_barrier();
// Waits for the lanes of `mask` in the caller's warp; each gives 8 bytes and reads `source`'s.
uint64_t exchange(unsigned mask, uint64_t value, int source);
// Notes an error and ends the thread.
void trap();
// An access to memory. read_only: nothing writes that memory while the kernel runs.
enum class Access { read, read_only, write };
// Whether an access is to memory that the test has declared; notes the first that is not, and one
// that another thread's write is not ordered with.
bool check(const void* p, size_t bytes, Access access);
// Counts up a counter that the test has declared, and returns its value before. Above `limit` it starts
// at 0 again.
unsigned atomic_inc(unsigned* p, unsigned limit);
void fence();
// Called between two accesses: in lockstep, the other lanes run up to here.
void give_way();
void complain(const char* what);
uint64_t block_serial();  // the running block's number among all
unsigned thread_now();
unsigned barriers_passed();

}  // namespace emulation
