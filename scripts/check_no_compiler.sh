#!/usr/bin/env bash
# No compiler: the package installs, imports, warns once, and passes the tests on the reference
# backend.
source "$(dirname "$0")/common.sh"

env="$(environment old "$OLD_TORCH")"
sources "$VERIFY_DIR/no-compiler-src"

# A PATH with common commands and no compiler.
bin="$VERIFY_DIR/no-compiler-bin"
rm -rf "$bin" && mkdir -p "$bin"
for tool in sh bash env git uname ls cat mkdir rm cp mv ln dirname basename sed grep tar id; do
    path="$(command -v "$tool" || true)"
    if [ -n "$path" ]; then ln -s "$path" "$bin/$tool"; fi
done
unset CC CXX CUDA_HOME CUDA_PATH
export PATH="$env/bin:$bin"
for compiler in cc c++ gcc g++ clang clang++ nvcc; do
    if command -v "$compiler" >/dev/null; then fail "$compiler is still on PATH"; fi
done

log="$VERIFY_DIR/no-compiler.log"
"$env/bin/python" -m pip install -v --disable-pip-version-check --no-deps --no-build-isolation \
    "$VERIFY_DIR/no-compiler-src" >"$log" 2>&1 || { cat "$log"; fail "pip install ."; }
grep -q "vae_fast: building without native kernels, because no C++ compiler" "$log" ||
    { cat "$log"; fail "the build does not say why it left the kernels out"; }

python_in "$env" '
import warnings
import torch
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    import vae_fast
    for _ in range(3):
        kl = vae_fast.gaussian_kl(torch.ones(2, 3), torch.zeros(2, 3)).item()
assert abs(kl - 3.0) < 1e-6, kl
ours = [str(w.message) for w in seen if "vae_fast" in str(w.message)]
assert len(ours) == 1, f"one warning expected, got {len(ours)}: {ours}"
assert "not built" in ours[0] and "compiler" in ours[0], ours[0]
try:
    vae_fast.set_backend("native")
    vae_fast.gaussian_kl(torch.ones(2, 3), torch.zeros(2, 3))
except RuntimeError as error:
    assert "not built" in str(error), error
else:
    raise AssertionError("backend native did not raise without kernels")
print("warned once:", ours[0])
'
# Benchmarks and builds have no fallback.
test_installed "$env" tests --ignore=tests/benchmarks --ignore=tests/experiments \
    --ignore=tests/packaging --ignore=tests/cuda_emulation
pass "without a compiler it installs, warns once and passes the tests on the reference backend"
