// One part of the likelihoods' kernels. The file that includes this sets VF_PART.
#pragma once

#include "cuda/likelihood.cuh"

namespace vae_fast::cuda {
namespace {

#define VF_ID(name, L) id_##name,
enum { VF_LIKELIHOODS(VF_ID) };
#undef VF_ID

template <class L, int ID>
constexpr Kernels kernels_of() {
  if constexpr (ID % kParts == VF_PART) {
    return {split_of<L>, launch_likelihood<L>};
  } else {
    return {};
  }
}

}  // namespace

template <>
Kernels kernels_in_part<VF_PART>(int id) {
#define VF_KERNELS(name, L) kernels_of<likelihoods::L, id_##name>(),
  constexpr Kernels kernels[] = {VF_LIKELIHOODS(VF_KERNELS)};
#undef VF_KERNELS
  return kernels[id];
}

}  // namespace vae_fast::cuda
