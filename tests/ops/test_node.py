"""The C++ nodes of small calls: the bits of the Python nodes, which take all other calls."""

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from vae_fast import backend
from vae_fast.functional import gaussian
from vae_fast.functional import likelihood as functional
from vae_fast.likelihoods import SPECS

if backend.node is None:
    pytest.skip("the C++ nodes are not built for this torch", allow_module_level=True)
REDUCTIONS = ("sum", "batchmean", "none")
SMALL = (
    (functional._native, ("small_nll", "small_elbo")),
    (gaussian._gaussian, ("small_reparameterize", "small_kl", "small_sample_and_kl")),
)


@pytest.fixture
def calls(monkeypatch):
    """Whether each call was taken by a C++ node."""
    taken = []
    for room, names in SMALL:
        for name in names:
            small = getattr(room, name)

            def watched(*args, small=small):
                out = small(*args)
                taken.append(out is not None)
                return out

            monkeypatch.setattr(room, name, watched)
    return taken


def by_node_and_by_python(compute, calls, monkeypatch):
    """The results of ``compute()`` by C++ nodes and by those in Python, with the same bits."""
    by_node = compute()
    assert calls and all(calls)
    for room, names in SMALL:
        for name in names:
            monkeypatch.setattr(room, name, lambda *args: None)
    by_python = compute()
    assert len(by_node) == len(by_python)
    for i, (a, b) in enumerate(zip(by_node, by_python, strict=True)):
        assert (a is None) == (b is None), i
        if a is not None:
            assert a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b), i


def inputs_of(spec, dtype=torch.float32, rows=6):
    torch.manual_seed(0)
    shape = (rows, spec.planes, 2, 3) if spec.planes > 1 else (rows, 5)
    params, target = spec.inputs(shape, dtype, torch.Generator().manual_seed(1))
    params = [p.detach().requires_grad_() for p in params]
    latent = [torch.randn(rows, 3, dtype=dtype).requires_grad_() for _ in range(2)]
    return params, target, latent


def gradients(loss, wanted):
    """Gradients of a loss for upstream gradients of 1 and others, twice through one graph."""
    found = [loss.detach()]
    torch.manual_seed(2)
    weights = torch.randn(loss.shape).to(loss.dtype)
    for weight in (torch.ones_like(weights), torch.ones_like(weights), weights):
        found += torch.autograd.grad(loss, wanted, weight, retain_graph=True, allow_unused=True)
    return found


def losses(spec, params, target, latent, reduction):
    nll = functional.nll(spec, params, target, reduction=reduction)
    return nll, *functional.elbo(spec, params, target, *latent, beta=4, reduction=reduction)


@pytest.mark.parametrize("spec", SPECS.values(), ids=lambda spec: spec.name)
def test_the_bits_are_the_python_nodes(spec, calls, monkeypatch):
    def compute():
        results = []
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            for reduction in REDUCTIONS:
                params, target, latent = inputs_of(spec, dtype)
                params[-1].requires_grad_(len(params) == 1 or dtype == torch.float32)
                wanted = [t for t in (*params, *latent) if t.requires_grad]
                for loss in losses(spec, params, target, latent, reduction):
                    results += gradients(loss, wanted)
        return results

    by_node_and_by_python(compute, calls, monkeypatch)


# Shapes for a target (6, 4, 2, 3): shared by all, or one per channel, pixel, sample, and so on.
SHARED = ((), (1,), (4, 1, 1), (2, 3), (1, 1, 2, 3), (6, 1, 1, 1), (6, 4, 1, 1), (4, 2, 3))


@pytest.mark.parametrize("name", ["gaussian", "zero_inflated_negative_binomial"])
def test_parameters_that_rows_share(name, calls, monkeypatch):
    spec = SPECS[name]

    def compute():
        results = []
        for dtype in (torch.float32, torch.bfloat16):
            for k, shape in enumerate(SHARED):
                params, target = spec.inputs((6, 4, 2, 3), dtype, torch.Generator().manual_seed(1))
                corner = tuple(slice(size) for size in (1,) * (4 - len(shape)) + shape)
                # One of them, or all but the first in the same way.
                for j in range(1, len(params) if k % 2 else 2):
                    params[j] = params[j][corner].reshape(shape)
                params = [p.detach().clone().requires_grad_() for p in params]
                torch.manual_seed(3)
                latent = [torch.randn(6, 3, dtype=dtype).requires_grad_() for _ in range(2)]
                for reduction in REDUCTIONS:
                    for loss in losses(spec, params, target, latent, reduction):
                        results += gradients(loss, [*params, *latent])
        return results

    by_node_and_by_python(compute, calls, monkeypatch)


@pytest.mark.parametrize("prior", [False, True])
def test_gaussians_bits_are_the_python_nodes(prior, calls, monkeypatch):
    """Sampling, the KL and both, kept slopes and those made again, and keys that are drawn."""

    def compute():
        results = []
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            for shape in ((6, 5), (7,), (), (2, 3, 4, 5)):
                torch.manual_seed(4)
                tensors = [torch.randn(shape).to(dtype).requires_grad_() for _ in range(4)]
                pair, prior_pair = tensors[:2], tensors[2:] if prior else ()
                results += gradients(gaussian.reparameterize(*pair), pair)
                key = torch.tensor([5, 6])
                results += gradients(gaussian.reparameterize(*pair, noise_key=key), pair)
                with torch.no_grad():
                    results.append(gaussian.reparameterize(*pair))
                for reduction in REDUCTIONS:
                    wanted = [*pair, *prior_pair]
                    kl = gaussian.gaussian_kl(*wanted, reduction=reduction)
                    results += gradients(kl, wanted)
                    z, kl = gaussian.sample_and_kl(*wanted, reduction=reduction)
                    results += gradients(z, wanted) + gradients(kl, wanted)
                    grads = [torch.full_like(z, 0.5), torch.full_like(kl, -2.0)]
                    results += torch.autograd.grad((z, kl), wanted, grads)
        results.append(torch.rand(3))  # the generator has moved as far
        return results

    by_node_and_by_python(compute, calls, monkeypatch)


def test_large_samples_make_their_noise_again(calls, monkeypatch):
    monkeypatch.setattr(gaussian._gaussian, "KEPT_BYTES", 64)

    def compute():
        torch.manual_seed(4)
        pair = [torch.randn(6, 5).requires_grad_() for _ in range(2)]
        z, kl = gaussian.sample_and_kl(*pair)
        return (
            gradients(gaussian.reparameterize(*pair), pair)
            + gradients(z, pair)
            + gradients(kl, pair)
        )

    by_node_and_by_python(compute, calls, monkeypatch)


class Subclass(torch.Tensor):
    pass


class Dispatch(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


class Functions(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


def test_unusual_calls_use_the_python_node(calls):
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
    assert taken((loc, log_scale), target, "none")
    assert taken((loc, log_scale[:1]), target)
    images = torch.zeros(2, 3, 4, 5)
    assert not taken((images, torch.zeros(3, 1, 5)), images)  # no cut into rows fits
    assert not taken((loc, 0.5), target)
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
    assert calls == [False]  # the node was not tried
    with pytest.raises(TypeError, match="target must be"):
        taken((loc, log_scale), target.to(torch.int64))
    latent = torch.zeros(len(target), 2)
    with pytest.raises(ValueError, match="beta is beyond a float's range: 1000"):
        functional.elbo(spec, (loc, log_scale), target, latent, latent, beta=10**400)


def test_gaussians_derivatives_of_all_kinds():
    torch.manual_seed(0)
    mu, logvar = (torch.randn(4, 3, dtype=torch.float64).requires_grad_() for _ in range(2))
    key = torch.tensor([1, 2])

    def both(mu, logvar):
        z, kl = gaussian.sample_and_kl(mu, logvar, noise_key=key)
        more = gaussian.reparameterize(mu, logvar, noise_key=key)
        return (z**2).sum() + (more**3).sum() + kl * gaussian.gaussian_kl(mu, logvar)

    torch.autograd.gradcheck(both, (mu, logvar))
    torch.autograd.gradgradcheck(both, (mu, logvar))
    grads = torch.autograd.grad(both(mu, logvar), (mu, logvar))
    by_function = torch.func.grad(both, (0, 1))(mu.detach(), logvar.detach())
    torch.testing.assert_close(by_function, grads)
    z = gaussian.reparameterize(mu, logvar, noise_key=key)
    one = torch.autograd.grad(z, (mu, logvar), torch.ones_like(z), retain_graph=True)
    many = torch.autograd.grad(
        z,
        (mu, logvar),
        torch.stack([torch.ones_like(z), -torch.ones_like(z)]),
        is_grads_batched=True,
    )
    for a, b in zip(one, many, strict=True):
        torch.testing.assert_close(torch.stack([a, -a]), b)
    kl = gaussian.gaussian_kl(mu, logvar)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        with torch.no_grad():
            logvar.add_(1.0)
        torch.autograd.grad(kl, mu)


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


def test_an_error_in_the_python_part_reaches_the_caller(monkeypatch):
    """If the Python part of a backward pass fails, the caller gets its error."""
    (logits,), target, _ = inputs_of(SPECS["bernoulli"])
    loss = functional.nll("bernoulli", [logits], target)
    again = functional._native._grads_again

    def failing(*args):
        raise KeyError("nothing")

    backend.node.set_again(failing, failing)
    try:
        with pytest.raises(KeyError, match="nothing"):
            torch.autograd.grad(loss, logits, create_graph=True)
    finally:
        backend.node.set_again(again, functional._native.gaussian_grads_again)


def test_nodes_load_only_with_their_own_torch_and_sources(monkeypatch):
    assert backend._load_node() is backend.node
    with monkeypatch.context() as context:
        context.setattr("vae_fast.built.NODE_INTERFACE", "nll 3")
        assert backend._load_node() is None
    monkeypatch.setattr(torch, "__version__", "2.12.0")
    assert backend._load_node() is None
