"""The C++ nodes of small calls: the same bits as the nodes in Python, and out of the way of all else."""

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from vae_fast import backend
from vae_fast.functional import likelihood as functional
from vae_fast.likelihoods import SPECS

pytestmark = pytest.mark.skipif(
    backend.node is None, reason="the C++ nodes are not built for this torch"
)
ELEMENTS = [spec for spec in SPECS.values() if not spec.planes]


@pytest.fixture
def calls(monkeypatch):
    """Whether each call was taken by a C++ node."""
    taken = []
    for name in ("small_nll", "small_elbo"):
        small = getattr(functional._native, name)

        def watched(*args, small=small):
            out = small(*args)
            taken.append(out is not None)
            return out

        monkeypatch.setattr(functional._native, name, watched)
    return taken


def inputs_of(spec, dtype=torch.float32, rows=6):
    torch.manual_seed(0)
    params, target = spec.inputs((rows, 5), dtype, torch.Generator().manual_seed(1))
    params = [p.detach().requires_grad_() for p in params]
    latent = [torch.randn(rows, 3, dtype=dtype).requires_grad_() for _ in range(2)]
    return params, target, latent


def losses(spec, params, target, latent, reduction):
    nll = functional.nll(spec, params, target, reduction=reduction)
    return nll, *functional.elbo(spec, params, target, *latent, beta=4, reduction=reduction)


@pytest.mark.parametrize("spec", ELEMENTS, ids=lambda spec: spec.name)
def test_the_bits_are_the_python_nodes(spec, calls, monkeypatch):
    """For an upstream gradient of 1, of another size, twice through one graph, and of each part."""
    found = []
    for _ in range(2):
        results = []
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            for reduction in ("sum", "batchmean"):
                params, target, latent = inputs_of(spec, dtype)
                params[-1].requires_grad_(len(params) == 1 or dtype == torch.float32)
                wanted = [t for t in (*params, *latent) if t.requires_grad]
                for k, loss in enumerate(losses(spec, params, target, latent, reduction)):
                    results.append(loss.detach())
                    for scale in (1.0, 1.0, -0.37):
                        grads = torch.autograd.grad(
                            loss * scale, wanted, retain_graph=True, allow_unused=True
                        )
                        results += [torch.tensor(k) if g is None else g for g in grads]
        found.append((results, list(calls)))
        calls.clear()
        monkeypatch.setattr(functional._native, "_NUMBERS", {})
    (by_node, taken), (by_python, not_taken) = found
    assert all(taken) and not any(not_taken) and len(taken) == 12
    assert len(by_node) == len(by_python)
    for a, b in zip(by_node, by_python, strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b)


class Subclass(torch.Tensor):
    pass


class Dispatch(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


class Functions(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


def test_what_is_unusual_is_pythons(calls):
    spec = SPECS["gaussian"]
    (loc, log_scale), target, _ = inputs_of(spec)

    def taken(params, target, reduction="sum"):
        calls.clear()
        functional.nll(spec, params, target, reduction=reduction)
        return calls == [True]

    assert taken((loc, log_scale), target)
    assert taken((torch.nn.Parameter(loc.detach()), log_scale), target)
    with torch.autocast("cpu", torch.bfloat16):
        assert taken((loc, log_scale), target)
    with torch.no_grad():
        assert taken((loc, log_scale), target)
    assert not taken((loc, log_scale), target, "none")
    assert not taken((loc, 0.5), target)
    assert not taken((loc, log_scale[:1]), target)
    assert not taken((loc, log_scale.double()), target)
    assert not taken((loc.as_subclass(Subclass), log_scale), target)
    assert not taken((loc, log_scale), target.clone().requires_grad_())
    assert not taken((loc[0], log_scale[0]), target[0])
    wide = torch.cat([loc, log_scale], 1)
    assert not taken((wide[:, :5], wide[:, 5:]), target)
    for mode in (Dispatch(), Functions(), torch.inference_mode()):
        with mode:
            assert not taken((loc, log_scale), target)
    with backend.set_backend("reference"):
        functional.nll(spec, (loc, log_scale), target)
    assert calls == [False]  # nobody has asked
    with pytest.raises(TypeError, match="target must be"):
        taken((loc, log_scale), target.to(torch.int64))


def test_transforms_and_second_derivatives():
    spec = SPECS["gaussian"]
    (loc, log_scale), target, _ = inputs_of(spec, torch.float64)

    def nll(loc):
        return functional.nll(spec, (loc, log_scale), target)

    (grad,) = torch.autograd.grad(nll(loc), loc, create_graph=True)
    (second,) = torch.autograd.grad(grad.sum(), loc)
    torch.testing.assert_close(second, torch.exp(-2 * log_scale.detach()))
    torch.testing.assert_close(torch.func.grad(nll)(loc.detach()), grad.detach())
    many = torch.autograd.grad(
        nll(loc), loc, torch.tensor([1.0, 2.0], dtype=torch.float64), is_grads_batched=True
    )[0]
    torch.testing.assert_close(many, torch.stack([grad, 2 * grad]).detach())


def test_autograds_errors_and_hooks():
    spec = SPECS["bernoulli"]
    (logits,), target, _ = inputs_of(spec)
    loss = functional.nll(spec, [logits], target)
    loss.backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward()
    changed = target.clone()
    loss = functional.nll(spec, [logits], changed)
    changed.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    grad, logits.grad = logits.grad, None
    loss = checkpoint(
        lambda x: functional.nll(spec, [x * 1.0], target), logits, use_reentrant=False
    )
    loss.backward()
    assert torch.equal(logits.grad, grad)

    def refuse(t):
        raise ValueError("no tensor is kept here")

    with (
        torch.autograd.graph.saved_tensors_hooks(refuse, refuse),
        pytest.raises(ValueError, match="no tensor is kept"),
    ):
        functional.nll(spec, [logits], target)


def test_an_error_of_pythons_part_arrives(monkeypatch):
    """What backward asks Python for may fail, and its error is the caller's."""
    (logits,), target, _ = inputs_of(SPECS["bernoulli"])
    loss = functional.nll("bernoulli", [logits], target)
    again = functional._native._grads_again

    def failing(*args):
        raise KeyError("nothing")

    backend.node.set_again(failing)
    try:
        with pytest.raises(KeyError, match="nothing"):
            torch.autograd.grad(loss, logits, create_graph=True)
    finally:
        backend.node.set_again(again)


def test_no_other_torch_and_no_other_sources_load_them(monkeypatch):
    assert backend._load_node() is backend.node
    with monkeypatch.context() as context:
        context.setattr("vae_fast.built.NODE_INTERFACE", "nll 3")
        assert backend._load_node() is None
    monkeypatch.setattr(torch, "__version__", "2.12.0")
    assert backend._load_node() is None
