#define VF_PART 0
#include "cuda/likelihood_part.cuh"
