#!/usr/bin/env bash
# One wheel passes the tests under OLD_TORCH (CPU-only) and under NEW_TORCH (the newest, with CUDA).
# Under the old one all that meets torch is tested: the ops, their registration, autograd and
# torch.compile, the modules, every model. Under the newest `make test` has run it, with a library
# compiled in place; what is the wheel's own is left.
source "$(dirname "$0")/common.sh"

new="$(environment new "$NEW_TORCH")"
wheel="$(build_wheel "$new")"
built="$(python_in "$new" 'import torch; print(torch.__version__)')"
old="$(environment old "$OLD_TORCH")"
tests=(tests/ops tests/packaging tests/models/test_every_model.py)
for file in "$ROOT"/tests/test_*.py; do tests+=("tests/$(basename "$file")"); done
said=""
for env in "$old" "$new"; do
    "$env/bin/python" -m pip install -q --disable-pip-version-check --no-deps "$wheel"
    version="$(BUILT="$built" python_in "$env" '
import os, torch, vae_fast
vae_fast.set_backend("native")
vae_fast.gaussian_kl(torch.ones(2, 3), torch.zeros(2, 3))
assert vae_fast.info()["built with torch"] == os.environ["BUILT"], vae_fast.info()
print(torch.__version__)
')"
    say "testing under torch $version"
    if [ "$env" = "$new" ]; then tests=(tests/packaging tests/test_backend.py tests/ops/test_norm.py); fi
    test_installed "$env" "${tests[@]}"
    said="$said${said:+ and }torch $version"
done
pass "$(basename "$wheel") passes the tests under $said"
