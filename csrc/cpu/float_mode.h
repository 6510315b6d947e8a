// How the calling thread treats subnormal numbers.
#pragma once

#include <cstdint>

namespace vae_fast::cpu {

// During its lifetime the thread that made it reads and writes subnormal numbers as zeros. It does
// nothing on architectures other than x86-64.
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
