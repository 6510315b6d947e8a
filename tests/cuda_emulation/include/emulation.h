// What a kernel on the host asks of the emulation; in few words, for each kernel's PTX includes it.
#pragma once

#include <cstddef>
#include <cstdint>

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
extern dim3 threadIdx, blockIdx, blockDim, gridDim;  // of the fiber that runs

namespace emulation {

void block_barrier();
// Waits for the lanes of `mask` in the caller's warp; each gives 8 bytes and reads `source`'s.
uint64_t exchange(unsigned mask, uint64_t value, int source);
// Notes it as an error and ends the thread.
void trap();
// Of memory: read_only says that nothing writes it while the kernel runs.
enum class Access { read, read_only, write };
// Whether an access is to memory that the test has declared; notes the first that is not, and one
// that another thread's write is not ordered with.
bool check(const void* p, size_t bytes, Access access);
// Of a counter that the test has declared: the value before; above `limit` it starts at 0 again.
unsigned atomic_inc(unsigned* p, unsigned limit);
void fence();
// Between two accesses: in lockstep, the other lanes come as far.
void give_way();
void complain(const char* what);
uint64_t block_serial();  // of the block that runs, among all
unsigned thread_now();
unsigned barriers_passed();

}  // namespace emulation
