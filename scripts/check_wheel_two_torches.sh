#!/usr/bin/env bash
# One wheel passes the tests under OLD_TORCH (CPU-only) and under NEW_TORCH (the newest, with CUDA).
source "$(dirname "$0")/common.sh"

new="$(environment new "$NEW_TORCH")"
sources "$VERIFY_DIR/wheel-src"
rm -rf "$VERIFY_DIR/wheel"
TORCH_CUDA_ARCH_LIST="${TORCH_CUDA_ARCH_LIST:-8.0+PTX}" \
    "$new/bin/python" -m pip wheel -q --disable-pip-version-check --no-deps --no-build-isolation \
    -w "$VERIFY_DIR/wheel" "$VERIFY_DIR/wheel-src"
wheel="$(ls "$VERIFY_DIR"/wheel/*.whl)"
say "built $(basename "$wheel")"

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
