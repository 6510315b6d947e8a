// Which level runs: found once, from the processor and VAE_FAST_CPU_CAPABILITY.
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "cpu/drivers.h"

namespace vae_fast::cpu {
namespace {

constexpr const char* kVariable = "VAE_FAST_CPU_CAPABILITY";

struct Supported {
  const Level* levels[3] = {};
  const char* names[4] = {};
  int count = 0;

  void add(const Level& level) {
    names[count] = level.name;
    levels[count++] = &level;
  }

  Supported() {
    add(kGeneric);
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                      __builtin_cpu_supports("f16c");
    if (avx2) add(kAvx2);
    if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
      add(kAvx512);
    }
#endif
  }
};

const Supported& supported() {
  static const Supported s;
  return s;
}

const Level& named(const std::string& wanted, const std::string& source) {
  const Supported& s = supported();
  std::string list;
  for (int i = 0; i < s.count; ++i) {
    if (wanted == s.names[i]) return *s.levels[i];
    list += (i == 0 ? "" : ", ") + std::string(s.names[i]);
  }
  throw std::runtime_error(source + wanted +
                           " is not a level that this machine runs; it runs: " + list);
}

const Level& choose() {
  const Supported& s = supported();
  const char* wanted = std::getenv(kVariable);
  if (wanted == nullptr || *wanted == '\0') return *s.levels[s.count - 1];
  return named(wanted, std::string(kVariable) + "=");
}

const Level*& in_use() {
  static const Level* chosen = &choose();
  return chosen;
}

}  // namespace

const Level& level() { return *in_use(); }

void use_level(const char* name) { in_use() = &named(name, "CPU capability "); }

const char* const* supported_levels() { return supported().names; }

}  // namespace vae_fast::cpu
