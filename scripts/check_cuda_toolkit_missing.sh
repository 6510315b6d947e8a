#!/usr/bin/env bash
# VAE_FAST_BUILD=cuda without a toolkit stops with one sentence that says what is missing.
source "$(dirname "$0")/common.sh"

env="$(environment new "$NEW_TORCH")"
sources "$VERIFY_DIR/toolkit-missing-src"

# PATH without nvcc; a toolkit in /usr/local/cuda would still be found, so there CUDA_HOME points
# at an empty folder instead.
bin="$VERIFY_DIR/toolkit-missing-bin"
rm -rf "$bin" && mkdir -p "$bin"
for tool in sh bash env uname ls cat mkdir rm cp mv dirname basename sed grep tar as ld ar \
    cc c++ gcc g++; do
    path="$(command -v "$tool" || true)"
    if [ -n "$path" ]; then ln -s "$path" "$bin/$tool"; fi
done
unset CUDA_HOME CUDA_PATH
if [ -x /usr/local/cuda/bin/nvcc ]; then export CUDA_HOME="$VERIFY_DIR/toolkit-missing-bin"; fi

log="$VERIFY_DIR/toolkit-missing.log"
for command in "python setup.py build_ext --inplace" \
    "python -m pip install --disable-pip-version-check --no-deps --no-build-isolation ."; do
    if (cd "$VERIFY_DIR/toolkit-missing-src" &&
        PATH="$env/bin:$bin" VAE_FAST_BUILD=cuda $command) >"$log" 2>&1; then
        fail "'$command' succeeded without a CUDA toolkit"
    fi
    sentences="$(grep -c "vae_fast: " "$log" || true)"
    sentence="$(grep -o "vae_fast: .*" "$log" | head -1 || true)"
    if [ "$sentences" != 1 ] || [[ "$sentence" != *toolkit* ]] || grep -q Traceback "$log"; then
        cat "$log"
        fail "'$command' should say one sentence about the toolkit, with no traceback"
    fi
    say "$command: $sentence"
done
pass "VAE_FAST_BUILD=cuda without a toolkit stops with one sentence"
