#!/usr/bin/env bash
# Plain `pip install .`, build isolation on, gives native kernels that run under a torch other than
# the one they were built against: the environment holds OLD_TORCH, and pip's isolated build
# environment takes the newest.
source "$(dirname "$0")/common.sh"

env="$(environment old "$OLD_TORCH")"
sources "$VERIFY_DIR/isolated-src"
# One architecture: check_cuda_without_gpu.sh is where all of them are compiled.
log="$VERIFY_DIR/isolated.log"
TORCH_CUDA_ARCH_LIST="${TORCH_CUDA_ARCH_LIST:-8.0+PTX}" \
    "$env/bin/python" -m pip install -v --disable-pip-version-check "$VERIFY_DIR/isolated-src" \
    >"$log" 2>&1 || { tail -n 40 "$log"; fail "pip install . failed; all it said is in $log"; }

grep -q "vae_fast: building CPU kernels against torch" "$log" ||
    { tail -n 40 "$log"; fail "pip install . built no native kernels"; }
torches="$(python_in "$env" '
import torch
from vae_fast import gaussian_kl, info, set_backend
facts = info()
assert facts["native cpu"] == "yes", facts
set_backend("native")
kl = gaussian_kl(torch.ones(2, 3), torch.zeros(2, 3)).item()
assert abs(kl - 3.0) < 1e-6, kl  # six elements of mean 1 and variance 1: 1/2 each
print(facts["built with torch"], torch.__version__)
')"
read -r built runs <<<"$torches"
if [ "$built" = "$runs" ]; then
    fail "built against the torch that runs it, $runs, so nothing is proved: set OLD_TORCH"
fi
say "built against torch $built, run under torch $runs"
# check_wheel_two_torches.sh runs the rest under this torch, with a library built against that one.
test_installed "$env" tests/ops/test_gather.py tests/ops/test_gaussian.py tests/test_backend.py
pass "pip install . gave native kernels against torch $built that run under torch $runs"
