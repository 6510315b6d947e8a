#!/usr/bin/env bash
# The wheel that pip builds in isolation, against the newest torch, gives native kernels and passes the
# tests under OLD_TORCH (CPU-only) and under NEW_TORCH (the newest, with CUDA).
# Under the old torch, everything that depends on torch is tested: the ops, their registration, autograd
# and torch.compile, the modules, every model. Under the newest torch, `make test` has done this with a
# library compiled in place, so only the tests of the wheel itself run.
source "$(dirname "$0")/common.sh"

new="$(environment new "$NEW_TORCH")"
wheel="$(build_wheel)"
old="$(environment old "$OLD_TORCH")"
tests=(tests/ops tests/packaging tests/models/test_every_model.py)
for file in "$ROOT"/tests/test_*.py; do tests+=("tests/$(basename "$file")"); done
said=""
for env in "$old" "$new"; do
    "$env/bin/python" -m pip install -q --disable-pip-version-check --no-deps "$wheel"
    read -r built version <<<"$(python_in "$env" '
import torch
import vae_fast
facts = vae_fast.info()
assert facts["native cpu"] == "yes", facts
vae_fast.set_backend("native")
kl = vae_fast.gaussian_kl(torch.ones(2, 3), torch.zeros(2, 3)).item()
assert abs(kl - 3.0) < 1e-6, kl  # six elements of mean 1 and variance 1: 1/2 each
print(facts["built with torch"], torch.__version__)
')"
    if [ "$env" = "$old" ] && [ "$built" = "$version" ]; then
        fail "built against the torch that runs it, $version, so nothing is proved: set OLD_TORCH"
    fi
    say "built against torch $built, testing under torch $version"
    if [ "$env" = "$new" ]; then tests=(tests/packaging tests/test_backend.py tests/ops/test_norm.py); fi
    test_installed "$env" "${tests[@]}"
    said="$said${said:+ and }torch $version"
done
pass "$(basename "$wheel"), $(du -h "$wheel" | cut -f1), passes the tests under $said"
