"""Blocks that recompute in backward: the same numbers, with less kept."""

import pytest
import torch

from vae_fast.models import build

OPTIONS = {"channels": 8, "multipliers": [1, 2], "groups": 2, "dropout": 0.3, "head_channels": 4}
LEVELS = ("none", "norms", "blocks")


def made(level, **options):
    torch.manual_seed(0)
    model = build("autoencoder-kl", (1, 8, 8), **{**OPTIONS, **options}, checkpointing=level)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.train()


def batch():
    return torch.randint(0, 256, (4, 1, 8, 8), generator=torch.Generator().manual_seed(1)).byte()


def trained_on(model, autocast=False):
    """The loss, its gradients and the next random number, from one seed."""
    torch.manual_seed(7)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = model.loss(batch())
    after = torch.rand(1)
    out.loss.backward()
    return out.loss.detach(), after, *(p.grad for p in model.parameters())


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("level", LEVELS[1:])
def test_recomputing_changes_no_bit(backend, level, autocast):
    """Dropout and the latent noise are drawn anew from the generator, and must be the same."""
    expected = trained_on(made("none"), autocast)
    found = trained_on(made(level), autocast)
    for one, other in zip(expected, found, strict=True):
        assert torch.equal(one, other)


def test_dropout_is_drawn_and_the_noise_as_well():
    torch.manual_seed(3)
    model = made("blocks")
    a, b = model.loss(batch()).loss, model.loss(batch()).loss
    assert a != b
    assert model.eval().encode(batch()).mu.equal(model.encode(batch()).mu)


def kept_bytes(level):
    """Bytes that the graph of a loss keeps for backward, each storage once; no parameters."""
    model, storages = made(level), {}
    parameters = {p.data_ptr() for p in model.parameters()}

    def pack(tensor):
        if tensor.data_ptr() not in parameters:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model.loss(batch()).loss
    assert loss.requires_grad
    return sum(storages.values())


def test_each_level_keeps_less():
    none, norms, blocks = (kept_bytes(level) for level in LEVELS)
    assert norms < 0.6 * none
    assert blocks < 0.65 * norms


def convolutions_in_backward(level):
    model = made(level, dropout=0.0)
    loss = model.loss(batch()).loss
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        loss.backward()
    calls = {event.key: event.count for event in profile.key_averages()}
    norms = ("aten::native_group_norm", "vae_fast::group_norm")
    return calls.get("aten::_convolution", 0), sum(calls.get(name, 0) for name in norms)


def test_norms_are_recomputed_without_their_convolutions():
    assert convolutions_in_backward("norms")[0] == 0
    convolutions, norms = convolutions_in_backward("blocks")
    assert convolutions > 10 and norms > 20


@pytest.mark.parametrize("level", LEVELS)
def test_nothing_is_recomputed_without_gradients(level, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("checkpoint was called")

    model = made(level)
    monkeypatch.setattr("vae_fast.networks.blocks.checkpoint", refuse)
    with torch.no_grad():
        assert model.loss(batch()).loss.isfinite()
