import copy

import pytest
import torch
from torch import nn

from vae_fast.layers import MLP
from vae_fast.moments import FLUSHED_EVERY
from vae_fast.train import OptimizerConfig, TrainConfig
from vae_fast.train.average import WeightAverage
from vae_fast.train.flat import LIMIT, FlatAdam, FlatParameters
from vae_fast.train.update import Update

CPU = torch.device("cpu")


class Net(nn.Module):
    """Layers that use parameter buffers, and others; one in another memory layout."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        self.mlp = MLP(nn.Flatten(), nn.Linear(16, 5), nn.ReLU(), nn.Linear(5, 2))
        self.unused = nn.Parameter(torch.ones(3))

    def forward(self, x, use_all=True):
        loss = self.mlp(self.conv(x)).square().sum()
        return loss + self.unused.sum() if use_all else loss


def updates(name, **args):
    """Ours over one buffer, and the same update with torch's optimizer."""
    config = TrainConfig(lr=0.01, optimizer=OptimizerConfig(name=name, args=args))
    ours, plain = Net(), Net()
    flat = Update(list(ours.parameters()), config, CPU)
    apart = Update(list(plain.parameters()), config, CPU, alone=False)
    assert flat.flat is not None
    assert apart.flat is None
    return (ours, flat), (plain, apart)


def train(net, update, steps=4, use_all=True, seed=1):
    torch.manual_seed(seed)
    for _ in range(steps):
        with update.objective():
            loss = net(torch.rand(6, 3, 4, 4), use_all)
        assert not update(loss)
        assert all(p.grad is None for p in net.parameters())


def assert_alike(ours, plain):
    for mine, other in zip(ours.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(mine, other, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["adam", "adamw"])
@pytest.mark.parametrize(
    "args", [{}, {"weight_decay": 0.1, "betas": [0.8, 0.9]}, {"amsgrad": True}]
)
def test_flat_adam_is_torchs(name, args):
    (ours, flat), (plain, apart) = updates(name, **args)
    train(ours, flat)
    train(plain, apart)
    assert_alike(ours, plain)
    assert not torch.equal(ours.unused, Net().unused)


def test_states_load_into_each_others_optimizer():
    (ours, flat), (plain, apart) = updates("adam")
    train(ours, flat)
    train(plain, apart)
    mine, other = copy.deepcopy(flat.state_dict()), copy.deepcopy(apart.state_dict())
    for i, state in mine["optimizer"]["state"].items():
        for key, value in other["optimizer"]["state"][i].items():
            assert torch.allclose(state[key], value, rtol=1e-5, atol=1e-9)
    (ours2, flat2), (plain2, apart2) = updates("adam")
    ours2.load_state_dict(plain.state_dict())
    plain2.load_state_dict(ours.state_dict())
    flat2.load_state_dict(other)
    apart2.load_state_dict(mine)
    for net, update in ((ours, flat), (plain, apart), (ours2, flat2), (plain2, apart2)):
        train(net, update, seed=2)
    assert flat2.flat is not None
    for net in (plain, ours2, plain2):
        assert_alike(ours, net)
    assert ours2.conv.weight.is_contiguous(memory_format=torch.channels_last)


def test_a_parameter_without_gradient_is_skipped():
    (ours, flat), (plain, apart) = updates("adam", weight_decay=0.1)
    for use_all in (True, False, True):
        train(ours, flat, 2, use_all)
        train(plain, apart, 2, use_all)
    assert flat.flat is None
    assert_alike(ours, plain)
    steps = [s["step"] for s in flat.state_dict()["optimizer"]["state"].values()]
    assert steps == [4, 6, 6, 6, 6, 6, 6]  # "unused" comes first
    (resumed, new), _ = updates("adam", weight_decay=0.1)
    resumed.load_state_dict(plain.state_dict())
    new.load_state_dict(copy.deepcopy(apart.state_dict()))
    assert new.flat is None
    train(resumed, new)
    train(plain, apart)
    assert_alike(resumed, plain)


def test_never_a_gradient_is_no_state():
    (ours, flat), (plain, apart) = updates("adam")
    train(ours, flat, use_all=False)
    train(plain, apart, use_all=False)
    assert_alike(ours, plain)
    assert flat.state_dict()["optimizer"]["state"].keys() == {
        i for i, (name, _) in enumerate(ours.named_parameters()) if name != "unused"
    }


def test_which_parameters_are_flattened():
    layer = nn.Linear(3, 2)
    assert FlatParameters.fits(list(layer.parameters()))
    assert not FlatParameters.fits([])
    assert not FlatParameters.fits([layer.weight, nn.Parameter(torch.ones(2).double())])
    large = nn.Parameter(torch.empty(LIMIT + 1, device="meta"))
    assert not FlatParameters.fits([large])
    assert FlatAdam.serves(torch.optim.AdamW(layer.parameters(), fused=True))
    for other in (
        torch.optim.Adam(layer.parameters(), fused=False),
        torch.optim.SGD(layer.parameters(), lr=1.0),
        torch.optim.Adam([{"params": [layer.weight]}, {"params": [layer.bias]}], fused=True),
    ):
        assert not FlatAdam.serves(other)


def test_parameters_are_views_with_their_values_and_strides():
    net, same = Net(), Net()
    flat = FlatParameters(list(net.parameters()))
    for mine, other in zip(net.parameters(), same.parameters(), strict=True):
        assert torch.equal(mine, other)
        assert mine.stride() == other.stride()
        assert mine.data_ptr() % 64 == flat.whole.data_ptr() % 64
    with torch.no_grad():
        flat.whole.fill_(2.0)
    assert all((p == 2).all() for p in net.parameters())


def test_the_average_of_one_buffer_is_that_of_many():
    (ours, flat), (plain, _) = updates("adam")
    ours.unused.requires_grad_(False)
    flat = Update(list(ours.parameters()), TrainConfig(lr=0.01), CPU)
    averages = WeightAverage(ours, 0.9, flat.flat), WeightAverage(plain, 0.9)
    with torch.no_grad():
        for p in (*ours.parameters(), *plain.parameters()):
            p.add_(1.0)
    for average in averages:
        average.update(0.25)
    mine, other = (average.state_dict() for average in averages)
    assert mine.keys() == other.keys()
    for name, value in mine.items():
        assert torch.allclose(value, other[name])
    before = ours.conv.weight.detach().clone()
    with averages[0].applied():
        assert torch.allclose(ours.conv.weight, before - 0.75)
    assert torch.equal(ours.conv.weight, before)


@pytest.mark.parametrize("eps", [1e-8, 0.0])
def test_moments_that_became_subnormal_are_zeros_soon(eps):
    """Moments of weights that no longer get a gradient. With eps = 0 they matter, and are kept."""
    net = nn.Linear(3, 2)
    flat = FlatParameters(list(net.parameters()))
    made = FlatAdam(flat, torch.optim.Adam(net.parameters(), fused=True, eps=eps))
    moments = [made._buffers[name] for name in ("exp_avg", "exp_avg_sq")]
    for moment in moments:
        moment.fill_(1e-39)
        moment[0] = 1e-30
    for taken in range(1, FLUSHED_EVERY + 1):
        made.step()
        zeros = [int((moment == 0).sum()) for moment in moments]
        flushed = taken == FLUSHED_EVERY and eps != 0
        assert zeros == [len(moment) - 1 if flushed else 0 for moment in moments]
