"""Instructions per element: the recorded counts are of this code, where that can be counted."""

import json

import pytest

from benchmarks import instructions

# A compiler of another version schedules differently; twice this is a regression by any compiler.
TOLERANCE = 0.10


def recorded():
    return json.loads(instructions.RESULTS.read_text())["per_element"]


def test_every_op_is_recorded_at_every_level():
    counts = recorded()
    assert set(counts) == set(instructions.LEVELS)
    for level in counts:
        assert set(counts[level]) == set(instructions.OPS)


def test_wider_vectors_take_fewer_instructions():
    counts = recorded()
    for op in instructions.OPS:
        assert counts["avx2"][op] < 0.6 * counts["generic"][op], op
        assert counts["avx512"][op] < 0.75 * counts["avx2"][op], op


def test_missing_parts_are_reported(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(instructions.Unavailable, match="install a C\\+\\+ compiler"):
        instructions.need()


@pytest.mark.slow
def test_counts_are_the_recorded_ones():
    try:
        found = instructions.count()
    except instructions.Unavailable as missing:
        pytest.skip(str(missing))
    worse = {
        f"{op} at {level}": (count, recorded()[level][op])
        for level, counts in found.items()
        for op, count in counts.items()
        if count > (1 + TOLERANCE) * recorded()[level][op]
    }
    assert not worse, (
        f"more instructions per element than recorded (now, recorded): {worse}; if that is meant, "
        "run python -m benchmarks.instructions"
    )
