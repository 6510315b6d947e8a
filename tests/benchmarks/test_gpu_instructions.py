"""Instructions of the CUDA kernels: the recorded counts are of this code, and the bars are kept."""

import json

import pytest

from benchmarks import gpu_instructions as gpu

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
