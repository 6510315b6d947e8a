#!/usr/bin/env bash
# What the compiler made of the CUDA kernels, without a GPU: no register spills (ptxas says so), no
# local memory, and 16-byte loads in every kernel that streams tensors (the machine code says so).
#
#   ARCH=sm_90 scripts/check_sass.sh        NVCC, CUOBJDUMP, PYTHON name the tools
#
# Exit status 77 where there is no nvcc. Without cuobjdump, which the toolkit or triton's wheel
# brings, only the spills are checked.
set -euo pipefail
cd "$(dirname "$0")/.."

ARCH="${ARCH:-sm_90}"
PYTHON="${PYTHON:-python3}"
# These read a few words each, or partial sums, or rows of a map that are no whole number of 16 bytes
# (GroupNorm's with one neighbour): nothing to widen.
narrow='finish_kernel|philox_words_kernel|statistics_kernel|shares_kernel|sample_kernel|'
narrow+='sample_backward_kernel|decide_alone_kernel|F[0-9]+, 1, '

nvcc="${NVCC:-$(command -v nvcc || true)}"
if [ -z "$nvcc" ] && [ -x "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc" ]; then
    nvcc="${CUDA_HOME:-/usr/local/cuda}/bin/nvcc"
fi
[ -n "$nvcc" ] || { echo "check_sass: SKIP: there is no nvcc here"; exit 77; }

cuobjdump="${CUOBJDUMP:-$(command -v cuobjdump || true)}"
if [ -z "$cuobjdump" ]; then
    cuobjdump="$("$PYTHON" -c '
import importlib.util, pathlib
spec = importlib.util.find_spec("triton")
if spec:
    tool = pathlib.Path(spec.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    print(tool if tool.is_file() else "")' 2>/dev/null || true)"
fi

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
status=0
# nvcc uses one core for a file.
export nvcc ARCH work
# shellcheck disable=SC2016  # the inner shell's variables
printf '%s\n' csrc/cuda/*.cu | xargs -P "$(nproc 2>/dev/null || echo 2)" -I '{}' bash -c '
    name="$(basename "{}" .cu)"
    "$nvcc" -O3 -std=c++20 --expt-relaxed-constexpr -I csrc -arch="$ARCH" -Xptxas -v -cubin \
        -o "$work/$name.cubin" "{}" >"$work/$name.log" 2>&1 ||
        { cat "$work/$name.log"; echo "check_sass: FAIL: {} does not compile for $ARCH"; exit 1; }' ||
    exit 1
for source in csrc/cuda/*.cu; do
    name="$(basename "$source" .cu)"
    kernels="$(grep -c 'bytes spill stores' "$work/$name.log" || true)"
    spills="$(grep 'bytes spill stores' "$work/$name.log" |
        grep -vc ' 0 bytes spill stores, 0 bytes spill loads' || true)"
    registers="$(grep -o 'Used [0-9]* registers' "$work/$name.log" | awk '{print $2}' | sort -n |
        tail -1 || true)"
    echo "$source ($ARCH): $kernels kernels, at most $registers registers, $spills with spills"
    [ "$spills" = 0 ] || status=1
done

if [ -z "$cuobjdump" ]; then
    echo "check_sass: only spills were checked: there is no cuobjdump (pip install triton has one)"
else
    printf '%8s %8s %8s %8s %6s  %s\n' loads 128-bit stores 128-bit local kernel
    for cubin in "$work"/*.cubin; do
        "$cuobjdump" -sass "$cubin"
    done | c++filt | awk -v narrow="$narrow" '
        /Function :/ {
            name = $0; sub(/.*Function : /, "", name); sub(/^void /, "", name)
            gsub(/vae_fast::|cuda::|\(anonymous namespace\)::/, "", name); sub(/\(.*/, "", name)
            order[++count] = name
        }
        / LDG/ { loads[name]++; if (/\.128/) wide_loads[name]++ }
        / STG/ { stores[name]++; if (/\.128/) wide_stores[name]++ }
        / (LDL|STL)/ { local[name]++ }
        END {
            for (i = 1; i <= count; i++) {
                k = order[i]
                bad = local[k] > 0 || (k !~ narrow && wide_loads[k] == 0)
                printf "%8d %8d %8d %8d %6d  %s%s\n", loads[k], wide_loads[k], stores[k],
                    wide_stores[k], local[k], k, bad ? "  <-- FAIL" : ""
                if (bad) failed = 1
            }
            exit failed
        }' || status=1
fi
if [ $status = 0 ]; then
    echo "check_sass: PASS"
else
    echo "check_sass: FAIL: spills, local memory, or a kernel without 16-byte loads (above)"
fi
exit $status
