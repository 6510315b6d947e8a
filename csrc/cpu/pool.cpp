#include "cpu/pool.h"

#include <cstdlib>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif
#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace vae_fast::cpu {
namespace {

constexpr size_t kPage = 4096;
constexpr size_t kHugePage = size_t{2} << 20;
// What is kept at most. Beyond it the oldest buffers go back to the system.
constexpr size_t kKeptAtMost = size_t{1} << 30;

struct Buffer {
  void* data;
  size_t bytes;
};

struct Pool {
  std::mutex mutex;
  std::vector<Buffer> kept;  // oldest first
  size_t bytes = 0;

  Buffer remove(size_t i) {
    const Buffer buffer = kept[i];
    kept.erase(kept.begin() + static_cast<std::ptrdiff_t>(i));
    bytes -= buffer.bytes;
    return buffer;
  }
};

// Never destroyed: tensors may outlive every static of this library.
Pool& pool() {
  static Pool* const p = [] {
    Pool* const made = new Pool;
#if defined(__unix__) || defined(__APPLE__)
    // A child that is forked while another thread holds the lock would wait for it forever.
    pthread_atfork([] { pool().mutex.lock(); }, [] { pool().mutex.unlock(); },
                   [] { pool().mutex.unlock(); });
#endif
    return made;
  }();
  return *p;
}

size_t rounded(size_t bytes) {
  const size_t unit = bytes >= kHugePage ? kHugePage / 8 : kPage;
  return (bytes + unit - 1) / unit * unit;
}

}  // namespace

void* take_buffer(size_t bytes) {
  const size_t size = rounded(bytes);
  {
    // The most recent buffer of this size: it is the most likely to be in the cache.
    Pool& p = pool();
    const std::lock_guard<std::mutex> lock(p.mutex);
    for (size_t i = p.kept.size(); i-- > 0;) {
      if (p.kept[i].bytes == size) return p.remove(i).data;
    }
  }
  const size_t alignment = size >= kHugePage ? kHugePage : kPage;
  void* data = nullptr;
  if (posix_memalign(&data, alignment, size) != 0) {
    release_kept();
    if (posix_memalign(&data, alignment, size) != 0) {
      throw std::runtime_error("vae_fast: can't allocate memory: " + std::to_string(bytes) +
                               " bytes were asked for; take smaller batches");
    }
  }
#if defined(__linux__)
  if (size >= kHugePage) madvise(data, size, MADV_HUGEPAGE);  // a hint: failure is no error
#endif
  return data;
}

void return_buffer(void* data, size_t bytes) noexcept {
  const size_t size = rounded(bytes);
  Pool& p = pool();
  const std::lock_guard<std::mutex> lock(p.mutex);
  if (size > kKeptAtMost / 2) return std::free(data);
  while (p.bytes + size > kKeptAtMost) std::free(p.remove(0).data);
  try {
    p.kept.push_back({data, size});
    p.bytes += size;
  } catch (...) {
    std::free(data);
  }
}

size_t kept_bytes() {
  Pool& p = pool();
  const std::lock_guard<std::mutex> lock(p.mutex);
  return p.bytes;
}

void release_kept() {
  Pool& p = pool();
  const std::lock_guard<std::mutex> lock(p.mutex);
  while (!p.kept.empty()) std::free(p.remove(p.kept.size() - 1).data);
}

}  // namespace vae_fast::cpu
