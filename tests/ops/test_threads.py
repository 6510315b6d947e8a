"""The pool of threads beneath the CPU kernels: what it must do, also on a busy machine."""

import os
import threading
import time

import pytest
import torch

from vae_fast.backend import has_native, library

if not has_native("cpu"):
    pytest.skip("the CPU library is not built", allow_module_level=True)
native = library("cpu")


@pytest.fixture(autouse=True)
def four_threads():
    """As on a machine of four processors, however many there are."""
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    native.pretend_cpus(4)
    yield
    native.pretend_cpus(0)
    torch.set_num_threads(before)


def pieces_of(count, grain, threads):
    seen = []
    native.run_pieces(count, grain, threads, lambda begin, end: seen.append((begin, end)))
    return sorted(seen)


def test_pieces_are_cut_by_the_size_alone_and_each_is_done_once():
    for count, grain in ((10, 3), (1, 5), (4096, 1), (1_000_000, 7), (0, 1)):
        alone = pieces_of(count, grain, 1)
        assert [begin for begin, _ in alone] == [0, *(end for _, end in alone[:-1])][: len(alone)]
        assert not alone or alone[-1][1] == count
        for threads in (2, 3, 4):
            assert pieces_of(count, grain, threads) == alone


def test_no_more_threads_than_asked_for_and_the_caller_is_one_of_them():
    for threads in (2, 4):
        seen, together = set(), threading.Barrier(threads)

        def body(begin, end, seen=seen, together=together):
            if threading.get_ident() not in seen:
                seen.add(threading.get_ident())
                together.wait(timeout=30)  # until all have begun a piece

        native.run_pieces(16, 1, threads, body)
        assert len(seen) == threads
        assert threading.get_ident() in seen


def test_rounds_follow_one_another_and_the_thread_that_ends_one_opens_the_next():
    pieces = [5, 0, 1, 40, 3, 0]
    for threads in (1, 4):
        for held_up in (False, True):
            seen, caller, opened = [], threading.get_ident(), set()

            def piece(number, i, held_up=held_up, seen=seen, caller=caller):
                if held_up and threading.get_ident() == caller and number == 3:
                    time.sleep(0.001)
                seen.append((number, i))

            def after(number, seen=seen, opened=opened):
                opened.add(threading.get_ident())
                seen.append((number, None))

            native.run_rounds(pieces, threads, piece, after)
            found = iter(seen)
            for number, count in enumerate(pieces):
                each = {next(found) for _ in range(count)}
                assert each == {(number, i) for i in range(count)}
                assert next(found) == (number, None)
            assert next(found, None) is None
            assert threads > 1 or opened == {caller}


def test_helpers_finish_the_round_while_the_caller_is_in_its_piece():
    """They finish the round of that piece, and begin no later round before it ends."""
    caller, go_on, done = threading.get_ident(), threading.Event(), []

    def piece(number, i):
        if threading.get_ident() == caller and number == 0:
            go_on.wait(timeout=30)
        elif number == 0:
            go_on.set()
        done.append((number, threading.get_ident()))

    native.run_rounds([4, 8, 8, 8], 4, piece, lambda number: None)  # 4 pieces: helpers are woken
    assert go_on.is_set()
    assert [number for number, _ in done] == sorted(number for number, _ in done)
    assert len(done) == 28


def test_an_exception_in_a_round_ends_the_rounds():
    for bad in ("piece", "after"):
        seen = []

        def fail(number, seen=seen):
            seen.append(number)
            if number == 1:
                raise KeyError("it")

        piece, after = (lambda number, i: fail(number)), (lambda number: None)
        if bad == "after":
            piece, after = (lambda number, i: None), fail
        with pytest.raises(KeyError, match="it"):
            native.run_rounds([3, 3, 3], 4, piece, after)
        assert set(seen) == {0, 1}
        assert len(pieces_of(100, 1, 4)) == 100  # the pool is as it was


def test_a_helper_that_is_held_up_holds_up_its_piece_alone():
    caller, done, held = threading.get_ident(), [], threading.Event()

    def body(begin, end):
        if threading.get_ident() == caller:
            held.wait(timeout=30)  # until the helper has begun one
            done.append(begin)
            if len(done) == 99:
                released.set()
        else:
            held.set()
            released.wait(timeout=30)

    released = threading.Event()
    native.run_pieces(100, 1, 2, body)
    assert len(done) == 99


def test_calls_within_a_piece_and_from_several_threads_at_once():
    total = [0] * 16

    def outer(index):
        for _ in range(20):
            native.run_pieces(8, 1, 4, lambda b, e: native.run_pieces(4, 1, 4, inner(index)))

    def inner(index):
        def add(begin, end):
            total[index] += 1

        return add

    callers = [threading.Thread(target=outer, args=(i,)) for i in range(16)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(timeout=60)
        assert not caller.is_alive()
    assert total == [20 * 8 * 4] * 16


def test_an_exception_reaches_the_caller_and_the_pool_goes_on():
    def body(begin, end):
        if begin == 40:
            raise KeyError("piece 40")

    for threads in (1, 4, 4):
        with pytest.raises(KeyError, match="piece 40"):
            native.run_pieces(100, 1, threads, body)
    assert len(pieces_of(100, 1, 4)) == 100


def test_a_forked_child_has_a_pool_of_its_own():
    x = torch.rand(1 << 20)
    expected = torch.ops.vae_fast.euclidean_norm(x).item()
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        found = torch.ops.vae_fast.euclidean_norm(x).item()
        seen = set()
        native.run_pieces(
            64, 1, 2, lambda b, e: (seen.add(threading.get_ident()), time.sleep(0.01))
        )
        os.write(write, f"{found} {len(seen)}".encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as answer:
        found, threads = answer.read().split()
    assert os.waitpid(child, 0)[1] == 0
    assert float(found) == expected
    assert int(threads) == 2


def test_the_bits_are_the_same_for_any_number_of_threads():
    x = torch.rand(300_001)
    found = []
    for threads in (1, 2, 3, 4):
        torch.set_num_threads(threads)
        found.append([torch.ops.vae_fast.euclidean_norm(x).item() for _ in range(10)])
    assert all(norm == found[0][0] for norms in found for norm in norms)


def test_helpers_round_as_the_caller_does():
    small = torch.full((1 << 18,), 1e-20)  # whose squares are subnormal
    try:
        for flush in (True, False, True):
            if not torch.set_flush_denormal(flush):
                pytest.skip("this processor flushes no subnormal numbers")
            norms = {torch.ops.vae_fast.euclidean_norm(small).item() for _ in range(50)}
            assert len(norms) == 1
    finally:
        torch.set_flush_denormal(False)


def test_idle_helpers_sleep():
    pieces_of(1000, 1, 4)
    time.sleep(0.05)
    before = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - before < 0.1


def test_affinity_is_respected():
    native.pretend_cpus(0)
    every = os.sched_getaffinity(0)
    assert 1 <= native.usable_cpus() <= len(every)
    try:
        os.sched_setaffinity(0, {min(every)})
        assert native.usable_cpus() == 1
        seen = set()
        native.run_pieces(50, 1, 4, lambda b, e: seen.add(threading.get_ident()))
        assert seen == {threading.get_ident()}
    finally:
        os.sched_setaffinity(0, every)


def write(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def test_quotas_of_control_groups(tmp_path):
    one, two = tmp_path / "v1", tmp_path / "v2"
    # v2: the group's own, or one above it, or the mount's where the group is the host's.
    write(two, cpu__max="max 100000\n")
    write(two / "a/b", cpu__max="50000 100000\n")
    write(two / "a/c", cpu__max="max 100000\n")
    write(two / "d", cpu__max="250000 100000\n")
    write(two / "d/e", cpu__max="800000 100000\n")
    for group, cpus in (("/a/b", 1), ("/a/c", 0), ("/d/e", 3), ("/", 0), ("/elsewhere", 0)):
        assert native.quota_cpus(str(two), f"0::{group}\n") == cpus
    write(two, cpu__max="150000 100000\n")
    assert native.quota_cpus(str(two), "0::/elsewhere\n") == 2
    # v1: -1 is none.
    write(one / "cpu,cpuacct", cpu__cfs_quota_us="-1\n", cpu__cfs_period_us="100000\n")
    write(one / "cpu,cpuacct/g", cpu__cfs_quota_us="400000\n", cpu__cfs_period_us="100000\n")
    lines = "5:memory:/x\n4:cpu,cpuacct:{}\n1:name=systemd:/\n"
    assert native.quota_cpus(str(one), lines.format("/g")) == 4
    assert native.quota_cpus(str(one), lines.format("/")) == 0
    assert native.quota_cpus(str(tmp_path / "absent"), lines.format("/g") + "broken\n") == 0
