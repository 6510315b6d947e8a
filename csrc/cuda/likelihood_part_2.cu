#define VF_PART 2
#include "cuda/likelihood_part.cuh"
