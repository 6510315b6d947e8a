// The drivers as C functions, for ctypes.
#include "cuda/drivers.h"

#include <string>
#include <type_traits>

#include "cuda/counters.cuh"
#include "cuda/split.cuh"
#include "ops/fields.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

using namespace vae_fast;

// How ctypes spells a field's type: a format character, or a struct's name.
template <class T>
struct Spelling {
  static std::string of() { return std::is_pointer_v<T> ? "P" : std::is_enum_v<T> ? "i" : "?"; }
};
#define SPELLING(T, text)                      \
  template <>                                  \
  struct Spelling<T> {                         \
    static std::string of() { return text; }   \
  };
#define SPELLED_STRUCT(T) SPELLING(T, #T)
#define NOTHING(...)
SPELLING(int, "i")
SPELLING(int64_t, "q")
SPELLING(double, "d")
SPELLING(bool, "?")
VF_ARGS(SPELLED_STRUCT, NOTHING, NOTHING)

// The structs of args.h as text: a line "struct NAME SIZE" and, for each field, "NAME OFFSET TYPE
// COUNT". COUNT is 0 if the field is not an array.
EXPORT const char* emulated_layout() {
  static std::string text;
  text.clear();
#define LAYOUT_STRUCT(S) text += "struct " #S " " + std::to_string(sizeof(S)) + "\n";
#define LAYOUT_FIELD(S, field)                                                       \
  text += #field " " + std::to_string(offsetof(S, field)) + " " +                    \
          Spelling<std::remove_all_extents_t<decltype(S::field)>>::of() + " " +      \
          std::to_string(std::extent_v<decltype(S::field)>) + "\n";
  VF_ARGS(LAYOUT_STRUCT, LAYOUT_FIELD, NOTHING)
  return text.c_str();
}
EXPORT int emulated_likelihoods(const char** names, bool* reads_half) {
  return cuda::likelihoods_on_cuda(names, reads_half);
}
EXPORT const char* emulated_refusal(const Likelihood* args) { return cuda::refusal(*args); }
EXPORT size_t emulated_gaussian_workspace(const GaussianForward* args) {
  return cuda::gaussian_workspace(*args);
}
EXPORT int emulated_gaussian_forward(const GaussianForward* args, void* workspace) {
  return cuda::gaussian_forward(*args, workspace, nullptr);
}
EXPORT int emulated_gaussian_backward(const GaussianBackward* args) {
  return cuda::gaussian_backward(*args, nullptr);
}
EXPORT size_t emulated_nll_workspace(const Likelihood* args) { return cuda::nll_workspace(*args); }
EXPORT int emulated_nll(const Likelihood* args, void* workspace) {
  return cuda::nll(*args, workspace, nullptr);
}
EXPORT size_t emulated_elbo_workspace(const Elbo* args) { return cuda::elbo_workspace(*args); }
EXPORT int emulated_elbo(const Elbo* args, void* workspace) {
  return cuda::elbo(*args, workspace, nullptr);
}
EXPORT int emulated_gather(const Gather* args) { return cuda::gather(*args, nullptr); }
EXPORT size_t emulated_group_norm_workspace(const GroupNorm* args) {
  return cuda::group_norm_workspace(*args);
}
EXPORT int emulated_group_norm(const GroupNorm* args, void* workspace) {
  return cuda::group_norm(*args, workspace, nullptr);
}
EXPORT size_t emulated_group_norm_backward_workspace(const GroupNormBackward* args) {
  return cuda::group_norm_backward_workspace(*args);
}
EXPORT int emulated_group_norm_backward(const GroupNormBackward* args, void* workspace) {
  return cuda::group_norm_backward(*args, workspace, nullptr);
}
EXPORT int emulated_step_sample(const StepSample* args) { return cuda::step_sample(*args, nullptr); }
EXPORT int emulated_step_sample_backward(const StepSampleBackward* args) {
  return cuda::step_sample_backward(*args, nullptr);
}
EXPORT size_t emulated_step_decide_workspace(const StepDecide* args) {
  return cuda::step_decide_workspace(*args);
}
EXPORT int emulated_step_decide(const StepDecide* args, void* workspace) {
  return cuda::step_decide(*args, workspace, nullptr);
}
EXPORT int emulated_step_update(const StepUpdate* args) { return cuda::step_update(*args, nullptr); }
// How a problem is cut: tasks, lanes of a team and blocks; and one task's segment, begin and end.
EXPORT void emulated_split(int64_t segments, int64_t length, int half, int64_t* cut, int64_t task,
                           int64_t* range) {
  const cuda::Split split = half != 0 ? cuda::make_split<cuda::Batch<8, 2>>(segments, length)
                                      : cuda::make_split<cuda::Batch<4, 4>>(segments, length);
  cut[0] = split.tasks(), cut[1] = split.lanes, cut[2] = split.blocks();
  const cuda::Range r = half != 0 ? split.range<8>(task) : split.range<4>(task);
  range[0] = r.segment, range[1] = r.origin + r.begin, range[2] = r.origin + r.end;
}
EXPORT int emulated_philox_words(const int64_t* key, uint64_t first, int64_t counters,
                                 uint32_t* words) {
  return cuda::philox_words(key, first, counters, words, nullptr);
}
// The counter's number, or -1.
EXPORT long emulated_counter(cudaStream_t stream) {
  static unsigned* const first = cuda::take_counter(nullptr);
  unsigned* const counter = cuda::take_counter(stream);
  return counter == nullptr ? -1 : counter - first;
}
