#!/usr/bin/env bash
# Plain `pip install .`, build isolation on, gives native kernels that run under a torch other than
# the one they were built against: the environment holds OLD_TORCH, and pip's isolated build
# environment takes the newest.
source "$(dirname "$0")/common.sh"

env="$(environment old "$OLD_TORCH")"
sources "$VERIFY_DIR/isolated-src"
# One architecture: check_cuda_without_gpu.sh is where all of them are compiled.
TORCH_CUDA_ARCH_LIST="${TORCH_CUDA_ARCH_LIST:-8.0+PTX}" \
    "$env/bin/python" -m pip install -q --disable-pip-version-check "$VERIFY_DIR/isolated-src"

versions="$(python_in "$env" '
import torch
from vae_fast import _C, info, set_backend, gaussian_kl
facts = info()
assert facts["native cpu"] == "yes", facts
set_backend("native")
kl = gaussian_kl(torch.ones(2, 3), torch.zeros(2, 3)).item()
assert abs(kl - 3.0) < 1e-6, kl  # six elements of mean 1 and variance 1: 1/2 each
built = _C.build_info()["torch"]
assert built != torch.__version__, f"built against the torch that runs it, {built}: choose another OLD_TORCH"
print(f"built against torch {built}, run under torch {torch.__version__}")
')"
test_installed "$env" tests/ops
pass "pip install . gave native kernels, $versions"
