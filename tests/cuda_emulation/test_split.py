"""How problems are cut into tasks: everything once, by size alone, in 64-bit arithmetic."""

from __future__ import annotations

import ctypes

import pytest

from tests.cuda_emulation.emulator import Emulator

SIZES = [
    (1, 1),
    (1, 4095),
    (1, 4097),
    (1, 1_000_003),
    (1, 4096 * 2048),
    (1, 4096 * 2048 + 1),
    (3, 7),
    (5, 2047),
    (2, 2049),
    (3, 196_608),
    (2, 70_001),
]


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize(("segments", "length"), SIZES)
def test_tasks_cover_every_element_once_and_in_order(
    emulation: Emulator, segments: int, length: int, half: bool
):
    (tasks, lanes, blocks), _ = emulation.split(segments, length, half, 0)
    assert tasks % segments == 0
    assert tasks <= max(2048, segments)
    assert blocks == -(-tasks // (256 // lanes))
    ranges = [emulation.split(segments, length, half, task)[1] for task in range(tasks)]
    at = 0
    for task, (segment, begin, end) in enumerate(ranges):
        assert segment == task // (tasks // segments)
        assert begin == at and end >= begin
        assert segment * length <= begin and end <= (segment + 1) * length
        at = end
    assert at == segments * length


@pytest.mark.parametrize("half", [False, True])
def test_more_elements_than_32_bits_count(emulation: Emulator, half: bool):
    length = 2**33 + 5
    (tasks, lanes, _), first = emulation.split(1, length, half, 0)
    assert lanes == 256 and 1024 < tasks <= 2048 and first[:2] == [0, 0]
    last = emulation.split(1, length, half, tasks - 1)[1]
    before = emulation.split(1, length, half, tasks - 2)[1]
    assert last == [0, before[2], length]
    # No task has much more than its share.
    assert first[2] < 1.1 * length / tasks + 2**16


def test_more_rows_than_32_bits_count(emulation: Emulator):
    rows = 2**33
    (tasks, lanes, blocks), _ = emulation.split(rows, 20, False, 0)
    assert (tasks, lanes, blocks) == (rows, 2, 2**20)
    assert emulation.split(rows, 20, False, rows - 1)[1] == [
        rows - 1,
        20 * (rows - 1),
        20 * rows,
    ]


@pytest.mark.parametrize(
    ("cols", "lanes"), [(3, 1), (16, 1), (20, 2), (128, 8), (784, 32), (2048, 32), (4096, 256)]
)
def test_short_rows_share_a_warp_and_long_ones_take_a_block(
    emulation: Emulator, cols: int, lanes: int
):
    assert emulation.split(1000, cols, False, 0)[0][1] == lanes


def test_a_stream_keeps_its_counter_and_a_captured_launch_has_its_own(emulation: Emulator):
    counter, lib = emulation.lib.emulated_counter, emulation.lib
    streams = [counter(ctypes.c_void_p(s)) for s in (0, 64, 128, 0, 64, 128)]
    assert streams[:3] == streams[3:] and len(set(streams)) == 3
    lib.emulation_capturing(1)
    try:
        captured = [counter(ctypes.c_void_p(64)) for _ in range(3)]
    finally:
        lib.emulation_capturing(0)
    assert len({*captured, *streams}) == 6
    assert counter(ctypes.c_void_p(64)) == streams[1]
