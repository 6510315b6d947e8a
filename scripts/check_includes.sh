#!/usr/bin/env bash
# Kernels and pybind11 stay free of torch's headers: only the sources that register the ops may
# include them, and those only the stable ABI's. That is what lets one binary serve every torch.
# csrc/autograd is a library of its own, which serves one torch and which nothing needs.
set -euo pipefail
cd "$(dirname "$0")/.."

status=0
torch_header='^[[:space:]]*#[[:space:]]*include[[:space:]]*[<"](torch|ATen|c10|caffe2)/'

if found=$(grep -rnE "$torch_header" csrc --exclude='library*.cpp' --exclude-dir=torch \
    --exclude-dir=autograd); then
    echo "only csrc/library*.cpp, csrc/torch/ and csrc/autograd/ may include torch's headers; move these there:" >&2
    echo "$found" >&2
    status=1
fi

# "torch/NAME.h" is a file of csrc/torch.
stable='[<"]torch/(csrc/stable|headeronly|csrc/inductor/aoti_torch/c)/|"torch/[a-z_]+\.h"'
if found=$(grep -nE "$torch_header" csrc/library*.cpp csrc/torch/*.h | grep -vE "$stable"); then
    echo "these are outside LibTorch's stable ABI, and tie the binary to one torch:" >&2
    echo "$found" >&2
    status=1
fi

if found=$(grep -nE '#[[:space:]]*include[[:space:]]*[<"]pybind11/' csrc/library*.cpp csrc/torch/*.h); then
    echo "pybind11 and torch's headers clash in one source; keep it in csrc/module*.cpp:" >&2
    echo "$found" >&2
    status=1
fi
exit $status
