"""Instructions of the CUDA kernels: the recorded counts are of this code, and the bars are kept."""

import json

import pytest

from benchmarks import gpu_instructions as gpu
from vae_fast.likelihoods import SPECS

TOLERANCE = 0.03
# Upper limits, in instructions per element.
BARS = {
    "bernoulli_nll/both/float32": 34,
    "bernoulli_nll/both/bfloat16/uint8": 36,
    "sample_and_kl/value/float32": 70,
    "sample_and_kl/value/bfloat16": 70,
    "sample_and_kl/gradient/float32": 85,
    "sample_and_kl/gradient/bfloat16": 85,
}


def recorded():
    return json.loads(gpu.RESULTS.read_text())


def test_every_op_is_recorded_and_within_its_bar():
    counts = recorded()["counts"]
    assert set(counts) == set(gpu.OPS)
    assert {
        op: counts[op]["element"] for op, bar in BARS.items() if counts[op]["element"] > bar
    } == {}


def test_every_source_of_kernels_and_every_likelihood_is_counted():
    folder = gpu.ROOT / "csrc/cuda"
    kernels = {  # philox_words serves tests alone; finish adds up what tasks gave
        f.stem.partition("_part")[0]
        for f in folder.glob("*.cu")
        if "_kernel" in f.read_text() or "_part" in f.stem
    } - {"philox_words", "finish"}
    counted = {op.source for op in gpu.OPS.values()}
    assert kernels == {source.removesuffix("s") for source in counted}
    names = {op.split("_nll/")[0] for op in gpu.OPS if "_nll/" in op}
    assert names == {spec.name for spec in SPECS.values() if not spec.planes}


def test_a_loops_round_and_its_frame_are_told_apart():
    code = [
        gpu.Instruction("MOV", False, None),
        gpu.Instruction("LDG.E.128", False, None),
        gpu.Instruction("FADD", False, None),
        gpu.Instruction("BRA", True, 1),  # round again
        gpu.Instruction("SHFL", False, None),
        gpu.Instruction("STG", False, None),
        gpu.Instruction("EXIT", False, None),
    ]
    loop = gpu.Loop("x", "kernel", 4, {r"LDG\S*\.128": 1}, {"SHFL": 1})
    assert gpu.counted({"a kernel": code}, loop) == {"element": 0.75, "frame": 4}
    assert gpu.counted({"a kernel": code}, loop._replace(once=True)) == {"element": 1.75}


def test_the_shortest_path_contains_the_needed_instructions():
    code = [
        gpu.Instruction("MOV", False, None),
        gpu.Instruction("BRA", True, 4),  # past the shuffle
        gpu.Instruction("SHFL.BFLY", False, None),
        gpu.Instruction("FADD", False, None),
        gpu.Instruction("BRA", True, 0),  # round again
        gpu.Instruction("EXIT", False, None),
        gpu.Instruction("NOP", False, None),
    ]
    assert gpu.shortest(code, {}) == 4
    assert gpu.shortest(code, {"SHFL": 1}) == 6
    assert gpu.shortest(code, {"SHFL": 2}) == 11
    assert gpu.length(code) == 6
    with pytest.raises(RuntimeError, match="no path"):
        gpu.shortest(code, {"BAR": 1})


@pytest.mark.slow
def test_counts_are_the_recorded_ones():
    try:
        if gpu.toolkit() != recorded()["toolkit"]:
            pytest.skip(
                f"the record is of CUDA {recorded()['toolkit']}, and this is {gpu.toolkit()}"
            )
        found = gpu.count()
    except gpu.Unavailable as missing:
        pytest.skip(str(missing))
    worse = {
        f"{op}: {what}": (counts[what], recorded()["counts"][op][what])
        for op, counts in found.items()
        for what in counts
        if counts[what] > (1 + TOLERANCE) * recorded()["counts"][op][what]
    }
    assert not worse, (
        f"more instructions than recorded (now, recorded): {worse}; if that is meant, "
        "run python -m benchmarks.gpu_instructions"
    )
