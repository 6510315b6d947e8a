// Memory of large CPU outputs, kept for the next one when a tensor dies.
//
// Page faults make a fresh buffer of megabytes slow: it is written at 7 GB/s, a used one at 50 or more.
// torch's CPU allocator returns memory to the system. A training step asks for the same few sizes
// again and again, so the kernels' outputs come from here instead.
#pragma once

#include <cstddef>
#include <cstdint>

namespace vae_fast::cpu {

// Outputs below this many bytes are left to torch's allocator.
constexpr size_t kPooledBytes = 1 << 18;

// A buffer of at least `bytes`, aligned to a page. Throws std::runtime_error.
void* take_buffer(size_t bytes);
// Gives back what take_buffer(bytes) returned. Never throws.
void return_buffer(void* buffer, size_t bytes) noexcept;

// Bytes that are kept for later, and a way to give them to the system.
size_t kept_bytes();
void release_kept();

}  // namespace vae_fast::cpu
