#!/usr/bin/env bash
# A CUDA toolkit where there is none, as far as the kernels need one: nvcc, headers and the runtime, from
# pip's packages (270 MB). It prints the folder to set CUDA_HOME to.
#
#   export CUDA_HOME="$(scripts/cuda_toolkit.sh FOLDER)"
#
#   PYTHON   its pip installs; default: python3        CUDA   the version, 13.x; default: 13.0
set -euo pipefail

[ $# = 1 ] || { echo "usage: cuda_toolkit.sh FOLDER" >&2; exit 2; }
version="${CUDA:-13.0}"
packages=(nvidia-cuda-nvcc nvidia-cuda-crt nvidia-nvvm nvidia-cuda-runtime nvidia-cuda-cccl)
"${PYTHON:-python3}" -m pip install -q --disable-pip-version-check --upgrade --no-deps --target "$1" \
    "${packages[@]/%/==$version.*}" >&2
home="$(realpath "$1")/nvidia/cu13"
# The linker asks for libcudart.so, which only a development package would have.
ln -sf libcudart.so.13 "$home/lib/libcudart.so"
"$home/bin/nvcc" --version >&2
echo "$home"
