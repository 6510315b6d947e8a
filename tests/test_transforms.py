"""Function transforms, batched gradients and second derivatives of every public function."""

import pytest
import torch

import vae_fast
from vae_fast import (
    bce_kl_loss,
    bernoulli_nll,
    bernoulli_nll_samples,
    gaussian_kl,
    group_norm_silu,
    iwae_bound,
    linear_bernoulli_nll,
    reparameterize,
    sample_and_kl,
)

KEY = torch.tensor([11, -22])
MU, LOGVAR = torch.linspace(-2, 2, 12).view(4, 3), torch.linspace(1, -1, 12).view(4, 3)
PROBABILITIES = torch.linspace(0.1, 0.9, 12).view(4, 3)
WEIGHT, TARGET = torch.linspace(-1, 1, 15).view(5, 3), torch.linspace(0, 1, 20).view(4, 5)
SCALARS = {
    "reparameterize": lambda m: reparameterize(m, LOGVAR, noise_key=KEY).square().sum(),
    "gaussian_kl": lambda m: gaussian_kl(m, LOGVAR),
    "gaussian_kl of a prior": lambda m: gaussian_kl(m, LOGVAR, LOGVAR, MU),
    "sample_and_kl": lambda m: sum(t.sum() for t in sample_and_kl(m, LOGVAR, noise_key=KEY)),
    "bernoulli_nll": lambda m: bernoulli_nll(m, PROBABILITIES),
    "bernoulli_nll of probabilities": lambda p: bernoulli_nll(
        torch.sigmoid(p), PROBABILITIES, from_logits=False
    ),
    "bce_kl_loss": lambda m: bce_kl_loss(m, PROBABILITIES, m, LOGVAR, beta=0.5).loss,
    "bce_kl_loss with a beta tensor": lambda m: sum(
        bce_kl_loss(m, PROBABILITIES, m, LOGVAR, beta=torch.tensor(0.5), reduction="batchmean")
    ),
    "bernoulli_nll per sample, of the target too": lambda m: (
        bernoulli_nll(m, torch.sigmoid(m), reduction="none").square().sum()
    ),
    "3 samples": lambda m: reparameterize(m, m, num_samples=3, noise_key=KEY).square().sum(),
    "linear_bernoulli_nll": lambda m: linear_bernoulli_nll(m, WEIGHT, WEIGHT[:, 0], TARGET),
    "linear_bernoulli_nll per sample": lambda m: (
        linear_bernoulli_nll(m, WEIGHT, None, TARGET, reduction="none").square().sum()
    ),
    "group_norm_silu": lambda m: (
        group_norm_silu(m.expand(2, 4, 3), 2, m[:, 0], m[:, 1], eps=1.0).square().sum()
    ),
    "bernoulli_nll_samples": lambda m: (
        bernoulli_nll_samples(torch.stack([m, 2 * m]), PROBABILITIES).square().sum()
    ),
    "iwae_bound": lambda m: bound_of(m, dreg=False),
    "iwae_bound, doubly reparameterised": lambda m: bound_of(m, dreg=True),
}


def bound_of(m, dreg):
    z = reparameterize(m, 0.5 * m, num_samples=3, noise_key=KEY)
    return iwae_bound(2 * z, PROBABILITIES, z, m, 0.5 * m, dreg=dreg)[0].sum()


TANGENT = torch.linspace(1, 3, 12).view(4, 3)
BATCH = torch.stack([MU, 2 * MU, MU.flip(0)])


def graph_of(f):
    x = MU.clone().requires_grad_()
    return f(x), x


def dual(f, grad_enabled=True):
    forward_ad = torch.autograd.forward_ad
    with torch.set_grad_enabled(grad_enabled), forward_ad.dual_level():
        return forward_ad.unpack_dual(f(forward_ad.make_dual(MU, TANGENT))).tangent


def many_gradients(f):
    y, x = graph_of(f)
    return torch.autograd.grad(y, x, torch.tensor([1.0, 3.0]), is_grads_batched=True)


def mapped_gradients(f):
    y, x = graph_of(f)
    return torch.func.vmap(lambda v: torch.autograd.grad(y, x, v)[0])(torch.tensor([1.0, 3.0]))


def mapped_second_gradients(f):
    y, x = graph_of(f)
    (grad,) = torch.autograd.grad(y, x, create_graph=True)
    again = torch.func.vmap(lambda v: torch.autograd.grad(grad, x, v, retain_graph=True)[0])
    return again(torch.stack([MU, TANGENT]))


def gradient_outside_vmap(f):
    """Within vmap a tensor reports that it requires no gradient, even if the outer tensor does."""
    batch = BATCH.clone().requires_grad_()
    return torch.autograd.grad(torch.func.vmap(f)(batch).sum(), batch)


def gradient_penalty(f):
    """The upstream gradient is a constant here, and the weight reaches the gradient twice."""
    weight, x = torch.eye(3).add(0.1).requires_grad_(), MU.clone().requires_grad_()
    (grad,) = torch.autograd.grad(f(x @ weight), x, create_graph=True)
    return torch.autograd.grad(grad.square().sum(), (weight, x))


F, A = torch.func, torch.autograd.functional
TRANSFORMS = {
    "grad": lambda f: F.grad(f)(MU),
    "jacrev": lambda f: F.jacrev(f)(MU),
    "jacfwd": lambda f: F.jacfwd(f)(MU),
    "jvp": lambda f: F.jvp(f, (MU,), (TANGENT,)),
    "vjp": lambda f: F.vjp(f, MU)[1](torch.tensor(2.0)),
    "vmap": lambda f: F.vmap(f)(BATCH),
    "vmap of grad": lambda f: F.vmap(F.grad(f))(BATCH),
    "hessian": lambda f: F.hessian(f)(MU),
    "eager hessian": lambda f: A.hessian(f, MU),
    "eager hessian, vectorised": lambda f: A.hessian(f, MU, vectorize=True),
    "eager jacobian, vectorised": lambda f: A.jacobian(f, MU, vectorize=True),
    "eager jacobian, forward": lambda f: A.jacobian(f, MU, vectorize=True, strategy="forward-mode"),
    "dual": dual,
    "dual without grad mode": lambda f: dual(f, False),
    "is_grads_batched": many_gradients,
    "mapped gradients": mapped_gradients,
    "mapped second gradients": mapped_second_gradients,
    "gradient outside vmap": gradient_outside_vmap,
    "gradient penalty": gradient_penalty,
}


@pytest.mark.filterwarnings("ignore:gradients of vae_fast's ops", "ignore:`torch.jit.script`")
@pytest.mark.parametrize("name", SCALARS)
def test_every_transform_and_second_derivative_is_plain_pytorchs(native, name):
    function = SCALARS[name]
    for transform in TRANSFORMS.values():
        found = transform(function)
        try:
            with vae_fast.set_backend("reference"):
                expected = transform(function)
        except (
            RuntimeError
        ):  # torch's own group_norm, whose second derivative takes no batches there
            if name != "group_norm_silu" or torch.__version__ >= (2, 14):
                raise
            continue
        # In forward mode torch makes some 0-d tangents float64.
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5, check_dtype=False)


def test_a_second_derivative_warns_once_and_reference_computes_the_same_in_float64(
    native, monkeypatch
):
    """Values from float64, for the test above compares with plain PyTorch in float32 alone."""
    from vae_fast.ops import autograd

    monkeypatch.setattr(autograd, "_warned", False)
    x, target = torch.randn(4, 9, requires_grad=True), torch.randint(0, 5, (4, 9)).float()

    def second():
        nll = vae_fast.poisson_nll(log_rate=x, target=target)
        (grad,) = torch.autograd.grad(nll, x, create_graph=True)
        return torch.autograd.grad(grad.square().sum(), x)[0]

    with pytest.warns(RuntimeWarning, match="plain PyTorch") as caught:
        found = [second(), second()][1]
    assert len(caught) == 1
    rate = torch.exp(x.detach().double())  # -log p = rate - target log rate, but for a constant
    exact = 2 * (rate - target.double()) * rate
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-5)
