#!/usr/bin/env bash
# All that needs a GPU, in one go, with the machine's own python3 and nothing downloaded: builds the
# kernels in place for the GPU at hand, runs the tests marked cuda, compute-sanitizer over every op,
# a look at the machine code, and the benchmarks. Logs and summary.json go to the folder given.
#
#   scripts/gpu_check.sh [OUT]          PYTHON=python3 by default; SKIP="sanitizer benchmarks" skips
#
# Steps are independent: one that fails is reported, and the next one runs.
set -uo pipefail
cd "$(dirname "$0")/.."

PYTHON="${PYTHON:-python3}"
OUT="${1:-benchmarks/results/gpu-check}"
SKIP=" ${SKIP:-} "

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
rm -f "$OUT"/*.log "$OUT"/*.json "$OUT"/*.xml
echo "gpu-check on $gpu, writing to $OUT"
# The tree before anything that is installed: the kernels are built in place.
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
steps=""
status=0

# step NAME COMMAND...: runs it, keeps its words in NAME.log, and notes how it went. 77 is a skip.
step() {
    local name="$1" started=$SECONDS outcome
    shift
    if [[ "$SKIP" == *" $name "* ]]; then
        outcome=skipped
    else
        echo "--- $name"
        "$@" >"$OUT/$name.log" 2>&1
        case $? in
            0) outcome=passed ;;
            77) outcome=skipped ;;
            *) outcome=failed status=1 ;;
        esac
        tail -n 15 "$OUT/$name.log"
    fi
    echo "--- $name: $outcome ($((SECONDS - started)) s)"
    steps="$steps${steps:+,}\"$name\":{\"outcome\":\"$outcome\",\"seconds\":$((SECONDS - started))}"
}

sanitize() {
    command -v compute-sanitizer >/dev/null ||
        { echo "compute-sanitizer is not on PATH; it comes with the CUDA toolkit"; return 77; }
    # Without torch's caching each tensor is its own allocation, and a read past its end is seen.
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$1" --error-exitcode 1 \
        --require-cuda-init=no "$PYTHON" scripts/sanitize_ops.py 2>&1 | tee "$OUT/$1.tmp"
    local result=${PIPESTATUS[0]}
    # Some virtual machines refuse the sanitizer the device: that says nothing about our kernels.
    if grep -q "Device not supported" "$OUT/$1.tmp"; then result=77; fi
    rm -f "$OUT/$1.tmp"
    return "$result"
}

cuda_tests() { "$PYTHON" -m pytest -q -m cuda --durations=10 --junitxml="$OUT/tests.xml" "$@"; }

# CUDA has to be there, or every test marked cuda would be skipped and the check pass.
step build env VAE_FAST_BUILD=cuda "$PYTHON" setup.py build_ext --inplace
step info "$PYTHON" -c '
import sys, vae_fast
facts = vae_fast.info()
print("\n".join(f"{name}: {value}" for name, value in facts.items()))
sys.exit(facts["native cuda"] != "yes")'
step tests cuda_tests
for tool in memcheck racecheck initcheck; do
    step "$tool" sanitize "$tool"
done
step sass scripts/check_sass.sh
step benchmarks "$PYTHON" -m benchmarks --json "$OUT/benchmarks.json"

STEPS="{$steps}" OUT="$OUT" "$PYTHON" -c '
import json, os, platform, subprocess
import torch, vae_fast
def said(*command):
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()
    except OSError:
        return ""
properties = torch.cuda.get_device_properties(0)
summary = {
    "gpu": properties.name,
    "compute capability": f"{properties.major}.{properties.minor}",
    "multiprocessors": properties.multi_processor_count,
    "memory bytes": properties.total_memory,
    "driver": said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
    "commit": said("git", "rev-parse", "HEAD"),
    "info": {name: str(value) for name, value in vae_fast.info().items()},
    "steps": json.loads(os.environ["STEPS"]),
}
with open(os.path.join(os.environ["OUT"], "summary.json"), "w") as file:
    json.dump(summary, file, indent=2)
print(json.dumps(summary["steps"], indent=2))
' || status=1
exit $status
