#!/usr/bin/env bash
# With nvcc and without a GPU, _C_cuda builds for every architecture of the default list, loads, and
# registers a CUDA kernel for each op.
source "$(dirname "$0")/common.sh"

have_nvcc || skip "there is no nvcc here"

# If there is a GPU, hide it: a build must not need it.
export CUDA_VISIBLE_DEVICES=""
env="$(environment new "$NEW_TORCH")"
wheel="$(build_wheel)"
"$env/bin/python" -m pip install -q --disable-pip-version-check --no-deps "$wheel"

said="$(python_in "$env" '
import os
import torch
import vae_fast
from vae_fast import _C_cuda
has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
ops = [name for name in torch._C._dispatch_get_all_op_names() if name.startswith("vae_fast::")]
ops = [name for name in ops if has_kernel(name, "CPU")]
assert ops, "no op has a CPU kernel, so there is nothing to compare with"
# The first two keep values for backward; a GPU makes its noise again instead. Sums over pairs run in
# plain PyTorch on a GPU.
cpu_only = ("reparameterize_keeping", "sample_and_kl_keeping", "euclidean_norm", "pair_density",
            "pair_density_backward", "mmd", "mmd_backward", "nearest_code")
cpu_only = {f"vae_fast::{op}" for op in cpu_only}
missing = sorted(name for name in set(ops) - cpu_only if not has_kernel(name, "CUDA"))
assert not missing, f"these ops have a CPU kernel and no CUDA kernel: {missing}"
assert vae_fast.info()["native cuda"] == "yes", vae_fast.info()
assert not torch.cuda.is_available()
archs = _C_cuda.build_info()["architectures"]
wanted = os.environ.get("TORCH_CUDA_ARCH_LIST")
assert archs == wanted if wanted else len(archs.split(";")) > 3 and archs.endswith("+PTX"), archs
print(f"{len(ops)} ops for {archs}")
')"
pass "without a GPU _C_cuda builds, loads and registers $said"
