#!/usr/bin/env bash
# clang-tidy over the C++ sources, by the list in .clang-tidy. Every header is read through one of them.
# The AVX2 and AVX-512 levels are the generic level's sources under a pragma that clang does not have.
#
#   scripts/check_tidy.sh [SOURCE...]       PYTHON names a python that has torch and clang-tidy
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON="${PYTHON:-python3}"
# Found without importing torch, which takes seconds.
read -r tidy torch headers pybind < <("$PYTHON" -c '
import sys, sysconfig
from importlib.util import find_spec
from pathlib import Path
torch, pybind11 = (Path(find_spec(name).origin).parent for name in ("torch", "pybind11"))
tidy = Path(sys.executable).parent / "clang-tidy"
print(tidy, torch / "include", sysconfig.get_paths()["include"], pybind11 / "include")')
export tidy
flags=(-std=c++20 -Wno-unknown-pragmas -I csrc -isystem "$torch" -isystem "$headers" -isystem "$pybind"
    -isystem "$torch/torch/csrc/api/include" '-DVAE_FAST_BUILD_TORCH=""')

if [ $# = 0 ]; then
    set -- csrc/library.cpp csrc/module.cpp csrc/autograd/*.cpp # the longest first
    for source in csrc/{cpu,norm,step}/*.cpp; do
        case $source in *_avx*) ;; *) set -- "$@" "$source" ;; esac
    done
fi
# shellcheck disable=SC2016  # the inner shell's variables
printf '%s\n' "$@" | xargs -P "$(nproc 2> /dev/null || echo 2)" -I '{}' bash -c '
    case {} in
        csrc/autograd/*) target= ;;
        *) target=-DTORCH_TARGET_VERSION=0x020b000000000000 ;;
    esac
    "$tidy" --quiet "{}" -- "$@" $target 2> /dev/null' tidy "${flags[@]}"
