#define VF_PART 3
#include "cuda/likelihood_part.cuh"
