// How the calling thread treats subnormal numbers.
#pragma once

#include <cstdint>

namespace vae_fast::cpu {

// While it lives, the thread that made it takes subnormal numbers for zeros and makes none. On other
// architectures than x86-64 it does nothing.
class FlushSubnormals {
 public:
  explicit FlushSubnormals(bool wanted = true);
  ~FlushSubnormals();
  FlushSubnormals(const FlushSubnormals&) = delete;
  FlushSubnormals& operator=(const FlushSubnormals&) = delete;

 private:
  uint32_t before_;
};

}  // namespace vae_fast::cpu
