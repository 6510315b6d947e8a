"""The public functions' contract: their errors, autocast, and modules of torch that call them."""

import pytest
import torch

import vae_fast
from vae_fast import (
    bce_kl_loss,
    bernoulli_nll,
    gather_batch,
    gaussian_kl,
    linear_bernoulli_nll,
    noise,
    reparameterize,
    sample_and_kl,
)

A, B = torch.zeros(4, 3), torch.zeros(4, 3)
IMAGES, TARGET = torch.zeros(4, 7), torch.zeros(4, 7)
META = torch.zeros(4, 3, device="meta")

GAUSSIAN = [reparameterize, gaussian_kl, sample_and_kl]
gaussian_ops = pytest.mark.parametrize("op", GAUSSIAN, ids=lambda op: op.__name__)
reducing_ops = pytest.mark.parametrize(
    "op",
    [
        lambda **k: gaussian_kl(A, B, **k),
        lambda **k: sample_and_kl(A, B, **k),
        lambda **k: bernoulli_nll(IMAGES, TARGET, **k),
        lambda **k: bce_kl_loss(IMAGES, TARGET, A, B, **k),
    ],
    ids=["gaussian_kl", "sample_and_kl", "bernoulli_nll", "bce_kl_loss"],
)


# --- errors --------------------------------------------------------------------------------------


@gaussian_ops
def test_shapes_that_differ(backend, op):
    with pytest.raises(ValueError, match=r"mu has shape \(4, 3\), logvar has shape \(4, 5\)"):
        op(A, torch.zeros(4, 5))
    with pytest.raises(ValueError, match=r"\(3,\).*\(4, 3\)"):  # logvar broadcasts, mu does not
        op(torch.zeros(3), A)


@gaussian_ops
def test_logvar_missing(backend, op):
    with pytest.raises(TypeError, match="logvar is missing: a Gaussian needs mu and logvar"):
        op(A, None)
    with pytest.raises(TypeError, match="mu must be a tensor, got NoneType"):
        op(None, A)
    with pytest.raises(TypeError, match="logvar must be a tensor, got float"):
        op(A, 0.0)


@gaussian_ops
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.uint8, torch.complex64], ids=str)
def test_dtypes_without_a_meaning(backend, op, dtype):
    with pytest.raises(TypeError, match=f"mu must be float32.*got {dtype}.*mu.float()"):
        op(A.to(dtype), B)
    with pytest.raises(TypeError, match=f"logvar must be float32.*got {dtype}"):
        op(A, B.to(dtype))


@gaussian_ops
def test_mixed_devices(backend, op):
    with pytest.raises(ValueError, match="mu is on cpu, logvar on meta|logvar is on|mu is on"):
        op(A, META)
    with pytest.raises(ValueError, match="meta.*cpu"):
        op(META, A)


@pytest.mark.parametrize("op", [gaussian_kl, sample_and_kl], ids=lambda op: op.__name__)
def test_priors_that_do_not_fit(backend, op):
    with pytest.raises(TypeError, match="prior_logvar is missing: give prior_mu and prior_logvar"):
        op(A, B, A)
    with pytest.raises(TypeError, match="prior_mu is missing"):
        op(A, B, prior_logvar=A)
    with pytest.raises(ValueError, match=r"prior_mu has shape \(4, 3\), prior_logvar.*\(5,\)"):
        op(A, B, A, torch.zeros(5))
    with pytest.raises(ValueError, match=r"prior_mu has shape \(5, 3\), .*mu's shape \(4, 3\)"):
        op(A, B, torch.zeros(5, 3), torch.zeros(5, 3))
    with pytest.raises(ValueError, match=r"\(2, 4, 3\)"):  # the posterior is not broadcast
        op(A, B, torch.zeros(2, 4, 3), torch.zeros(2, 4, 3))
    with pytest.raises(ValueError, match="prior_mu is on meta, mu on cpu"):
        op(A, B, META, META)
    with pytest.raises(TypeError, match="prior_mu must be float32.*got torch.int64"):
        op(A, B, A.long(), B)


@reducing_ops
def test_reduction_misspelt(backend, op):
    with pytest.raises(ValueError, match="one of 'none', 'sum', 'batchmean'.*got 'summ'"):
        op(reduction="summ")
    with pytest.raises(ValueError, match="got 'mean'.*silently change beta; use 'batchmean'"):
        op(reduction="mean")
    with pytest.raises(ValueError, match="got None"):
        op(reduction=None)


@pytest.mark.parametrize("bad", [0, -1, 2.0, "3"])
def test_num_samples_that_is_no_number_of_samples(backend, bad):
    with pytest.raises(ValueError, match=f"num_samples must be a positive integer.*got {bad!r}"):
        reparameterize(A, B, num_samples=bad)


def test_bernoulli_inputs_that_do_not_fit(backend):
    for op in (bernoulli_nll, lambda *a: bce_kl_loss(*a, A, B)):
        with pytest.raises(TypeError, match="logits must be float32.*got torch.int64"):
            op(IMAGES.long(), TARGET)
        with pytest.raises(TypeError, match="target must be floating.*got torch.int64.*uint8"):
            op(IMAGES, TARGET.long())
        with pytest.raises(TypeError, match="target must be a tensor, got list"):
            op(IMAGES, [0.0])
        with pytest.raises(TypeError, match="logits must be a tensor, got NoneType"):
            op(None, TARGET)
        with pytest.raises(ValueError, match=r"logits has shape \(4, 7\), target.*\(7,\)"):
            op(IMAGES, torch.zeros(7))
        with pytest.raises(ValueError, match="logits is on cpu, target on meta"):
            op(IMAGES, TARGET.to("meta"))


def test_bce_kl_inputs_that_do_not_fit(backend):
    with pytest.raises(
        ValueError, match=r"logits has 4 samples \(shape \(4, 7\)\), mu has 5 .*5, 3"
    ):
        bce_kl_loss(IMAGES, TARGET, torch.zeros(5, 3), torch.zeros(5, 3))
    with pytest.raises(ValueError, match="mu has 1"):  # a 1-D tensor is one sample
        bce_kl_loss(IMAGES, TARGET, torch.zeros(4), torch.zeros(4))
    with pytest.raises(ValueError, match="mu is on meta, logits on cpu"):
        bce_kl_loss(IMAGES, TARGET, META, META)
    with pytest.raises(TypeError, match="logvar is missing"):
        bce_kl_loss(IMAGES, TARGET, A, None)
    with pytest.raises(ValueError, match=r"beta must be one number, got a tensor of \(2,\)"):
        bce_kl_loss(IMAGES, TARGET, A, B, beta=torch.ones(2))


def test_errors_come_before_work(backend):
    """A refused call draws no key and leaves torch's generator where it was."""
    state = torch.get_rng_state()
    for bad in (
        lambda: sample_and_kl(A, B, reduction="mean"),
        lambda: reparameterize(A, torch.zeros(2)),
        lambda: reparameterize(A, B, num_samples=0),
    ):
        with pytest.raises(ValueError):
            bad()
    assert torch.equal(torch.get_rng_state(), state)


# --- autocast ------------------------------------------------------------------------------------


@pytest.mark.parametrize("from_logits", [True, False])
def test_autocast(backend, from_logits):
    """Inside autocast the loss takes what the layers give, sums in float32, and trains them."""
    layer, heads = torch.nn.Linear(20, 30), torch.nn.Linear(20, 8)
    x, target = torch.randn(16, 20), torch.rand(16, 30)
    key = noise.new_key()

    def step():
        mu, logvar = heads(x).chunk(2, 1)
        z, kl = sample_and_kl(mu, logvar, noise_key=key)
        logits = layer(x)
        inputs = logits if from_logits else torch.sigmoid(logits)
        out = bce_kl_loss(inputs, target, mu, logvar, from_logits=from_logits)
        return logits, mu, z, kl, out

    with torch.autocast("cpu", torch.bfloat16):
        logits, mu, z, kl, out = step()
    assert logits.dtype == mu.dtype == z.dtype == torch.bfloat16
    assert kl.dtype == out.loss.dtype == out.recon.dtype == torch.float32
    out.loss.backward()
    got = [p.grad.clone() for p in (*layer.parameters(), *heads.parameters())]
    assert all(g.dtype == torch.float32 for g in got)
    # The op itself is not touched by autocast: the same inputs give the same bits outside of it.
    with torch.autocast("cpu", torch.bfloat16):
        inside = bernoulli_nll(logits.detach(), target)
    assert torch.equal(inside, bernoulli_nll(logits.detach(), target))
    # And all of it stays near float32's.
    *_, full = step()
    torch.testing.assert_close(out.loss, full.loss, rtol=1e-2, atol=0)
    for p in (*layer.parameters(), *heads.parameters()):
        p.grad = None
    full.loss.backward()
    for g, p in zip(got, (*layer.parameters(), *heads.parameters()), strict=True):
        torch.testing.assert_close(g, p.grad, rtol=5e-2, atol=0.05 * p.grad.abs().max().item())


# --- grad modes ----------------------------------------------------------------------------------


def test_no_grad_and_inference_mode(backend):
    mu = torch.randn(4, 3, requires_grad=True)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            z, kl = sample_and_kl(mu, mu)
            out = bce_kl_loss(mu, torch.rand(4, 3), mu, mu)
        assert not any(t.requires_grad for t in (z, kl, *out))


def test_partial_gradients(backend):
    """Only what requires a gradient gets one."""
    mu, logvar = torch.randn(4, 3), torch.randn(4, 3, requires_grad=True)
    sample_and_kl(mu, logvar)[1].backward()
    torch.testing.assert_close(logvar.grad, torch.expm1(logvar.detach()) / 2)
    assert mu.grad is None
    frozen = torch.randn(4, 7)
    bce_kl_loss(frozen, TARGET, mu, logvar).loss.backward()
    assert frozen.grad is None
    torch.testing.assert_close(logvar.grad, torch.expm1(logvar.detach()))


def test_changing_an_input_before_backward_is_noticed(backend):
    """In-place changes of what backward reads raise, as everywhere in torch."""
    x = torch.randn(4, 7, requires_grad=True)
    y = x * 1
    loss = bernoulli_nll(y, TARGET, reduction="none").sum()
    y.detach().add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


# --- in a module ---------------------------------------------------------------------------------


def test_a_step_of_training_lowers_the_loss(backend):
    torch.manual_seed(1)
    encoder, decoder = torch.nn.Linear(30, 8), torch.nn.Linear(4, 30)
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], 1e-2)
    x = (torch.rand(64, 30) > 0.7).to(torch.uint8) * 255
    losses = []
    for _ in range(60):
        mu, logvar = encoder(x.float() / 255).chunk(2, 1)
        out = bce_kl_loss(decoder(reparameterize(mu, logvar)), x, mu, logvar, reduction="batchmean")
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        losses.append(out.loss.item())
    assert losses[-1] < losses[0] - 2


def test_gradients_agree_with_numerical_ones(backend):
    """gradcheck of everything that has a gradient, in float64."""
    tensors = [torch.randn(3, 4, dtype=torch.float64, requires_grad=True) for _ in range(4)]
    target = torch.rand(3, 4, dtype=torch.float64, requires_grad=True)
    key = noise.new_key()
    for reduction in ("none", "sum", "batchmean"):
        k = {"reduction": reduction}
        assert torch.autograd.gradcheck(lambda *a, k=k: gaussian_kl(*a, **k), tensors)
        assert torch.autograd.gradcheck(
            lambda *a, k=k: sample_and_kl(*a, noise_key=key, **k), tensors
        )
        assert torch.autograd.gradcheck(
            lambda *a, k=k: bernoulli_nll(*a, **k), [tensors[0], target]
        )
        assert torch.autograd.gradcheck(
            lambda x, t, *a, k=k: tuple(bce_kl_loss(x, t, *a, beta=0.5, **k)),
            [tensors[0], target, *tensors[2:]],
        )
    assert torch.autograd.gradcheck(
        lambda *a: reparameterize(*a, num_samples=2, noise_key=key), tensors[:2]
    )


# --- gradients that must not be lost -------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["none", "sum"])
def test_beta_changed_before_backward_is_seen(backend, reduction):
    logits, mu, logvar = (torch.randn(3, 2, requires_grad=True) for _ in range(3))
    beta = torch.tensor(1.0)
    out = bce_kl_loss(logits, torch.rand(3, 2), mu, logvar, beta=beta, reduction=reduction)
    beta.fill_(10.0)
    try:
        (found,) = torch.autograd.grad(out.loss.sum(), mu)
    except RuntimeError as error:
        assert "modified by an inplace operation" in str(error)
    else:  # made in forward already, by the beta that was
        torch.testing.assert_close(found, mu.detach())


def test_one_sample_in_the_layout_of_many(backend):
    x = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)[::2]
    target = torch.rand(1, 3, 4, 4)
    expected = bernoulli_nll(x.contiguous(), target)
    torch.testing.assert_close(bernoulli_nll(x, target), expected)
    torch.testing.assert_close(gaussian_kl(x, x), gaussian_kl(x.contiguous(), x.contiguous()))


def test_no_samples_have_no_gradient_and_no_error(backend):
    logits, target = torch.zeros(0, 3, requires_grad=True), torch.zeros(0, 3, requires_grad=True)
    mu = torch.zeros(0, 2, requires_grad=True)
    for loss in (
        bernoulli_nll(logits, target, reduction="batchmean"),
        bce_kl_loss(logits, target, mu, mu, reduction="batchmean").recon,
    ):
        found = torch.autograd.grad(loss, (logits, target))
        assert all(g.shape == (0, 3) for g in found)


def test_losses_are_differentiated_where_no_value_can_be_read(backend):
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx

    with FakeTensorMode():
        x = torch.randn(3, 5, requires_grad=True)
        bernoulli_nll(x, torch.rand(3, 5)).mul(2.0).backward()
        assert x.grad.shape == (3, 5)

    target = torch.rand(3, 5)

    def gradient(x):
        return torch.autograd.grad(2.0 * bernoulli_nll(x, target), x)[0]

    x = torch.randn(3, 5, requires_grad=True)
    traced = make_fx(gradient)(x)
    torch.testing.assert_close(traced(x), 2.0 * (torch.sigmoid(x) - target))
    out = bernoulli_nll(x, target)
    (many,) = torch.autograd.grad(out, x, torch.tensor([1.0, 3.0]), is_grads_batched=True)
    torch.testing.assert_close(many[1], 3.0 * (torch.sigmoid(x) - target))


def test_linear_bernoulli_nll_under_autocast_and_elsewhere(backend):
    hidden, weight = torch.randn(4, 3).double(), torch.randn(5, 3).double()
    target = torch.rand(4, 5, dtype=torch.float64)
    expected = linear_bernoulli_nll(hidden, weight, None, target)
    with torch.autocast("cpu", torch.bfloat16):  # which leaves float64 alone
        found = linear_bernoulli_nll(hidden, weight, None, target)
    assert found.dtype == torch.float64 and torch.equal(found, expected)
    with torch.no_grad():
        value = linear_bernoulli_nll(hidden, weight, None, target.clone().requires_grad_())
    torch.testing.assert_close(value, expected)
    with vae_fast.set_backend("reference"):
        meta = [t.to("meta") for t in (hidden, weight, target)]
        assert linear_bernoulli_nll(meta[0], meta[1], None, meta[2]).is_meta


def test_negative_positions_are_refused(backend):
    data, index = torch.zeros(3, 4, dtype=torch.uint8), torch.tensor([0, 1])
    for place in (-3, 2**63, torch.tensor(-3)):
        with pytest.raises(ValueError, match=f"from 0 on; got {int(place)}"):
            gather_batch(data, index, mode="binarize", first_row=place)


def test_swapped_arguments_of_every_loss_are_refused_where_they_show(backend):
    """If only the data had a gradient. Densities of real numbers allow the two to be swapped."""
    data, made = torch.rand(4, 6), torch.rand(4, 6, requires_grad=True)
    mu = torch.zeros(4, 2, requires_grad=True)
    key = torch.zeros(3, 4, 2)
    for call in (
        lambda: vae_fast.nll("poisson", [data], made),
        lambda: vae_fast.poisson_nll(data, made),
        lambda: vae_fast.nll("negative_binomial", [data, 2.0], made, reduction="none"),
        lambda: vae_fast.elbo("bernoulli", [data], made, mu, mu),
        lambda: vae_fast.elbo("continuous_bernoulli", [data], made, mu, mu),
        lambda: vae_fast.bernoulli_nll_samples(data.expand(3, 4, 6), made),
        lambda: vae_fast.iwae_bound(data.expand(3, 4, 6), made, key, mu, mu),
    ):
        with pytest.raises(ValueError, match="target requires grad and .*(swap|swapped)"):
            call()
    (grad,) = torch.autograd.grad(vae_fast.laplace_nll(data, 0.0, made), made)
    assert torch.equal(grad, torch.sign(made - data).detach())
    with torch.no_grad():
        vae_fast.poisson_nll(data, made)


def test_rows_of_bools_whose_bytes_are_others_are_zeros_and_ones(backend):
    data = torch.tensor([[0, 255], [1, 2]], dtype=torch.uint8).view(torch.bool)
    for rows in (data, data.t()):
        found = gather_batch(rows, torch.tensor([1, 0]))
        assert found.dtype == torch.bool and int(found.view(torch.uint8).max()) == 1
        assert found.tolist() == (rows.contiguous().view(torch.uint8)[[1, 0]] != 0).tolist()
        scaled = gather_batch(rows, torch.tensor([1, 0]), mode="scale")
        assert torch.equal(scaled, found.float())
