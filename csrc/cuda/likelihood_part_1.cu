#define VF_PART 1
#include "cuda/likelihood_part.cuh"
