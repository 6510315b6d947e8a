"""Large CPU outputs come from memory that is kept: reused when dead, never while alive."""

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
