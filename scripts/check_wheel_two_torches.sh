#!/usr/bin/env bash
# One wheel passes the tests under OLD_TORCH (CPU-only) and under NEW_TORCH (the newest, with CUDA).
source "$(dirname "$0")/common.sh"

new="$(environment new "$NEW_TORCH")"
wheel="$(build_wheel "$new")"
old="$(environment old "$OLD_TORCH")"
said=""
for env in "$old" "$new"; do
    "$env/bin/python" -m pip install -q --disable-pip-version-check --no-deps "$wheel"
    version="$(python_in "$env" '
import torch, vae_fast
vae_fast.set_backend("native")
vae_fast.gaussian_kl(torch.ones(2, 3), torch.zeros(2, 3))
print(torch.__version__)
')"
    say "testing under torch $version"
    test_installed "$env"
    said="$said${said:+ and }torch $version"
done
pass "$(basename "$wheel") passes the tests under $said"
