#!/usr/bin/env bash
# Everything that needs a GPU, in one run, with the machine's own python3 and without downloads. It
# builds the kernels in place for the machine's GPU, runs the tests marked cuda and compute-sanitizer
# over every op, and measures what the benchmarks must show. Building, tests and sanitizer take at most 5
# minutes, the benchmarks 2. So two runs fit a GPU that is lent for 15 minutes; the second compiles
# nothing again. OUT gets summary.json, log.txt, tests.xml, benchmarks.json and benchmarks.txt.
#
#   scripts/gpu_check.sh [OUT]
#
#   PYTHON=python3          the interpreter
#   SKIP="memcheck"         steps to leave out: build info tests memcheck racecheck benchmarks
#   TIME=420                seconds for all of it, of which steps get shares; 0 is no limit
#   BENCH="--suite must-show --group gpu"   what to measure: arguments of python -m benchmarks
#
# Steps are independent: one that fails or runs out of time is reported, and the next one runs.
set -uo pipefail
cd "$(dirname "$0")/.."

PYTHON="${PYTHON:-python3}"
OUT="${1:-benchmarks/results/gpu-check}"
SKIP=" ${SKIP:-} "
TIME="${TIME:-420}"
read -ra BENCH <<<"${BENCH---suite must-show --group gpu}"

gpu="$("$PYTHON" -c '
import sys
try:
    import torch
except ImportError:
    sys.exit(f"gpu-check needs torch in {sys.executable}, and it is not installed there.")
if not torch.cuda.is_available():
    sys.exit("gpu-check needs a CUDA GPU, and torch sees none on this machine.")
print(torch.cuda.get_device_name(0))
')" || exit 1

mkdir -p "$OUT" || { echo "gpu-check: can't write to $OUT; choose another OUT." >&2; exit 1; }
OUT="$(cd "$OUT" && pwd)"
rm -f "$OUT"/log.txt "$OUT"/tests.xml "$OUT"/benchmarks.{json,txt} "$OUT"/summary.json
echo "gpu-check on $gpu, writing to $OUT"
# This tree comes before any installed package: the kernels are built in place.
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
MOST_WORDS=2000000 # bytes of a step's: some compilers' warnings are many megabytes
words="$(mktemp)"
trap 'rm -f "$words"' EXIT
# A step out of time is interrupted: pytest and the benchmarks then keep what is done. A shell in the
# background starts its commands so that they ignore this, which env undoes.
interruptible=(env --default-signal=INT)
"${interruptible[@]}" true 2>/dev/null || interruptible=()
steps=""
status=0

# step NAME SECONDS COMMAND...: runs it for at most SECONDS, keeps its output in log.txt, and notes
# how it went. 77 is a skip. The command is a function, which puts "${bound[@]}" before what it runs.
step() {
    local name="$1" seconds="$2" started=$SECONDS outcome left
    shift 2
    left=$((TIME - SECONDS))
    if [[ "$TIME" == 0 ]]; then seconds=0; elif ((seconds > left)); then seconds=$left; fi
    if [[ "$SKIP" == *" $name "* ]]; then
        outcome=skipped
    elif [[ "$TIME" != 0 && "$seconds" -le 0 ]]; then
        outcome="out of time" status=1
    else
        echo "--- $name"
        bound=(timeout -s INT -k 10 "$seconds" "${interruptible[@]}")
        "$@" >"$words" 2>&1
        case $? in
            0) outcome=passed ;;
            77) outcome=skipped ;;
            124 | 137) outcome="out of time" status=1 ;;
            *) outcome=failed status=1 ;;
        esac
        { echo "--- $name"; tail -c "$MOST_WORDS" "$words"; } >>"$OUT/log.txt"
        tail -n 15 "$words"
    fi
    echo "--- $name: $outcome ($((SECONDS - started)) s)"
    steps="$steps${steps:+,}\"$name\":{\"outcome\":\"$outcome\",\"seconds\":$((SECONDS - started))}"
    summary
}

# summary: writes the results so far to summary.json.
summary() {
    STEPS="{$steps}" OUT="$OUT" "$PYTHON" -c '
import json, os, subprocess
import torch
try:
    import vae_fast
    info = {name: str(value) for name, value in vae_fast.info().items()}
except Exception as error:
    info = {"error": str(error)}
def said(*command):
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()
    except OSError:
        return ""
properties = torch.cuda.get_device_properties(0)
found = {
    "gpu": properties.name,
    "compute capability": f"{properties.major}.{properties.minor}",
    "multiprocessors": properties.multi_processor_count,
    "memory bytes": properties.total_memory,
    "driver": said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
    "commit": said("git", "rev-parse", "HEAD"),
    "info": info,
    "steps": json.loads(os.environ["STEPS"]),
}
path = os.path.join(os.environ["OUT"], "summary.json")
with open(path + ".part", "w") as file:
    json.dump(found, file, indent=2)
os.replace(path + ".part", path)
' || status=1
}

plain() { "${bound[@]}" "$@"; }

# In four processes if there is pytest-xdist and the GPU takes several: most of their time is the
# host's.
tests() {
    local side=()
    if "$PYTHON" -c "import xdist" 2>/dev/null &&
        [[ "$(nvidia-smi --query-gpu=compute_mode --format=csv,noheader 2>/dev/null)" == Default* ]]; then
        side=(-n 4 --dist worksteal)
    fi
    plain "$PYTHON" -m pytest -q -m cuda "${side[@]}" --durations=10 --junitxml="$OUT/tests.xml"
}

sanitize() {
    command -v compute-sanitizer >/dev/null ||
        { echo "compute-sanitizer is not on PATH; it comes with the CUDA toolkit"; return 77; }
    # Without torch's caching each tensor is its own allocation, and a read past its end is seen.
    # Errors of the API's calls are left out: libraries provoke some to learn what a GPU can do.
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 "${bound[@]}" compute-sanitizer --tool "$1" \
        --error-exitcode 1 --require-cuda-init=no "${@:2}" "$PYTHON" scripts/sanitize_ops.py
    local result=$?
    # Some virtual machines refuse the sanitizer the device: that says nothing about our kernels.
    if grep -q "Device not supported" "$words"; then result=77; fi
    return "$result"
}

# Compiles, unless the same sources were compiled here for the same torch and GPU. Contents are compared,
# not times: a new copy of the tree has new times.
build() {
    local stamp=build/gpu-check.stamp now
    now="$({
        find csrc setup.py -type f | LC_ALL=C sort | xargs cat
        "$PYTHON" -c "import sys, torch; print(torch.__version__, sys.version,
            torch.cuda.get_device_capability())"
    } | sha256sum)"
    if [[ "$(cat "$stamp" 2>/dev/null)" == "$now" ]] && compgen -G "vae_fast/_C_cuda*" >/dev/null; then
        echo "the kernels here were compiled from these sources"
        return 0
    fi
    plain env VAE_FAST_BUILD=cuda "$PYTHON" setup.py build_ext --inplace || return
    mkdir -p build && echo "$now" >"$stamp"
}

# The benchmarks' tables go to a separate file.
benchmarks() {
    "${bound[@]}" "$PYTHON" -m benchmarks "${BENCH[@]}" --json "$OUT/benchmarks.json" |
        tee "$OUT/benchmarks.txt"
    return "${PIPESTATUS[0]}"
}

# CUDA has to be there, or every test marked cuda would be skipped and the check pass. The first five
# have 5 minutes together; the benchmarks take what is left, 2 minutes or more.
step build 140 build
step info 10 plain "$PYTHON" -c '
import sys, vae_fast
facts = vae_fast.info()
print("\n".join(f"{name}: {value}" for name, value in facts.items()))
sys.exit(facts["native cuda"] != "yes")'
step tests 80 tests
step memcheck 40 sanitize memcheck --report-api-errors no
step racecheck 30 sanitize racecheck
step benchmarks 420 benchmarks

echo "gpu-check: {$steps}"
exit $status
