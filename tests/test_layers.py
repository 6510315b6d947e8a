import copy

import pytest
import torch
from torch import nn

import vae_fast
from vae_fast.layers import MLP, Linear
from vae_fast.ops import matmul
from vae_fast.ops.places import Places, using


def networks(bias=True):
    """(ours, torch's, torch's in float64) with the same weights; 30 features to 7."""
    torch.manual_seed(0)
    ours = MLP(
        nn.Flatten(), Linear(30, 50, bias), nn.ReLU(), Linear(50, 40, bias), nn.ReLU(),
        nn.Tanh(), Linear(40, 7, bias),
    )  # fmt: skip
    plain = nn.Sequential(
        nn.Flatten(), nn.Linear(30, 50, bias), nn.ReLU(), nn.Linear(50, 40, bias), nn.ReLU(),
        nn.Tanh(), nn.Linear(40, 7, bias),
    )  # fmt: skip
    plain.load_state_dict(ours.state_dict())
    return ours, plain, copy.deepcopy(plain).double()


def values(network, x, dtype=None):
    """The output, and gradients of x and of the parameters, by an upstream gradient of all kinds."""
    network.zero_grad()
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        y = network(x)
    (y * torch.linspace(-1, 1, y.shape[-1], dtype=y.dtype)).sum().backward()
    return [t.double() for t in (y.detach(), x.grad, *(p.grad for p in network.parameters()))]


@pytest.mark.parametrize("library", ["mkl", "onednn"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch", [9, 1, 0])
def test_values_and_gradients_are_as_near_the_truth_as_torchs(monkeypatch, library, bias, batch):
    monkeypatch.setattr(matmul, "float32_library", lambda: library)
    monkeypatch.setattr(matmul, "LARGE", 1)
    ours, plain, truth = networks(bias)
    x = torch.rand(batch, 5, 6)
    for found, torchs, right in zip(
        values(ours, x), values(plain, x), values(truth, x.double()), strict=True
    ):
        error = (torchs - right).abs().max() if right.numel() else torch.tensor(0.0)
        assert torch.allclose(found, right, rtol=1e-5, atol=2 * error.item() + 1e-6)


def test_bfloat16_under_autocast_is_torchs():
    ours, plain, _ = networks()
    x = torch.rand(9, 5, 6)
    found, torchs = (values(n, x, torch.bfloat16) for n in (ours, plain))
    for mine, other in zip(found, torchs, strict=True):
        assert torch.allclose(mine, other, rtol=1 / 128, atol=1e-3)


def test_the_product_goes_where_the_processor_is_fast(monkeypatch):
    chosen = []
    monkeypatch.setattr(matmul, "_onednn", lambda *a: chosen.append(a) or torch.zeros(()))
    monkeypatch.delenv("VAE_FAST_MATMUL", raising=False)
    for vendor, library in (("AuthenticAMD", "onednn"), ("GenuineIntel", "mkl"), ("", "mkl")):
        monkeypatch.setattr(matmul, "processor", lambda vendor=vendor: vendor)
        assert matmul.float32_library.__wrapped__() == library
    monkeypatch.setattr(matmul, "float32_library", lambda: "onednn")
    matmul.linear(torch.ones(128, 400), torch.ones(784, 400), None)
    assert len(chosen) == 1
    matmul.linear(torch.ones(128, 40), torch.ones(20, 40), None)  # too small to gain
    matmul.linear(torch.ones(128, 400).double(), torch.ones(784, 400).double(), None)
    assert len(chosen) == 1


def test_any_leading_dimensions_and_strides():
    ours = Linear(30, 7)
    plain = nn.Linear(30, 7)
    plain.load_state_dict(ours.state_dict())
    x = torch.rand(3, 30, 4).transpose(1, 2)
    for network in (ours, plain):
        network.y = network(x)
        network.y.sum().backward()  # an expanded gradient
    assert ours.y.shape == (3, 4, 7)
    assert torch.allclose(ours.y, plain.y, atol=1e-6)
    assert torch.allclose(ours.weight.grad, plain.weight.grad, atol=1e-5)
    assert torch.allclose(ours(x[0, 0]), plain(x[0, 0]), atol=1e-6)
    with pytest.raises(ValueError, match="29 features.*takes 30"):
        ours(torch.rand(2, 29))


def test_second_derivatives_are_torchs():
    ours, plain, _ = networks()
    found = []
    for network in (ours, plain):
        network.zero_grad()
        torch.manual_seed(1)
        x = torch.rand(4, 5, 6, requires_grad=True)
        (slope,) = torch.autograd.grad(network(x).square().sum(), x, create_graph=True)
        slope.square().sum().backward()
        found.append([x.grad, *(p.grad for p in network.parameters() if p.grad is not None)])
    assert len(found[0]) == len(found[1])
    for mine, other in zip(*found, strict=True):
        assert torch.allclose(mine, other, rtol=1e-4, atol=1e-5)


def test_forward_mode_vmap_and_functional_call_work_as_torchs():
    ours, plain, _ = networks()
    x, t = torch.rand(4, 5, 6), torch.rand(4, 5, 6)
    for transform in (
        lambda n: torch.func.jvp(n, (x,), (t,))[1],
        lambda n: torch.func.vmap(n)(x[None])[0],
        lambda n: torch.func.functional_call(
            n, {k: 2 * p.detach() for k, p in n.named_parameters()}, (x,)
        ),
    ):
        assert torch.allclose(transform(ours), transform(plain), atol=1e-5)


def test_hooks_are_called():
    ours, _, _ = networks()
    seen = []
    ours[3].register_forward_hook(lambda module, args, out: seen.append(out.shape))
    ours(torch.rand(2, 5, 6))
    assert seen == [(2, 40)]


def test_compiled_is_eager():
    ours, plain, _ = networks()
    x = torch.rand(4, 5, 6)
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    found, right = values(compiled, x), values(plain, x)
    for mine, other in zip(found, right, strict=True):
        assert torch.allclose(mine, other, atol=1e-5)


def test_the_reference_backend_is_torchs_to_the_bit():
    ours, plain, _ = networks()
    x = torch.rand(4, 5, 6)
    with vae_fast.set_backend("reference"):
        found = values(ours, x)
    for mine, other in zip(found, values(plain, x), strict=True):
        assert torch.equal(mine, other)


def test_frozen_layers_have_no_gradient():
    ours, plain, _ = networks()
    for network in (ours, plain):
        for p in (network[1].weight, network[3].bias):
            p.requires_grad_(False)
        network(torch.full((2, 30), 0.5)).sum().backward()
    for mine, other in zip(ours.parameters(), plain.parameters(), strict=True):
        assert (mine.grad is None) == (other.grad is None)
        assert mine.grad is None or torch.allclose(mine.grad, other.grad, atol=1e-6)


# --- places ---------------------------------------------------------------------------------------


def test_gradients_go_to_their_places_and_only_once():
    layer = Linear(3, 2)
    places = Places({p: torch.full_like(p, 7.0) for p in layer.parameters()}, {})
    x = torch.rand(5, 3)
    places.begin()
    with using(places):
        layer(x).sum().backward()
    first = layer.weight.grad
    assert first.data_ptr() == places._gradients[layer.weight].data_ptr()
    assert torch.allclose(first, x.sum(0).expand(2, 3))
    # A weight used twice in a step has the sum of two gradients.
    layer.zero_grad()
    places.begin()
    with using(places):
        (layer(x).sum() + 2 * layer(3 * x).sum()).backward()
    assert torch.allclose(layer.weight.grad, 7 * x.sum(0).expand(2, 3))


def test_casts_are_used_and_the_gradient_is_the_parameters():
    layer = Linear(3, 2)
    half = {layer.weight: torch.ones(2, 3).bfloat16(), layer.bias: torch.zeros(2).bfloat16()}
    places = Places({}, half)
    places.begin()
    x = torch.tensor([[1.0, 2.0, 4.0]])
    with using(places), torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.tolist() == [[7.0, 7.0]]
    y.sum().backward()
    assert layer.weight.grad.dtype == torch.float32
    assert layer.weight.grad.tolist() == [[1.0, 2.0, 4.0]] * 2


def test_a_layer_that_comes_twice_has_its_gradient_once_for_each():
    lin = Linear(4, 4)
    model, x = MLP(lin, torch.nn.ReLU(), lin), torch.randn(5, 4)
    (plain,) = torch.autograd.grad(model(x).square().sum(), lin.weight)
    (graph,) = torch.autograd.grad(model(x).square().sum(), lin.weight, create_graph=True)
    torch.testing.assert_close(graph, plain)
