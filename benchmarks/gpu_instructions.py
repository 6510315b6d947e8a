"""Instructions in the CUDA kernels' machine code: per element, and per task (its *frame*).
``python -m benchmarks.gpu_instructions`` writes results/gpu_instructions.json.

The kernels' functions are compiled for sm_90, without branches, for one whole batch of elements and
for two (benchmarks/gpu/*.cu). The difference is the cost of a batch; divided by the batch's elements,
it is the cost of an element. The frame is the fixed cost of a task with a sum: the shortest path
through the kernel from entry to exit that passes the block's sum. Kernels with a loop over whole
accesses are counted as they are: the shortest path with two rounds of the loop minus the one with one
round is the cost of a round, and the rest of the latter is the frame. No GPU is needed.
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
from itertools import pairwise
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
    branches: bool = False  # count the shortest path: few elements take the branches


class Loop(NamedTuple):
    """A kernel counted as it is, by the opcodes that a round of its loop contains."""

    source: str
    kernel: str
    elements: int  # of a round
    round: dict[str, int]
    ends: dict[str, int] | None = None  # of the rest of the path: a sum's shuffles or barriers
    once: bool = False  # no loop: the whole path is counted


_BATCHES = r"batches_of<\S*{}, \S*::{}, \S*\){}, \S*\){}, {}, {}, {{}}>"
LAST = "channels_last"
_KERNEL = r"likelihood_kernel<\S*Bernoulli, \S*::{}, {}, {}>"

# The numbers are DType's: float32 0, bfloat16 2, uint8 4.
OPS = {
    "bernoulli_nll/value/float32": Op(
        "likelihoods",
        _BATCHES.format("::Bernoulli", "F32", 0, 0, "true", "false"),
        16,
        _KERNEL.format("F32", "true", "false"),
    ),
    **{
        f"bernoulli_nll/both/{dtype}": Op(
            "likelihoods",
            _BATCHES.format("::Bernoulli", format_, number, target, "true", "true"),
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
    # Counts of zero only: other counts take another branch.
    **{
        f"{name}_nll/both/float32": Op(
            "likelihoods",
            _BATCHES.format(f"::{likelihood}", "F32", 0, 0, "true", "true"),
            elements,
            branches=True,
        )
        for name, likelihood, elements in (
            ("bernoulli_probs", "BernoulliProbs", 16),
            ("continuous_bernoulli", "ContinuousBernoulli", 16),
            ("gaussian", "GaussianBy<true>", 8),
            ("gaussian_scale", "GaussianBy<false>", 8),
            ("laplace", "LaplaceBy<true>", 8),
            ("laplace_scale", "LaplaceBy<false>", 8),
            ("student_t", "StudentTBy<true>", 4),
            ("student_t_scale", "StudentTBy<false>", 4),
            ("discretized_logistic", "DiscretizedLogistic", 8),
            ("poisson", "PoissonBy<false>", 4),
            ("poisson_log", "PoissonBy<true>", 4),
            ("negative_binomial", "NegativeBinomialBy<false>", 4),
            ("negative_binomial_log", "NegativeBinomialBy<true>", 4),
            ("zero_inflated_negative_binomial", "ZeroInflatedNegativeBinomialBy<false>", 4),
            ("zero_inflated_negative_binomial_log", "ZeroInflatedNegativeBinomialBy<true>", 4),
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
    # The conversions and exponentials keep the path from skipping what follows the loads.
    **{
        f"group_norm_silu{name}/{layout}/{dtype}": Loop(
            "group_norm",
            rf"{kernel}<\S*{format_}, {of_16}, {last}{terms}[,>]",
            several * of_16,
            {
                r"LDG\S*\.128": tensors * several,
                r"STG\S*\.128": several if writes else 0,
                r"F2F\.F64\.F32": 0 if writes else 2 * several * (of_16 if layout == LAST else 1),
                r"MUFU\.EX2": several * of_16 if "Gradients" in terms else 0,
            },
            None if writes else ({"BAR": 4} if layout == LAST else {"SHFL": 20}),
        )
        for name, kernel, terms, tensors, writes in (
            ("/sums", "channel_sums_kernel", r", .*Distances", 1, False),
            ("/value", "normalize_kernel", "", 1, True),
            ("_backward/sums", "channel_sums_kernel", r", .*Gradients", 2, False),
            ("_backward/gradient", "gradient_kernel", "", 2, True),
        )
        for layout, last in (("contiguous", "false"), (LAST, "true"))
        for dtype, format_, of_16, several in (
            ("float32", "F32", 4, 4),
            ("bfloat16", "BF16", 8, 2 if layout == LAST else 4),
        )
    },
    # An element of these is one part of a map, 1,024 places or more.
    "group_norm_silu/statistics": Loop(
        "group_norm", r"statistics_kernel<\S*F32>", 1, {r"LDG\.E\.64": 2}, {"SHFL": 20}
    ),
    "group_norm_silu_backward/shares": Loop(
        "group_norm", r"shares_kernel<\S*F32>", 1, {r"LDG\.E\.64": 2}, {"SHFL": 20}
    ),
    "step_sample/value": Loop("step", r"sample_kernel\(", 4, {"STG": 4}, once=True),
    "step_sample/gradient": Loop("step", r"sample_backward_kernel\(", 4, {"STG": 8}, once=True),
    # A round is a task, its sum included.
    "step_decide/squares": Loop("step", r"decide_kernel\(", 16, {r"LDG\S*\.128": 4}),
    "step_decide/columns": Loop("step", r"columns_kernel\(", 4, {"LDG": 4}, {"BAR": 2}),
    "step_decide/kl": Loop("step", r"kl_kernel\(", 4, {"LDG": 8}, once=True),
    "step_update/plain": Loop("step", r"update_kernel\(", 4, {r"STG\S*\.128": 3}, once=True),
    "step_update/average": Loop("step", r"update_kernel\(", 4, {r"STG\S*\.128": 4}, once=True),
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
    # The search is over runs of instructions that no branch enters or leaves: far fewer states.
    starts = {0, *(i.target for i in code if i.target is not None)}
    starts |= {at + 1 for at, i in enumerate(code) if i.opcode.startswith(("BRA", "EXIT"))}
    ends = dict(pairwise([*sorted(s for s in starts if s < len(code)), len(code)]))
    patterns, most = [re.compile(p) for p in needs], tuple(needs.values())
    matched = {
        start: tuple(sum(bool(p.match(i.opcode)) for i in code[start:end]) for p in patterns)
        for start, end in ends.items()
    }
    queue, seen = [(0, 0, tuple(0 for _ in most))], set()
    while queue:
        length, at, have = heapq.heappop(queue)
        have = tuple(min(m, h + hit) for m, h, hit in zip(most, have, matched[at], strict=True))
        if (at, have) in seen:
            continue
        seen.add((at, have))
        length, last = length + ends[at] - at, ends[at] - 1
        if code[last].opcode.startswith("EXIT") and have == most:
            return length
        for after in _next(code, last):
            if after in ends:
                heapq.heappush(queue, (length, after, have))
    raise RuntimeError(f"no path through the kernel has {needs}")


def length(code: list[Instruction]) -> int:
    """Instructions before the last exit."""
    exits = [at for at, one in enumerate(code) if one.opcode.startswith("EXIT")]
    return exits[-1] + 1


def counted(kernels: dict[str, list[Instruction]], op: Op | Loop) -> dict[str, float]:
    """Instructions per element, and per task's frame."""

    def find(pattern: str) -> list[Instruction]:
        found = [name for name in kernels if re.search(pattern, name)]
        if len(found) != 1:
            raise RuntimeError(f"{op.source} has {len(found)} kernels of {pattern}")
        return kernels[found[0]]

    if isinstance(op, Loop):
        code = find(op.kernel)
        one, two = (
            shortest(code, {name: n * count for name, count in op.round.items()} | (op.ends or {}))
            for n in (1, 2 - op.once)
        )
        if op.once:
            return {"element": round(one / op.elements, 2)}
        return {"element": round((two - one) / op.elements, 2), "frame": one - (two - one)}
    codes = [find(op.batches.format(n)) for n in (1, 2)]
    one, two = (shortest(code, {}) if op.branches else length(code) for code in codes)
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
