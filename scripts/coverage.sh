#!/usr/bin/env bash
# Lines and branches of vae_fast and csrc that the quick tests run, at every SIMD level of this machine.
#
#   scripts/coverage.sh [pytest's arguments]     PYTHON has torch, what the tests need, coverage and gcovr
#
# A line of C++ is run if any SIMD level and any template argument runs it. CUDA's sources
# are not counted. build/coverage/python.txt and cpp.txt name the lines that no test runs. Tests that
# fail are named, and do not stop the count.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON="${PYTHON:-python3}"
folder="$PWD/build/instrumented/coverage"
out="$PWD/build/coverage"
rm -rf "$out" && mkdir -p "$folder" "$out"
VAE_FAST_INSTRUMENT=coverage VAE_FAST_BUILD=cpu "$PYTHON" setup.py -q build_ext \
    >"$folder/build.log" 2>&1 || { cat "$folder/build.log"; exit 1; }
find "$folder" -name '*.gcda' -delete
# The package and the tests as they are now, beside the library.
tree="$folder/tree"
rm -rf "$tree" && mkdir "$tree"
git ls-files -z --cached --others --exclude-standard | xargs -0 cp --parents -t "$tree"
cp "$folder"/vae_fast/_C*.so "$tree/vae_fast"

(
    cd "$tree"
    export PYTHONPATH="$tree" COVERAGE_FILE="$out/data"
    "$PYTHON" -m coverage run -m pytest -q --dist loadfile -p no:cacheprovider \
        -m "not slow and not cuda" "$@" || [ $? = 1 ] # 1: tests have failed; more: they did not run
    "$PYTHON" -m coverage combine -q
    "$PYTHON" -m coverage report --include="$tree/vae_fast/*" --skip-covered --show-missing \
        >"$out/python.txt"
)
"$PYTHON" -m gcovr --root . --filter csrc/ --merge-lines --exclude-throw-branches \
    --exclude-unreachable-branches --txt "$out/cpp.txt" --print-summary "$folder/objects"
echo "vae_fast, lines and branches: $(grep ^TOTAL "$out/python.txt")"
