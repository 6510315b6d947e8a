# shellcheck shell=bash
# Shared by the check_*.sh scripts: a work folder with virtual environments that are made once, a
# clean copy of the sources, and one way to say PASS, FAIL or SKIP. Source it; don't run it.
#
#   VERIFY_DIR   the work folder                          default: build/verify
#   PYTHON       makes the virtual environments           default: python3
#   OLD_TORCH    a CPU-only torch, older than the newest  default: torch==2.13.0+cpu
#   NEW_TORCH    the newest torch, a CUDA build           default: torch
#   NEW_FROM     an environment that has NEW_TORCH already: it is copied, not downloaded again
#   TESTS        the tests to run, for a quick look       default: those that each check needs
#
# Where pip knows no "+cpu" builds, the usual one of that version is taken, which is several GB; pointing
# PIP_EXTRA_INDEX_URL at PyTorch's index of CPU wheels avoids that.

set -euo pipefail
shopt -s inherit_errexit
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
CHECK="$(basename "$0" .sh)"
VERIFY_DIR="${VERIFY_DIR:-$ROOT/build/verify}"
PYTHON="${PYTHON:-python3}"
OLD_TORCH="${OLD_TORCH:-torch==2.13.0+cpu}"
NEW_TORCH="${NEW_TORCH:-torch}"
if [ -n "${NEW_FROM:-}" ]; then NEW_FROM="$(realpath "$NEW_FROM")"; fi
mkdir -p "$VERIFY_DIR"
VERIFY_DIR="$(cd "$VERIFY_DIR" && pwd)"
# The commands below must not see a package in the current folder (an editable install leaves its
# egg-info in the project's), nor the caller's choices.
cd "$VERIFY_DIR"
unset PYTHONPATH VAE_FAST_BUILD VAE_FAST_BACKEND VAE_FAST_CPU_CAPABILITY

say() { echo "$CHECK: $*"; }
pass() { say "PASS: $*"; exit 0; }
fail() { say "FAIL: $*" >&2; exit 1; }
skip() { say "SKIP: $*"; exit 77; } # 77 is what automake calls a skipped test
trap 'say "FAIL: the command on line $LINENO of $0 failed (above)" >&2' ERR

# environment NAME TORCH: prints the folder of a virtual environment that holds that torch, what
# the package needs at run time, and what building and testing it need, but not the package.
environment() {
    local folder="$VERIFY_DIR/$1" torch="$2"
    local stamp="$folder/.made-for-${torch//[^a-zA-Z0-9.+]/-}"
    if [ ! -e "$stamp" ]; then
        say "making $folder with $torch (several GB for a CUDA build)" >&2
        rm -rf "$folder"
        if [ "$1" = new ] && [ -x "${NEW_FROM:-}/bin/python" ]; then
            # Hard links: pip unlinks and writes anew, so the original stays as it is.
            cp -al "$NEW_FROM" "$folder" 2>/dev/null ||
                { rm -rf "$folder" && cp -a "$NEW_FROM" "$folder"; }
        else
            "$PYTHON" -m venv "$folder"
        fi
        local packages=("setuptools>=77" wheel "pybind11>=2.13" ninja numpy pytest pytest-benchmark
            pytest-xdist "jsonargparse[signatures]" matplotlib pillow pyyaml safetensors tqdm)
        local pip=("$folder/bin/python" -m pip install -q --disable-pip-version-check)
        if ! "${pip[@]}" "$torch" "${packages[@]}" >&2; then
            [ "$torch" != "${torch%+cpu}" ] || fail "pip could not install $torch (above)"
            say "pip knows no $torch here, so ${torch%+cpu} is taken" >&2
            "${pip[@]}" "${torch%+cpu}" "${packages[@]}" >&2
        fi
        touch "$stamp"
    fi
    "$folder/bin/python" -m pip uninstall -q -y vae_fast >&2 2>/dev/null || true
    echo "$folder"
}

# sources FOLDER: a copy of the project as git has it (changes included), with nothing compiled.
sources() {
    rm -rf "$1" && mkdir -p "$1"
    (cd "$ROOT" && git ls-files -z --cached --others --exclude-standard |
        while IFS= read -r -d '' file; do if [ -e "$file" ]; then printf '%s\0' "$file"; fi; done |
        tar --null -T - -cf -) | tar -xf - -C "$1"
}

have_nvcc() { command -v nvcc || [ -x "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc" ]; } >/dev/null

# build_wheel: prints the path of the wheel that pip makes of the sdist, as for somebody who has neither a
# clone nor a wheel: with build isolation, so against the newest torch, and with CUDA kernels for every
# architecture of the default list if there is an nvcc. It is built again only if the sources have changed.
# The environment "new" makes the sdist.
build_wheel() {
    local folder="$VERIFY_DIR/wheel" source="$VERIFY_DIR/wheel-src" log="$VERIFY_DIR/wheel.log" state
    sources "$source"
    state="${TORCH_CUDA_ARCH_LIST:-} $(cd "$source" &&
        find setup.py pyproject.toml MANIFEST.in README.md csrc vae_fast -type f -print0 | sort -z |
        xargs -0 cat | cksum)"
    if [ "$(cat "$folder/state" 2>/dev/null)" != "$state" ]; then
        say "building a wheel; all that pip says is in $log" >&2
        rm -rf "$folder"
        local sdist
        sdist="$(cd "$source" && "$VERIFY_DIR/new/bin/python" -W ignore -c '
import sys
from setuptools import build_meta
print(build_meta.build_sdist(sys.argv[1]))' "$folder" 2>"$log" | tail -n 1)" ||
            { tail -n 40 "$log" >&2; fail "setuptools could not build a source distribution"; }
        # A GPU here would narrow the list of architectures, and a build must not need one.
        CUDA_VISIBLE_DEVICES="" "$PYTHON" -m pip wheel -v --disable-pip-version-check \
            --no-deps -w "$folder" "$folder/$sdist" >"$log" 2>&1 ||
            { tail -n 40 "$log" >&2; fail "pip could not build a wheel"; }
        local wanted="building CPU kernels against torch"
        if have_nvcc; then wanted="building CUDA kernels with"; fi
        grep -q "vae_fast: $wanted" "$log" ||
            { grep "vae_fast: " "$log" >&2; fail "the build does not say '$wanted'"; }
        echo "$state" >"$folder/state"
    fi
    ls "$folder"/*.whl
}

# test_installed ENVIRONMENT [PYTEST ARGUMENTS]: the quick tests, from a folder in which the
# installed package is the only vae_fast there is.
test_installed() {
    local folder="$1" run="$VERIFY_DIR/tests-of-$CHECK"
    shift
    sources "$run"
    rm -rf "$run/vae_fast" "$run/csrc" "$run/setup.py"
    (cd "$run" && "$folder/bin/python" -c '
import sys, vae_fast
if not vae_fast.__file__.startswith(sys.prefix + "/"):
    sys.exit(f"not the installed package: {vae_fast.__file__}")')
    (cd "$run" && "$folder/bin/python" -m pytest -q -n "$(nproc 2>/dev/null || echo 2)" --dist loadfile \
        -m "not slow and not cuda" ${TESTS:-"$@"})
}

# python_in ENVIRONMENT CODE: runs it away from the source tree.
python_in() {
    (cd "$VERIFY_DIR" && "$1/bin/python" -c "$2")
}
