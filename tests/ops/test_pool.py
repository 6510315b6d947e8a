"""Large CPU outputs come from memory that is kept: reused when dead, never while alive."""

import os
import subprocess
import sys

import pytest
import torch

import vae_fast
from vae_fast.backend import library, native_reason

pytestmark = pytest.mark.skipif(
    native_reason("cpu") is not None, reason="the native library is not built"
)
SHAPE = (256, 1024)  # 1 MiB of float32


@pytest.fixture(autouse=True)
def empty_pool():
    vae_fast.empty_cache()
    yield
    vae_fast.empty_cache()


def sample() -> torch.Tensor:
    with vae_fast.set_backend("native"):
        return vae_fast.reparameterize(torch.zeros(SHAPE), torch.zeros(SHAPE))


def test_a_dead_output_is_kept_and_used_again():
    z = sample()
    address = z.data_ptr()
    assert library().kept_bytes() == 0
    del z
    assert library().kept_bytes() >= 1 << 20
    again = sample()
    assert again.data_ptr() == address
    assert library().kept_bytes() == 0


def test_living_outputs_and_views_of_them_are_never_handed_out():
    z = sample()
    view, copy = z[17:19], z[17:19].clone()
    del z
    others = [sample() for _ in range(4)]
    assert torch.equal(view, copy)
    assert len({t.data_ptr() for t in others}) == len(others)


def test_empty_cache_gives_everything_back():
    del_me = [sample() for _ in range(3)]
    del_me.clear()
    assert library().kept_bytes() >= 3 << 20
    vae_fast.empty_cache()
    assert library().kept_bytes() == 0


def test_small_outputs_are_torchs_own():
    with vae_fast.set_backend("native"):
        z = vae_fast.reparameterize(torch.zeros(8, 8), torch.zeros(8, 8))
    del z
    assert library().kept_bytes() == 0


FORKS = """
import os, threading, time, torch, vae_fast
torch.set_num_threads(1)
data, index = torch.zeros(64, 1 << 14, dtype=torch.uint8), torch.arange(64)
stop = False
def work():
    while not stop:
        vae_fast.gather_batch(data, index)
threads = [threading.Thread(target=work, daemon=True) for _ in range(3)]
for t in threads:
    t.start()
for _ in range(300):
    child = os.fork()
    if child == 0:
        vae_fast.gather_batch(data, index)
        os._exit(0)
    deadline = time.monotonic() + 60
    while os.waitpid(child, os.WNOHANG)[0] == 0:
        if time.monotonic() > deadline:
            os.kill(child, 9)
            raise SystemExit("a child waits for ever")
        time.sleep(0.001)
stop = True
for t in threads:
    t.join()
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_child_forked_while_threads_take_buffers_does_not_hang():
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKS],
        check=False, capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-2000:]
