import contextlib
import copy

import pytest
import torch
import torch.nn.functional as F
import torch.nn.utils.parametrize
import torch.nn.utils.prune
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import vae_fast
from vae_fast.backend import native_reason
from vae_fast.layers import MLP
from vae_fast.ops import matmul
from vae_fast.ops.parameter_buffers import ParameterBuffers, using


def networks(bias=True):
    """(ours, torch's, torch's in float64) with the same weights; 30 features to 7."""
    torch.manual_seed(0)
    ours = MLP(
        nn.Flatten(), nn.Linear(30, 50, bias), nn.ReLU(), nn.Linear(50, 40, bias), nn.ReLU(),
        nn.Tanh(), nn.Linear(40, 7, bias),
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


def test_the_library_of_products_is_measured_once(monkeypatch, tmp_path):
    cache = tmp_path / "a" / "b"
    monkeypatch.delenv("VAE_FAST_MATMUL", raising=False)
    monkeypatch.setenv("VAE_FAST_CACHE", str(cache))
    measured = []
    monkeypatch.setattr(matmul, "_faster", lambda: measured.append(1) or "onednn")
    try:
        for _ in range(2):  # measured once, and then known, in a folder that was not there
            matmul.use(None)
            assert matmul.choice() == ("onednn", "measured on this machine")
        assert len(measured) == 1
        monkeypatch.setattr(matmul, "processor", lambda: "another")
        matmul.choice()
        assert len(measured) == 2
        for content in ("not JSON", "[]", '{"another; torch ' + torch.__version__ + '": "x"}'):
            (cache / "matmul.json").write_text(content)
            matmul.choice()
        assert len(measured) == 5
        monkeypatch.setenv("VAE_FAST_CACHE", str(cache / "matmul.json"))  # no folder at all
        assert matmul.resolve("auto") == "onednn"
        assert len(measured) == 6
        monkeypatch.setenv("VAE_FAST_MATMUL", "mkl")
        assert matmul.resolve("auto") == "mkl"
        assert matmul.resolve("onednn") == "onednn"  # a run's own goes before
        monkeypatch.setenv("VAE_FAST_MATMUL", "atlas")
        with pytest.raises(ValueError, match="VAE_FAST_MATMUL must be mkl or onednn, got 'atlas'"):
            matmul.resolve("auto")
    finally:
        matmul.use(None)


def test_the_measurement_prefers_the_faster_library(monkeypatch):
    slow = matmul._onednn
    monkeypatch.setattr(matmul, "_onednn", lambda *a: [slow(*a) for _ in range(4)])
    assert matmul._faster() == "mkl"
    monkeypatch.setattr(matmul, "_onednn", lambda *a: None)
    assert matmul._faster() == "onednn"


def test_large_float32_products_go_to_the_chosen_library(monkeypatch):
    chosen = []
    monkeypatch.setattr(matmul, "_onednn", lambda *a: chosen.append(a) or torch.zeros(()))
    monkeypatch.setattr(matmul, "float32_library", lambda: "onednn")
    matmul.linear(torch.ones(128, 400), torch.ones(784, 400), None)
    assert len(chosen) == 1
    matmul.linear(torch.ones(128, 40), torch.ones(20, 40), None)  # too small to gain
    matmul.linear(torch.ones(128, 400).double(), torch.ones(784, 400).double(), None)
    assert len(chosen) == 1


def test_any_leading_dimensions_and_strides():
    ours, plain = MLP(nn.Linear(30, 7)), nn.Sequential(nn.Linear(30, 7))
    plain.load_state_dict(ours.state_dict())
    x = torch.rand(3, 30, 4).transpose(1, 2)
    for network in (ours, plain):
        network.y = network(x)
        network.y.sum().backward()  # an expanded gradient
    assert ours.y.shape == (3, 4, 7)
    assert torch.allclose(ours.y, plain.y, atol=1e-6)
    assert torch.allclose(ours[0].weight.grad, plain[0].weight.grad, atol=1e-5)
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


# --- tools that look at the layers, or replace them -----------------------------------------------


class Seen(TorchFunctionMode):
    """Doubles what every linear layer gives."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        return 2 * out if func is F.linear else out


class SeenByDispatch(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        return 2 * out if func is torch.ops.aten.addmm.default else out


def doubled(function):
    return lambda *args, **kwargs: 2 * function(*args, **kwargs)


def replace_forward(layer, patch):
    layer.forward = doubled(layer.forward)


def replace_class_forward(layer, patch):
    patch.setattr(nn.Linear, "forward", doubled(nn.Linear.forward))


def replace_call(layer, patch):
    call = nn.Module.__call__
    double = lambda self, *a: 2 * call(self, *a) if type(self) is nn.Linear else call(self, *a)
    patch.setattr(nn.Module, "__call__", double)


def replace_function(layer, patch):
    patch.setattr(F, "linear", doubled(F.linear))


def forward_hook(layer, patch):
    layer.register_forward_hook(lambda module, args, out: 2 * out)


def forward_pre_hook(layer, patch):
    layer.register_forward_pre_hook(lambda module, args: (args[0] + 1,))


def global_hook(layer, patch):
    hook = lambda module, args, out: 2 * out if type(module) is nn.Linear else None
    handle = nn.modules.module.register_module_forward_hook(hook)
    patch.callback(handle.remove)


def function_mode(layer, patch):
    patch.enter_context(Seen())


def dispatch_mode(layer, patch):
    patch.enter_context(SeenByDispatch())


def weight_as_an_attribute(layer, patch):
    weight = layer.weight.detach()
    del layer.weight
    layer.weight = 2 * weight


def weight_in_front_of_the_parameter(layer, patch):
    layer.__dict__["weight"] = 2 * layer.weight.detach()


def parametrized(layer, patch):
    class Double(nn.Module):
        def forward(self, weight):
            return 2 * weight

    nn.utils.parametrize.register_parametrization(layer, "weight", Double())


def pruned(layer, patch):
    nn.utils.prune.random_unstructured(layer, "weight", 0.5)


def compiled_alone(layer, patch):
    layer.compile(backend=lambda graph, inputs: lambda *a: [2 * t for t in graph(*a)])


REPLACEMENTS = [
    replace_forward, replace_class_forward, replace_call, replace_function, forward_hook,
    forward_pre_hook, global_hook, function_mode, dispatch_mode, weight_as_an_attribute,
    weight_in_front_of_the_parameter, parametrized, pruned, compiled_alone,
]  # fmt: skip


class Patch(contextlib.ExitStack):
    def setattr(self, owner, name, value):
        self.callback(setattr, owner, name, getattr(owner, name))
        setattr(owner, name, value)


@pytest.mark.parametrize("replace", REPLACEMENTS, ids=lambda r: r.__name__)
def test_replacements_of_a_layer_take_effect(replace):
    """LoRA, offloading, pruning and profilers do one of these. Each must change the result as it
    changes the result of torch's layers."""
    if replace is compiled_alone and native_reason("cpu") is not None:
        pytest.skip("without kernels the layers are torch's own, compiled or not")
    ours, plain, _ = networks()
    x = torch.rand(4, 5, 6)
    if replace is compiled_alone:
        layer = nn.Linear(6, 6)
        was = layer(x)
        compiled_alone(layer, None)
        if torch.equal(layer(x), was):
            pytest.skip("this torch leaves a layer that is compiled alone as it was")
    before, found = ours(x), []
    for network in (ours, plain):
        torch.manual_seed(3)
        with Patch() as patch:
            replace(network[3], patch)
            found.append(network(x))
    assert not torch.allclose(found[0], before)
    assert torch.allclose(found[0], found[1], atol=1e-5)
    if replace not in (weight_as_an_attribute, pruned, parametrized):  # another random network
        assert torch.allclose(networks()[0](x), before)  # and is forgotten when it is gone


def test_an_adapter_has_gradients():
    """LoRA on an instance: the layer's forward is wrapped, and the added weights learn."""
    ours, _, _ = networks()
    down, up = torch.randn(2, 50, requires_grad=True), torch.zeros(40, 2, requires_grad=True)
    layer, org = ours[3], ours[3].forward
    layer.forward = lambda h: org(h) + h @ down.t() @ up.t()
    ours(torch.rand(4, 5, 6)).square().sum().backward()
    assert up.grad.abs().sum() > 0


def test_tools_that_go_by_type_or_trace():
    """Dynamic quantisation, scripting and symbolic tracing find torch's layers, by their names."""
    ours, plain, _ = networks()
    x = torch.rand(4, 5, 6)
    assert [type(layer) for layer in ours] == [type(layer) for layer in plain]
    for tool in (
        torch.jit.script,
        torch.fx.symbolic_trace,
        lambda n: torch.jit.trace(n, x),
        lambda n: torch.ao.quantization.quantize_dynamic(n, {nn.Linear}),
    ):
        found, expected = tool(ours), tool(plain)
        torch.testing.assert_close(found(x), expected(x), rtol=1e-5, atol=1e-5)
        assert found.state_dict().keys() == expected.state_dict().keys()
        assert type(ours) is MLP and type(ours[1]) is nn.Linear
    assert "quantized" in type(found[1]).__module__


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("library", ["mkl", "onednn"])
def test_operations_are_counted(monkeypatch, library):
    """Forward and backward have plain PyTorch's totals; the last layer with its loss too."""
    monkeypatch.setattr(matmul, "float32_library", lambda: library)
    monkeypatch.setattr(matmul, "LARGE", 1)
    ours, plain, _ = networks()
    x, target = torch.rand(16, 5, 6), torch.rand(16, 7)
    weight, bias = plain[6].weight.detach().requires_grad_(), plain[6].bias

    def last_layer(h):
        return vae_fast.linear_bernoulli_nll(h, weight, bias, target)

    def plain_last_layer(h):
        return vae_fast.bernoulli_nll(F.linear(h, weight, bias), target)

    def counts(work, *inputs):
        with FlopCounterMode(display=False) as forward:
            out = work(*inputs).sum()
        with FlopCounterMode(display=False) as backward:
            out.backward()
        return forward.get_total_flops(), backward.get_total_flops()

    hidden = torch.rand(16, 40, requires_grad=True)
    first = counts(ours, x)
    products = 16 * (30 * 50 + 50 * 40 + 40 * 7)
    assert first == counts(plain, x) == (2 * products, 4 * products - 2 * 16 * 30 * 50)
    assert counts(last_layer, hidden) == counts(plain_last_layer, hidden) == (8960, 17920)
    out = ours(x).sum()  # a fast forward; only backward is counted
    with FlopCounterMode(display=False) as backward:
        out.backward()
    assert backward.get_total_flops() == first[1]


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


# --- buffers of parameters ------------------------------------------------------------------------


def test_gradients_go_to_their_buffers_and_only_once():
    network = MLP(nn.Linear(3, 2))
    layer = network[0]
    buffers = ParameterBuffers({p: torch.full_like(p, 7.0) for p in layer.parameters()}, {})
    x = torch.rand(5, 3)
    buffers.begin()
    with using(buffers):
        network(x).sum().backward()
    first = layer.weight.grad
    assert first.data_ptr() == buffers._gradients[layer.weight].data_ptr()
    assert torch.allclose(first, x.sum(0).expand(2, 3))
    # A weight used twice in a step has the sum of two gradients.
    layer.zero_grad()
    buffers.begin()
    with using(buffers):
        (network(x).sum() + 2 * network(3 * x).sum()).backward()
    assert torch.allclose(layer.weight.grad, 7 * x.sum(0).expand(2, 3))


def test_casts_are_used_and_the_gradient_is_the_parameters():
    network = MLP(nn.Linear(3, 2))
    layer = network[0]
    half = {layer.weight: torch.ones(2, 3).bfloat16(), layer.bias: torch.zeros(2).bfloat16()}
    buffers = ParameterBuffers({}, half)
    buffers.begin()
    x = torch.tensor([[1.0, 2.0, 4.0]])
    with using(buffers), torch.autocast("cpu", torch.bfloat16):
        y = network(x)
    assert y.tolist() == [[7.0, 7.0]]
    y.sum().backward()
    assert layer.weight.grad.dtype == torch.float32
    assert layer.weight.grad.tolist() == [[1.0, 2.0, 4.0]] * 2


def test_a_layer_that_comes_twice_has_its_gradient_once_for_each():
    lin = nn.Linear(4, 4)
    model, x = MLP(lin, torch.nn.ReLU(), lin), torch.randn(5, 4)
    (plain,) = torch.autograd.grad(model(x).square().sum(), lin.weight)
    (graph,) = torch.autograd.grad(model(x).square().sum(), lin.weight, create_graph=True)
    torch.testing.assert_close(graph, plain)
