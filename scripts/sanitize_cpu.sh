#!/usr/bin/env bash
# The CPU library under AddressSanitizer with UndefinedBehaviorSanitizer, and under ThreadSanitizer:
# random calls and tests of the ops, every SIMD level that this machine runs.
#
#   scripts/sanitize_cpu.sh [address] [thread]      PYTHON has torch and what the tests need
#
# Each library is built in build/instrumented/NAME, and compiled again only where a source has changed.
# Status 77 where the compiler brings no runtime of a sanitizer.
set -euo pipefail
cd "$(dirname "$0")/.."
root="$PWD"
PYTHON="${PYTHON:-python3}"
[ $# -gt 0 ] || set -- address thread

for name in "$@"; do
    began=$SECONDS
    case "$name" in
        address) runtime=libasan.so ;;
        thread) runtime=libtsan.so ;;
        *) echo "sanitize: $name is not one of address, thread" >&2; exit 2 ;;
    esac
    runtime="$(${CXX:-c++} -print-file-name=$runtime)"
    [ -e "$runtime" ] || { echo "sanitize: SKIP: ${CXX:-c++} brings no $runtime"; exit 77; }
    folder="$root/build/instrumented/$name"
    mkdir -p "$folder"
    VAE_FAST_INSTRUMENT="$name" VAE_FAST_BUILD=cpu "$PYTHON" setup.py -q build_ext \
        >"$folder/build.log" 2>&1 || { cat "$folder/build.log"; exit 1; }
    # The package and the tests as they are now, beside the library.
    tree="$folder/tree"
    rm -rf "$tree" && mkdir "$tree"
    cp -r vae_fast tests benchmarks pyproject.toml "$tree"
    rm -f "$tree"/vae_fast/_C*.so
    cp "$folder"/vae_fast/_C*.so "$tree/vae_fast"

    export PYTHONPATH="$tree" VAE_FAST_BACKEND=native
    # torch and Python are not instrumented: their own leaks and races are ignored.
    export ASAN_OPTIONS=detect_leaks=0:detect_odr_violation=0:allocator_may_return_null=1
    export UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1
    options="ignore_noninstrumented_modules=1:halt_on_error=1:exitcode=66:die_after_fork=0"
    export TSAN_OPTIONS="suppressions=$root/scripts/tsan.supp:$options"
    # The C++ library too: Python does not load it, and AddressSanitizer needs it from the start.
    standard="$(${CXX:-c++} -print-file-name=libstdc++.so.6)"
    under=(env LD_PRELOAD="$runtime $standard")
    # ThreadSanitizer needs its part of the address space free.
    if [ "$name" = thread ] && setarch -R true 2>/dev/null; then under=(setarch -R "${under[@]}"); fi
    cd "$tree"
    "${under[@]}" "$PYTHON" -c '
import sys, vae_fast
from vae_fast.backend import library
if not library().__file__.startswith(sys.argv[1] + "/"):
    sys.exit(f"not the sanitized library: {library().__file__}")' "$tree"
    "${under[@]}" "$PYTHON" -W ignore -m tests.fuzz --seed 1 --calls 1500 --files 0
    if [ "$name" = address ]; then
        tests=(tests/ops/test_gaussian.py tests/ops/test_gather.py tests/ops/test_pool.py
            -k "not accuracy and not compile and not fork and not slow")
    else
        tests=(tests/ops/test_determinism.py tests/ops/test_threads.py)
    fi
    "${under[@]}" "$PYTHON" -m pytest -q -x -s -p no:cacheprovider -m "not slow and not cuda" "${tests[@]}"
    cd "$root"
    echo "sanitize: PASS: $name ($((SECONDS - began)) s)"
done
