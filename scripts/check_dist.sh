#!/usr/bin/env bash
# A wheel passes the quick tests in an empty environment that has only its dependencies and the tests'.
# TESTS names some of the tests; by default all quick ones run.
#
#   scripts/check_dist.sh dist/vae_fast-*.whl
source "$(dirname "$0")/common.sh"

[ $# = 1 ] || fail "usage: check_dist.sh WHEEL"
wheel="$(cd "$ROOT" && realpath "$1")"
env="$VERIFY_DIR/empty"
rm -rf "$env"
"$PYTHON" -m venv "$env"
"$env/bin/python" -m pip install -q --disable-pip-version-check "${wheel}[test]" "$NEW_TORCH"
said="$(python_in "$env" '
from importlib.metadata import distribution
import torch, vae_fast
facts = vae_fast.info()
assert facts["native cpu"] == "yes", facts
vae_fast.set_backend("native")
kl = vae_fast.gaussian_kl(torch.ones(2, 3), torch.zeros(2, 3)).item()
assert abs(kl - 3.0) < 1e-6, kl  # six elements of mean 1 and variance 1: 1/2 each
files = sorted(map(str, distribution("vae_fast").files))
strays = [f for f in files if not f.startswith(("vae_fast/", "vae_fast-")) and f[-13:] != "/bin/vae-fast"]
assert not strays, strays
wanted = ("vae_fast/py.typed", "licenses/LICENSE", "licenses/vae_fast/data/fashion10k.LICENSE.txt")
missing = [name for name in wanted if not any(f.endswith(name) for f in files)]
assert not missing, missing
cuda = facts["native cuda"]
print("vae_fast", vae_fast.__version__, "under torch", torch.__version__, "with CUDA kernels:", cuda)
')"
say "$said"
# Building and measuring need the sources, which are not here.
test_installed "$env" tests --ignore=tests/benchmarks --ignore=tests/experiments \
    --ignore=tests/cuda_emulation
pass "$(basename "$wheel"), $(du -h "$wheel" | cut -f1), passes the quick tests in an empty environment"
