// GroupNorm's kernels, whose own loops are counted (benchmarks/gpu_instructions.py).
#include "cuda/group_norm.cu"
