"""Binarised batches: Bernoulli(x / 255), the same wherever and however the data are served."""

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from vae_fast import noise, reference
from vae_fast.data import Batches, as_data, binarized_once, open_shards, pack
from vae_fast.data.order import epoch_order, noise_key

N = 23
IMAGES = torch.randint(256, (N, 1, 3, 5), generator=torch.Generator().manual_seed(1)).to(
    torch.uint8
)


@pytest.fixture(params=["resident", "mapped", "dataset", "shards"])
def data(request, tmp_path):
    np.save(tmp_path / "x.npy", IMAGES.numpy())
    if request.param == "shards":
        pack(IMAGES, tmp_path / "shards", shuffle=False, workers=0, shard_bytes=60)
        return open_shards(tmp_path / "shards")
    made = {"resident": IMAGES, "mapped": tmp_path / "x.npy", "dataset": TensorDataset(IMAGES)}
    return as_data(made[request.param])


def drawn(rows: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """A whole epoch in its order, in plain PyTorch."""
    return reference.gather_batch(IMAGES, rows, "binarize", key)


def test_draws_depend_on_seed_epoch_and_position_alone(data, backend):
    for size in (4, 23):
        batches = Batches(data, size, shuffle=False, seed=3, binarize=True)
        for _ in range(2):  # without shuffle, the same in every pass
            found = torch.cat([images for images, _ in batches])
            assert found.dtype == torch.bool and found.shape == IMAGES.shape
            assert torch.equal(found, drawn(torch.arange(N), noise_key(3)))
    assert not torch.equal(noise_key(3), noise_key(4))


def test_every_epoch_has_its_own_draws():
    batches = Batches(IMAGES, 5, shuffle=True, seed=3, binarize=True)
    for epoch in range(3):
        found = torch.cat([images for images, _ in batches])
        assert torch.equal(found, drawn(epoch_order(N, 3, epoch), noise_key(3, epoch)))
    keys = [noise_key(3), noise_key(3, 0), noise_key(3, 1), noise_key(0, 3), noise_key(4, 0)]
    assert len({tuple(key.tolist()) for key in keys}) == 5


def test_ranks_and_resuming_do_not_change_the_draws(data):
    def make(**options):
        return Batches(data, seed=7, shuffle=True, binarize=True, **options)

    whole = [images for images, _ in make(batch_size=6)]
    ranks = [make(batch_size=2, rank=rank, world_size=3) for rank in range(3)]
    for want, *parts in zip(whole, *ranks, strict=True):
        assert torch.equal(torch.cat([images for images, _ in parts]), want)
    resumed = make(batch_size=6)
    resumed.load_state_dict({**resumed.state_dict(), "batch": 2})
    for (images, _), want in zip(resumed, whole[2:], strict=True):
        assert torch.equal(images, want)


def test_global_generators_do_not_matter_and_are_not_touched():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = torch.cat([images for images, _ in Batches(IMAGES, 5, shuffle=True, binarize=True)])
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    again = torch.cat([images for images, _ in Batches(IMAGES, 5, shuffle=True, binarize=True)])
    assert torch.equal(first, again)


def test_drawn_once():
    data = binarized_once(as_data((IMAGES, torch.arange(N))), seed=3)
    assert data.dtype == torch.bool and data.labels.tolist() == list(range(N))
    assert "binarised once, seed 3" in data.provenance
    key = noise_key(3) + torch.tensor([0, 1])
    assert torch.equal(data.images, drawn(torch.arange(N), key))
    batches = Batches(data, 5, shuffle=True, binarize=True)  # nothing left to draw
    for _ in range(2):
        for images, labels in batches:
            assert torch.equal(images, data.images[labels])
    assert torch.equal(binarized_once(data, 9).images, data.images)


def test_data_that_cannot_be_binarised(data):
    with pytest.raises(TypeError, match="uint8 images.*torch.float32.*round"):
        Batches(IMAGES.float() / 255, 5, shuffle=True, binarize=True)
    with pytest.raises(TypeError, match="uint8 images.*torch.float32"):
        binarized_once(as_data(IMAGES.float() / 255), 0)
    if not hasattr(data, "images") or data.mapped:
        with pytest.raises(ValueError, match="static.*in memory; use dynamic"):
            binarized_once(data, 0)


def test_the_keys_are_keys():
    assert noise.check_key(noise_key(0, 5), torch.device("cpu")).shape == (2,)
