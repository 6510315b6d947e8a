// vae_fast._C as Python sees it: build information, the CPU's capability, and hooks for tests.
//
// Importing it loads the library, whose static initialisers register the ops (library.cpp). No
// torch header is included here: pybind11 and the stable ABI's headers clash.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "cpu/drivers.h"
#include "cpu/pool.h"
#include "cpu/threads.h"
#include "likelihoods/list.h"
#include "step/module.h"

#ifndef VAE_FAST_BUILD_TORCH
#error "setup.py defines VAE_FAST_BUILD_TORCH, the version of the torch built against"
#endif

namespace py = pybind11;
namespace cpu = vae_fast::cpu;

namespace {

std::vector<std::string> capabilities() {
  std::vector<std::string> names;
  for (const char* const* name = cpu::supported_levels(); *name != nullptr; ++name) {
    names.emplace_back(*name);
  }
  return names;
}

std::map<std::string, std::string> build_info() {
  return {
#if defined(__clang__)
      {"compiler", "clang " __clang_version__},
#elif defined(__GNUC__)
      {"compiler", "gcc " __VERSION__},
#endif
      // Any torch from the ABI's version on will do; this one's headers were used.
      {"torch", VAE_FAST_BUILD_TORCH},
      {"stable ABI of torch", "2.11"},
  };
}

// (name, number of parameters, kind of target, targets a position) of every likelihood.
using LikelihoodInfo = std::tuple<std::string, int, std::string, int>;

template <class L>
LikelihoodInfo info_of(const char* name) {
  static const char* const kinds[] = {"unit", "real", "count", "level", "category"};
  const char* kind = kinds[static_cast<int>(L::target)];
  if constexpr (requires { L::params; }) {
    return {name, L::params, kind, 0};
  } else {
    return {name, 1, kind, L::targets};
  }
}

std::vector<LikelihoodInfo> likelihoods() {
#define VF_INFO(name, L) info_of<vae_fast::likelihoods::L>(#name),
  return {VF_LIKELIHOODS(VF_INFO) VF_PLANE_LIKELIHOODS(VF_INFO)};
#undef VF_INFO
}

py::array_t<uint32_t> random_words(int64_t key, int64_t stream, uint64_t block, int64_t blocks) {
  if (blocks < 0) throw std::invalid_argument("blocks must not be negative");
  const int64_t keys[2] = {key, stream};
  py::array_t<uint32_t> words(4 * blocks);
  cpu::level().random_words(keys, block, blocks, words.mutable_data());
  return words;
}

// body(begin, end) over the pieces of [0, count): to test the pool by.
void run_pieces(int64_t count, int64_t grain, int threads, const py::function& body) {
  const auto call = [](int64_t begin, int64_t end, void* context) {
    const py::gil_scoped_acquire held;
    (*static_cast<const py::function*>(context))(begin, end);
  };
  const py::gil_scoped_release released;
  cpu::run_pieces(0, count, grain, call, const_cast<py::function*>(&body), threads);
}

// piece(round, i) for each of a round's pieces, then after(round): to test the pool by.
void run_rounds(const std::vector<int64_t>& pieces, int threads, const py::function& piece,
                const py::function& after) {
  const py::function* calls[] = {&piece, &after};
  const cpu::Rounds rounds{int(pieces.size()), pieces.data(),
                           [](int round, int64_t i, void* context) {
                             const py::gil_scoped_acquire held;
                             (*static_cast<const py::function**>(context)[0])(round, i);
                           },
                           [](int round, void* context) {
                             const py::gil_scoped_acquire held;
                             (*static_cast<const py::function**>(context)[1])(round);
                           },
                           static_cast<void*>(calls)};
  const py::gil_scoped_release released;
  cpu::run_rounds(rounds, threads);
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "vae_fast's CPU kernels; importing this registers torch.ops.vae_fast";
  m.def(
      "cpu_capability", [] { return std::string(cpu::level().name); },
      "The SIMD level in use; RuntimeError if VAE_FAST_CPU_CAPABILITY names none of this "
      "machine's.");
  m.def("cpu_capabilities", &capabilities, "The SIMD levels that this machine runs, best last.");
  m.def(
      "set_cpu_capability", [](const std::string& name) { cpu::use_level(name.c_str()); },
      py::arg("name"), "Switch the SIMD level, for tests and benchmarks.");
  m.def("usable_cpus", &cpu::usable_cpus,
        "Processors that the calling thread may use, by affinity and control groups.");
  m.def("quota_cpus", &cpu::quota_cpus, py::arg("root"), py::arg("membership"));
  m.def("pretend_cpus", &cpu::pretend_cpus, py::arg("count"));
  m.def("run_pieces", &run_pieces, py::arg("count"), py::arg("grain"), py::arg("threads"),
        py::arg("body"));
  m.def("run_rounds", &run_rounds, py::arg("pieces"), py::arg("threads"), py::arg("piece"),
        py::arg("after"));
  vae_fast::step::bind(m);
  m.def("kept_bytes", &cpu::kept_bytes, "Bytes of dead outputs that are kept for the next ones.");
  m.def("release_kept", &cpu::release_kept, "Give those bytes to the system.");
  m.def("likelihoods", &likelihoods,
        "The list of likelihoods: name, parameters, kind of target, targets a position.");
  m.def("build_info", &build_info, "What the library was built with.");
  m.def("random_words", &random_words, py::arg("key"), py::arg("stream"), py::arg("block"),
        py::arg("blocks"),
        "The Philox words of `blocks` consecutive counters from `block` on, 4 each, at the level "
        "in use.");
}
