// What stands where libcudart does, below nvcc's own host code: a launch runs the kernel's PTX, as
// translate.py wrote it in C++, in the emulation.
#include <cfenv>
#include <map>
#include <string>

#include "cuda_runtime.h"
#include "machine.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace emulation {

// Here, for the emulation to poison it before each block.
char shared_memory[32768] __attribute__((section("emulated_shared")));
uint64_t poison_word = 0x9e3779b97f4a7c15u;

namespace {

bool approximate_at_worst;

struct Touch {
  uint64_t block;
  unsigned thread, barriers;
  bool any, several;
};
struct {
  Touch write, read;
} touched[sizeof shared_memory];

template <class F>
auto rounded(Rounding rounding, const F& f) {
  const int before = std::fegetround();
  std::fesetround(rounding == down ? FE_DOWNWARD : rounding == up ? FE_UPWARD : FE_TOWARDZERO);
  const auto result = f();
  std::fesetround(before);
  return result;
}

}  // namespace

float fma_directed(float a, float b, float c, Rounding rounding) {
  volatile float x = a, y = b, z = c;
  return rounded(rounding, [&] { volatile float r = std::fma(x, y, z); return float(r); });
}
double fma_directed(double a, double b, double c, Rounding rounding) {
  volatile double x = a, y = b, z = c;
  return rounded(rounding, [&] { volatile double r = std::fma(x, y, z); return double(r); });
}
float add_directed(float a, float b, Rounding rounding) {
  volatile float x = a, y = b;
  return rounded(rounding, [&] { volatile float r = x + y; return float(r); });
}

float approximate(double exact, double relative, uint64_t bits) {
  if (!approximate_at_worst || exact == 0.0 || exact == 1.0 || !std::isfinite(exact)) {
    return static_cast<float>(exact);
  }
  const bool more = (bits * 0x9e3779b97f4a7c15u) >> 63;
  return static_cast<float>(exact * (1.0 + (more ? relative : -relative)));
}

double gross_reciprocal(double x) {  // of the upper 32 bits, in the upper 32 bits
  constexpr uint64_t kHigh = 0xffffffff00000000u;
  const auto high = [](double v) { return std::bit_cast<double>(std::bit_cast<uint64_t>(v) & kHigh); };
  const auto normal = [](double v) {
    return std::fabs(v) < std::numeric_limits<double>::min() ? std::copysign(0.0, v) : v;
  };
  double r = normal(1.0 / normal(high(x)));
  if (approximate_at_worst && std::isfinite(r)) r *= 1.0 + 0x1p-20;
  return high(r);
}

// Reading a byte that another thread wrote needs a barrier between, and so does writing a byte that
// another thread read or wrote.
void shared_access(uint64_t at, unsigned bytes, bool write, unsigned limit) {
  give_way();
  if (at % bytes != 0) complain("misaligned access to shared memory");
  if (at + bytes > limit) return complain("access to shared memory out of bounds");
  const Touch now{block_serial(), thread_now(), barriers_passed(), true, false};
  const auto meets = [&](const Touch& t) {
    return t.any && t.block == now.block && t.barriers == now.barriers &&
           (t.several || t.thread != now.thread);
  };
  for (uint64_t i = at; i < at + bytes; ++i) {
    auto& [last_write, last_read] = touched[i];
    if (write) {
      if (meets(last_write)) complain("shared memory is written twice without a barrier");
      if (meets(last_read)) complain("shared memory is written without a barrier after a read");
      last_write = now;
    } else {
      if (!last_write.any || last_write.block != now.block) {
        complain("shared memory is read before it is written");
      }
      if (meets(last_write)) complain("shared memory is read without a barrier after a write");
      const bool several = meets(last_read);
      last_read = now;
      last_read.several = several;
    }
  }
}

}  // namespace emulation

// --- libcudart's functions ---

namespace {

using Kernel = void (*)(void**);
Kernel (*find_kernel)(const char* name);

std::map<const void*, std::string>& names() {
  static std::map<const void*, std::string> map;
  return map;
}

std::map<const void*, size_t>& sizes() {
  static std::map<const void*, size_t> map;
  return map;
}

struct Extent {
  unsigned x, y, z;
};
struct LaunchConfig {  // cudaLaunchConfig_t
  Extent grid, block;
  size_t dynamic_shared_bytes;
  void* stream;
  void* attributes;
  unsigned attribute_count;
};

}  // namespace

EXPORT void ptx_kernels(Kernel (*find)(const char* name)) { find_kernel = find; }
// The approximate instructions' errors: none, or the largest that the ISA allows.
EXPORT void ptx_worst(int worst) { emulation::approximate_at_worst = worst != 0; }
// What registers hold before they are set.
EXPORT void ptx_poison(uint64_t word) { emulation::poison_word = word; }

EXPORT void** __cudaRegisterFatBinary(void* p) { return static_cast<void**>(p); }
EXPORT void __cudaRegisterFatBinaryEnd(void**) {}
EXPORT void __cudaUnregisterFatBinary(void**) {}
EXPORT char __cudaInitModule(void**) { return 0; }
// A device's variable is its shadow on the host.
EXPORT void __cudaRegisterVar(void**, char* host, char*, const char*, int, size_t bytes, int, int) {
  sizes()[host] = bytes;
}
EXPORT int cudaGetSymbolAddress(void** address, const void* symbol) {
  const auto size = sizes().find(symbol);
  if (size == sizes().end()) return 13;  // cudaErrorInvalidSymbol
  return emulated_symbol(address, const_cast<void*>(symbol), size->second);
}
EXPORT void __cudaRegisterFunction(void**, const char* host, char*, const char* name, int, void*,
                                   void*, void*, void*, int*) {
  names()[host] = name;
}
EXPORT int cudaLaunchKernelExC(const LaunchConfig* c, const void* f, void** args) {
  const auto name = names().find(f);
  if (name == names().end() || c->grid.y != 1 || c->grid.z != 1 || c->block.y != 1 ||
      c->block.z != 1 || c->dynamic_shared_bytes != 0 || c->attribute_count != 0) {
    return cudaErrorInvalidConfiguration;
  }
  const Kernel kernel = find_kernel(name->second.c_str());
  if (kernel == nullptr) {
    emulation::complain(("its PTX can't be run: " + name->second).c_str());
    return cudaErrorLaunchFailure;
  }
  return emulation::run(dim3(c->grid.x), dim3(c->block.x), [=] { kernel(args); });
}
// A launch of a kernel itself.
EXPORT int ptx_run(Kernel kernel, unsigned blocks, unsigned threads, void** args) {
  return emulation::run(dim3(blocks), dim3(threads), [=] { kernel(args); });
}
// What a launch by <<<>>> would reach; the drivers launch by cudaLaunchKernelEx.
EXPORT int __cudaPopCallConfiguration(void*, void*, size_t*, void*) { return 801; }
EXPORT int __cudaLaunchKernel(void*, Extent, Extent, void**, size_t, void*) { return 801; }
EXPORT int __cudaGetKernel(void**, const void*) { return 801; }
