#!/usr/bin/env bash
# The headers of the oldest torch that pyproject.toml allows are enough for our sources: those that
# register the ops compile against them. (That torch is not installed and not run.)
source "$(dirname "$0")/common.sh"

oldest="$(sed -nE 's/^dependencies = \["torch>=([0-9.]+)".*/\1/p' "$ROOT/pyproject.toml")"
[ -n "$oldest" ] || fail "pyproject.toml does not say which torch is the oldest"
folder="$VERIFY_DIR/torch-$oldest"
if [ ! -e "$folder/.made" ]; then
    rm -rf "$folder" && mkdir -p "$folder"
    "$PYTHON" -m pip download -q --disable-pip-version-check --no-deps -d "$folder" \
        "torch==$oldest.*" >&2
    "$PYTHON" -c '
import sys, zipfile
wheel, folder = sys.argv[1:]
with zipfile.ZipFile(wheel) as files:
    files.extractall(folder, [n for n in files.namelist() if n.startswith("torch/include/")])
' "$folder"/torch-*.whl "$folder"
    rm "$folder"/torch-*.whl
    touch "$folder/.made"
fi

# As in setup.py: the target version hides what newer headers have added.
target="$(printf '0x%02x%02x000000000000' ${oldest//./ })"
grep -q "^OLDEST_TORCH = (${oldest/./, })" "$ROOT/setup.py" ||
    fail "setup.py and pyproject.toml ($oldest) name different torches as the oldest"
compile() {
    "${CXX:-c++}" -std=c++17 -fsyntax-only -DTORCH_TARGET_VERSION="$target" \
        -I "$ROOT/csrc" -I "$folder/torch/include" \
        -I "$folder/torch/include/torch/csrc/api/include" "$@"
}
compile "$ROOT/csrc/library.cpp" || fail "csrc/library.cpp does not compile against torch $oldest"
said="csrc/library.cpp"
toolkit="${CUDA_HOME:-/usr/local/cuda}"
if [ -e "$toolkit/include/cuda_runtime.h" ]; then
    compile -DUSE_CUDA -DVAE_FAST_CUDA_ARCHS='""' -isystem "$toolkit/include" \
        "$ROOT/csrc/library_cuda.cpp" ||
        fail "csrc/library_cuda.cpp does not compile against torch $oldest"
    said="$said and csrc/library_cuda.cpp"
fi
pass "$said compile against the headers of torch $oldest, the oldest supported"
