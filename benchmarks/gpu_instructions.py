"""Instructions in the CUDA kernels' machine code: per element, and per task (its *frame*).
``python -m benchmarks.gpu_instructions`` writes results/gpu_instructions.json.

The kernels' functions are compiled for sm_90, without branches, for one whole batch of elements and
for two (benchmarks/gpu/*.cu). The difference is the cost of a batch; divided by the batch's elements,
it is the cost of an element. The frame is the fixed cost of a task with a sum: the shortest path
through the kernel from entry to exit that passes the block's sum. No GPU is needed.
"""

from __future__ import annotations

import heapq
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from benchmarks.instructions import Unavailable

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "gpu_instructions.json"
ARCH = "sm_90"


class Op(NamedTuple):
    """Functions to count, in a source of benchmarks/gpu, by patterns of their demangled names."""

    source: str
    batches: str  # the functions of one and of two batches; {} is the number of batches
    elements: int  # of a batch
    kernel: str = ""  # the kernel whose frame is counted, if its blocks add up


_BERNOULLI = r"batches_of_bernoulli<\S*::{}, \S*\){}, \S*\){}, {}, {}, {{}}>"
_KERNEL = r"likelihood_kernel<\S*Bernoulli, \S*::{}, {}, {}>"

# The numbers are DType's: float32 0, bfloat16 2, uint8 4.
OPS = {
    "bernoulli_nll/value/float32": Op(
        "bernoulli",
        _BERNOULLI.format("F32", 0, 0, "true", "false"),
        16,
        _KERNEL.format("F32", "true", "false"),
    ),
    **{
        f"bernoulli_nll/both/{dtype}": Op(
            "bernoulli",
            _BERNOULLI.format(format_, number, target, "true", "true"),
            16,
            _KERNEL.format(format_, "true", "true"),
        )
        for dtype, format_, number, target in (
            ("float32", "F32", 0, 0),
            ("float32/uint8", "F32", 0, 4),
            ("bfloat16", "BF16", 2, 2),
            ("bfloat16/uint8", "BF16", 2, 4),
        )
    },
    **{
        f"sample_and_kl/{pass_}/{dtype}": Op(
            "gaussian",
            rf"batches_{way}<\S*::{format_}, {{}}>",
            8,
            rf"gaussian_forward_kernel<\S*::{format_}>" if way == "forward" else "",
        )
        for pass_, way in (("value", "forward"), ("gradient", "backward"))
        for dtype, format_ in (("float32", "F32"), ("bfloat16", "BF16"))
    },
    **{
        f"gather/{mode}": Op(
            "gather",
            rf"batches_of_gather<\S*\){number}, {{}}>",
            16 if mode == "scale" else 32,
        )
        for number, mode in enumerate(("bytes", "scale", "binarize"))
    },
}


def _tool(name: str) -> str:
    home = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))
    nvcc = shutil.which("nvcc")
    if nvcc:  # which may be a wrapper: it says itself where it stands
        said = subprocess.run(
            [nvcc, "--dryrun", "-c", "x.cu"], check=False, capture_output=True, text=True
        )
        if top := re.search(r"^#\$ TOP=(.+)$", said.stderr + said.stdout, flags=re.MULTILINE):
            home = Path(top[1].strip())
    found = home / "bin" / name
    if found.exists():
        return str(found)
    if there := shutil.which(name):
        return there
    spec = importlib.util.find_spec("triton")  # whose wheel has cuobjdump
    if spec and spec.origin:
        found = Path(spec.origin).parent / "backends" / "nvidia" / "bin" / name
        if found.exists():
            return str(found)
    raise Unavailable(f"{name} is not here: install the CUDA toolkit, or set CUDA_HOME")


def toolkit() -> str:
    """The toolkit's version. Counts are valid for one version."""
    said = subprocess.run([_tool("nvcc"), "--version"], check=True, capture_output=True, text=True)
    return re.search(r"V([\d.]+)", said.stdout)[1]


def _run(command: list[str]) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def compiled(source: str, folder: Path) -> Path:
    target = folder / f"{source}.cubin"
    flags = [
        "-O3",
        "-std=c++20",
        f"-arch={ARCH}",
        f"-I{ROOT / 'csrc'}",
        "-cubin",
        "-DVF_ONLY_WHOLE",
    ]
    _run([_tool("nvcc"), *flags, "-o", str(target), str(ROOT / "benchmarks/gpu" / f"{source}.cu")])
    return target


class Instruction(NamedTuple):
    opcode: str
    conditional: bool
    target: int | None  # the place it branches to


def machine_code(cubin: Path) -> dict[str, list[Instruction]]:
    """The instructions of each kernel of a file, by its plain name."""
    text = _run([_tool("cuobjdump"), "-sass", str(cubin)])
    if shutil.which("c++filt"):
        text = subprocess.run(
            ["c++filt"], input=text, check=True, capture_output=True, text=True
        ).stdout
    kernels = {}
    for part in re.split(r"\s+Function : ", text)[1:]:
        lines = re.findall(r"/\*([0-9a-f]{4,})\*/\s+(@!?U?P\w+\s+)?([A-Z][\w.]*)([^;]*);", part)
        places = {int(at, 16): i for i, (at, *_) in enumerate(lines)}
        kernels[part.split("\n")[0].strip()] = [
            Instruction(
                opcode,
                bool(guard),
                places.get(int(rest.split()[-1].rstrip(")`").lstrip("`("), 16))
                if opcode.split(".")[0] == "BRA" and "0x" in rest
                else None,
            )
            for _, guard, opcode, rest in lines
        ]
    return kernels


def _next(code: list[Instruction], at: int) -> list[int]:
    """The instructions that may follow."""
    one = code[at]
    base = one.opcode.split(".")[0]
    if base == "EXIT":
        return [at + 1] if one.conditional else []
    if one.target is not None:
        return [one.target, at + 1] if one.conditional else [one.target]
    if base == "BRA":
        raise RuntimeError("a branch whose target can't be read")
    return [at + 1]


def shortest(code: list[Instruction], needs: dict[str, int]) -> int:
    """Instructions on the shortest path from entry to exit with at least these opcode counts."""
    patterns, most = [re.compile(p) for p in needs], tuple(needs.values())
    matched = [tuple(bool(p.match(i.opcode)) for p in patterns) for i in code]
    queue, seen = [(1, 0, tuple(0 for _ in most))], set()
    while queue:
        length, at, have = heapq.heappop(queue)
        have = tuple(min(m, h + hit) for m, h, hit in zip(most, have, matched[at], strict=True))
        if (at, have) in seen:
            continue
        seen.add((at, have))
        if code[at].opcode.startswith("EXIT") and have == most:
            return length
        for after in _next(code, at):
            heapq.heappush(queue, (length + 1, after, have))
    raise RuntimeError(f"no path through the kernel has {needs}")


def length(code: list[Instruction]) -> int:
    """Instructions before the last exit."""
    exits = [at for at, one in enumerate(code) if one.opcode.startswith("EXIT")]
    return exits[-1] + 1


def counted(kernels: dict[str, list[Instruction]], op: Op) -> dict[str, float]:
    """Instructions per element, and per task's frame."""

    def find(pattern: str) -> list[Instruction]:
        found = [name for name in kernels if re.search(pattern, name)]
        if len(found) != 1:
            raise RuntimeError(f"{op.source} has {len(found)} kernels of {pattern}")
        return kernels[found[0]]

    one, two = (length(find(op.batches.format(n))) for n in (1, 2))
    found = {"element": round((two - one) / op.elements, 2)}
    if op.kernel:  # a block's sum is two rounds of 5 shuffles of doubles
        found["frame"] = shortest(find(op.kernel), {"SHFL": 20, "BAR": 2})
    return found


def count() -> dict[str, dict[str, float]]:
    """The counts by op."""
    _tool("cuobjdump")
    with tempfile.TemporaryDirectory() as folder:
        sources = dict.fromkeys(op.source for op in OPS.values())
        kernels = {s: machine_code(compiled(s, Path(folder))) for s in sources}
    return {name: counted(kernels[op.source], op) for name, op in OPS.items()}


def main() -> int:
    from benchmarks.machine import commit, today

    try:
        found = count()
    except Unavailable as missing:
        print(f"benchmarks.gpu_instructions: {missing}", file=sys.stderr)
        return 2
    facts = {
        "what": f"instructions of {ARCH} machine code: of an element, and of a task's frame",
        "toolkit": toolkit(),
        "commit": commit(),
        "date": today(),
        "counts": found,
    }
    RESULTS.write_text(json.dumps(facts, indent=1) + "\n")
    for op, counts in found.items():
        print(f"{op:36s}" + "".join(f"   {what} {n:7.2f}" for what, n in counts.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
