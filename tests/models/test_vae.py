"""The VAE: its loss against the ELBO written by hand in float64, gradients, inputs and errors."""

import copy
import math
from unittest import mock

import pytest
import torch
import torch.nn.functional as F

from vae_fast import models, noise, reference
from vae_fast.models import BetaVAE, Gaussian, Laplace, build
from vae_fast.networks import upsample


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def tiny(likelihood="bernoulli", **options):
    return build(
        "vae",
        (1, 3, 4),
        latent_dim=2,
        network_options={"hidden": [5], "activation": "tanh"},
        likelihood=likelihood,
        **options,
    ).double()


def elbo_by_hand(model, x, key):
    """Kingma & Welling 2014, equation 10, from torch.distributions."""
    mu, logvar = model.encoder(x).chunk(2, -1)
    q = torch.distributions.Normal(mu, torch.exp(0.5 * logvar))
    z = mu + q.scale * reference.normal(key, tuple(mu.shape), mu.dtype)
    p = torch.distributions.Bernoulli(logits=model.decoder(z), validate_args=False)
    recon = -p.log_prob(x).flatten(1).sum(1)
    prior = torch.distributions.Normal(torch.zeros_like(mu), torch.ones_like(mu))
    kl = torch.distributions.kl_divergence(q, prior).sum(1)
    return recon, kl


@pytest.mark.parametrize("beta", [1.0, 4.0])
def test_loss_is_the_negative_elbo(beta):
    model, key = tiny(), noise.new_key()
    x = torch.rand(7, 1, 3, 4, dtype=torch.float64)
    recon, kl = elbo_by_hand(model, x, key)
    out = model.loss(x, beta=beta, reduction="none", noise_key=key)
    torch.testing.assert_close(out.recon, recon)
    torch.testing.assert_close(out.kl, kl)
    torch.testing.assert_close(out.loss, recon + beta * kl)
    mean = model.loss(x, beta=beta, noise_key=key)
    torch.testing.assert_close(mean.loss, (recon + beta * kl).mean())


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian", "laplace"])
def test_gradients(likelihood):
    model, key = tiny(likelihood), noise.new_key()
    x = torch.rand(3, 1, 3, 4, dtype=torch.float64)
    names, values = zip(*model.named_parameters(), strict=True)

    def loss(*parameters):
        weights = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(model, weights, (x,), {"beta": 2.0, "noise_key": key})[0]

    assert torch.autograd.gradcheck(loss, [v.detach().requires_grad_() for v in values])


def test_uint8_is_x_over_255():
    model, key = tiny(), noise.new_key()
    x = torch.randint(0, 256, (5, 1, 3, 4), dtype=torch.uint8)
    bytes_ = model.loss(x, noise_key=key)
    floats = model.loss(x.double() / 255, noise_key=key)
    torch.testing.assert_close(bytes_.loss, floats.loss)
    torch.testing.assert_close(model.reconstruct(x), model.reconstruct(x.double() / 255))


@pytest.mark.parametrize("network", ["mlp", "conv", "resnet"])
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 9, 6)])
def test_networks_fit_any_image_and_learn(network, shape):
    torch.manual_seed(0)
    narrow = {} if network == "mlp" else {"channels": (4, 8)}
    model = build("vae", shape, latent_dim=4, network=network, network_options=narrow)
    x = torch.randint(0, 2, shape).mul(255).to(torch.uint8).repeat(8, *[1] * len(shape))
    assert model.reconstruct(x).shape == model.sample(8).shape == x.shape
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    first = model.loss(x).loss.item()
    for _ in range(90):
        optimizer.zero_grad()
        out = model.loss(x)
        out.loss.backward()
        optimizer.step()
    assert out.loss.item() < 0.5 * first
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("network", ["conv", "resnet"])
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 9, 6)])
def test_a_resize_decoder_has_no_checkerboard(network, shape):
    """Flat maps give equal pixels, except at the border.

    A transposed convolution gives unequal ones: 4, 2 or 1 of its weights reach a pixel, by turns.
    """
    unequal = {}
    for kind in ("resize", "transposed"):
        options = {"channels": (4, 8), "upsampling": kind}
        model = build("vae", shape, latent_dim=4, network=network, network_options=options)
        up = upsample(5, 2, shape[1:], kind)
        pixels = up(torch.ones(1, 5, *(-(-side // 2) for side in shape[1:])))[..., 1:-1, 1:-1]
        assert pixels.shape[-2:] == tuple(side - 2 for side in shape[1:])
        unequal[kind] = (pixels.amax((2, 3)) - pixels.amin((2, 3))).max().item()
        x = torch.rand(3, *shape)
        assert model.reconstruct(x).shape == x.shape
        kinds = [type(m) for m in model.decoder.modules()]
        assert (torch.nn.ConvTranspose2d in kinds) == (kind == "transposed")
    assert unequal["resize"] < 1e-6
    assert unequal["transposed"] > 0.01


@pytest.mark.filterwarnings("ignore:`torch.jit.script`")
def test_resize_is_one_convolution_and_equals_two():
    torch.manual_seed(0)
    for sides, size, calls in (((4, 7), (8, 14), 0), ((4, 4), (7, 8), 1)):
        folded = upsample(3, 5, size, "resize").double()
        plain = torch.nn.Sequential(*folded)
        x = torch.randn(2, 3, *sides, dtype=torch.float64, requires_grad=True)
        seen = []
        hooked = copy.deepcopy(folded)
        for part in hooked:
            part.register_forward_hook(lambda *_: seen.append(1))  # noqa: B023
        with mock.patch.object(F, "interpolate", wraps=F.interpolate) as doubled:
            y = folded(x)
        assert doubled.call_count == calls  # sides that do not double go the long way
        assert torch.equal(hooked(x), plain(x)) and len(seen) == 2
        hooked = copy.deepcopy(folded)
        hooked[0].register_forward_hook(lambda *_: seen.append(1))  # noqa: B023
        assert torch.equal(hooked(x), plain(x)) and len(seen) == 3
        with torch.nn.modules.module.register_module_forward_hook(lambda *_: seen.append(1)):  # noqa: B023
            folded(x)
        assert len(seen) == 6  # of all modules: Resize and its two
        short = copy.deepcopy(folded).bfloat16()
        assert torch.equal(short(x.bfloat16()), torch.nn.Sequential(*short)(x.bfloat16()))
        scripted = torch.jit.script(folded)
        for other in (plain(x), scripted(x)):
            torch.testing.assert_close(y, other, rtol=0, atol=1e-13)
        weight = torch.randn_like(y)
        for mine, other in zip(
            torch.autograd.grad((y * weight).sum(), [x, *folded.parameters()]),
            torch.autograd.grad((plain(x) * weight).sum(), [x, *folded.parameters()]),
            strict=True,
        ):
            torch.testing.assert_close(mine, other, rtol=0, atol=1e-12)


def test_conv_networks_halve_large_images_more_often():
    for shape, channels in (
        ((1, 28, 28), (32, 64)),
        ((3, 32, 32), (32, 64)),
        ((1, 4, 4), (32, 64)),
        ((1, 64, 20), (32, 64, 64)),
        ((3, 65, 64), (32, 64, 64, 64)),
    ):
        by_default = build("vae", shape, network="conv")
        chosen = build("vae", shape, network="conv", network_options={"channels": channels})
        shapes = [[p.shape for p in model.parameters()] for model in (by_default, chosen)]
        assert shapes[0] == shapes[1]
        x = torch.rand(2, *shape)
        assert by_default.reconstruct(x).shape == x.shape


def test_reconstruct_uses_the_posterior_mean():
    model = tiny()
    x = torch.rand(4, 1, 3, 4, dtype=torch.float64)
    mu = model.encoder(x)[:, :2]
    torch.testing.assert_close(model.reconstruct(x), torch.sigmoid(model.decoder(mu)))


def test_samples_follow_the_generator_and_the_temperature():
    model = tiny()
    first, again = (model.sample(6, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, model.sample(6))
    cold = model.sample(6, temperature=0.0)
    mode = torch.sigmoid(model.decoder(torch.zeros(1, 2, dtype=torch.float64)))
    torch.testing.assert_close(cold, mode.expand_as(cold))


def test_decode_takes_leading_dimensions():
    model = tiny()
    z = torch.randn(3, 5, 2, dtype=torch.float64)
    params = model.decode(z)
    assert params.shape == (3, 5, 1, 3, 4)
    torch.testing.assert_close(params[2], model.decode(z[2]))


def test_free_bits_floor_each_dimension():
    model, key = tiny(), noise.new_key()
    x = torch.rand(8, 1, 3, 4, dtype=torch.float64)
    mu, logvar = model.encode(x)
    per_dimension = 0.5 * (logvar.exp() + mu**2 - 1 - logvar).mean(0)
    floor = per_dimension.mean().item()  # between the two dimensions, so one is floored
    expected = per_dimension.clamp_min(floor).sum()
    out = model.loss(x, beta=3.0, free_bits=floor, noise_key=key)
    torch.testing.assert_close(out.kl, expected)
    torch.testing.assert_close(out.loss, out.recon + 3.0 * expected)
    high = model.loss(x, free_bits=100.0, noise_key=key)
    high.kl.sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in model.encoder.parameters())
    with pytest.raises(ValueError, match="batchmean or sum"):
        model.loss(x, free_bits=1.0, reduction="none")


def test_beta_vae_is_a_vae_with_an_objective():
    assert type(build("beta-vae", (1, 4, 4))) is BetaVAE
    assert models.OBJECTIVES["beta-vae"]["beta"] != 1.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: build("vea", (1, 4, 4)), "unknown model 'vea'; known: .*vae"),
        (lambda: build("vae", (1, 0, 4)), "input_shape"),
        (lambda: build("vae", (16,), network="conv"), r"\(channels, height, width\).*\(16,\)"),
        (lambda: build("vae", (1, 4, 4), network="cnn"), "unknown network 'cnn'"),
        (
            lambda: build(
                "vae", (1, 4, 4), network="conv", network_options={"upsampling": "bilinear"}
            ),
            "unknown upsampling 'bilinear'; known: transposed, resize",
        ),
        (lambda: build("vae", (1, 4, 4), likelihood="normal"), "unknown likelihood 'normal'"),
        (lambda: build("no_such_package:Model", (4,)), "can't import 'no_such_package'"),
        (lambda: build("torch.nn:NoSuchModel", (4,)), "torch.nn has no 'NoSuchModel'"),
        (lambda: build("vae", (1, 4, 4)).loss(torch.rand(2, 16)), r"\(2, 16\).*\(N, 1, 4, 4\)"),
        (lambda: build("vae", (4,)).decode(torch.rand(2, 3)), r"\(2, 3\).*latent_dim is 20"),
    ],
)
def test_bad_input_says_what_to_do(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_class_without_the_interface_is_refused(tmp_path, monkeypatch):
    (tmp_path / "my_models.py").write_text(
        "from torch import nn\n"
        "class Wrong(nn.Module):\n"
        "    def __init__(self, input_shape):\n"
        "        super().__init__()\n"
        "class Right(Wrong):\n"
        "    encode = decode = loss = reconstruct = sample = lambda self: None\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(TypeError, match="my_models:Wrong has no encode, decode, loss"):
        build("my_models:Wrong", (4,))
    assert type(build("my_models:Right", (4,))).__name__ == "Right"


def test_likelihoods_against_torch_distributions():
    torch.manual_seed(1)
    x = torch.rand(5, 2, 3, dtype=torch.float64)
    two = torch.randn(5, 4, 3, dtype=torch.float64)
    one = two[:, :2]
    learned = Gaussian("learned", min_logvar=-1.0)
    scale = torch.exp(0.5 * (-1.0 + torch.log1p(torch.exp(two[:, 2:] + 1.0))))
    normal, laplace = torch.distributions.Normal, torch.distributions.Laplace
    for likelihood, params, p in [
        (Gaussian(scale=0.3), one, normal(one, 0.3)),
        (Gaussian("shared", scale=0.7), one, normal(one, 0.7)),
        (learned, two, normal(one, scale)),
        (Laplace(scale=0.3), one, laplace(one, 0.3)),
    ]:
        expected = -p.log_prob(x).flatten(1).sum(1)
        torch.testing.assert_close(
            likelihood.nll(params, x, reduction="none"), expected, rtol=1e-6, atol=1e-6
        )
        torch.testing.assert_close(likelihood.mean(params), one)
        draws = torch.stack([likelihood.sample(params) for _ in range(4000)])
        assert (draws.mean(0) - one).abs().max() < 6 * float(p.stddev.max()) / math.sqrt(4000)
        torch.testing.assert_close(draws.std(0).mean(), p.stddev.mean(), rtol=0.05, atol=0.0)


@pytest.mark.parametrize("variance", ["shared", "learned"])
def test_a_learned_variance_does_not_collapse(variance):
    """If predictions are exact, the likelihood grows without bound as the variance falls."""
    likelihood, x = Gaussian(variance, min_logvar=-6.0), torch.rand(4, 3)
    learned = torch.zeros(4, 3, requires_grad=True)
    parameters = [learned] if variance == "learned" else list(likelihood.parameters())

    def nll(mean):
        return likelihood.nll(torch.cat([mean, learned], 1) if variance == "learned" else mean, x)

    optimizer = torch.optim.SGD(parameters, lr=10.0 if variance == "learned" else 1.0)
    for _ in range(300):
        optimizer.zero_grad()
        nll(x).backward()
        optimizer.step()
    assert parameters[0].max() < -12.0  # far below the floor, where a clamp has no gradient
    lowest = 0.5 * 12 * (-6.0 + math.log(2 * math.pi))
    assert lowest < nll(x).item() < lowest + 0.05
    optimizer.zero_grad()
    nll(x + 0.5).backward()
    assert (parameters[0].grad < 0).all()


def test_a_shared_variance_starts_at_its_scale_or_says_why_not():
    for scale, floor in [(1.0, -9.0), (0.05, -6.0), (3.0, -2000.0)]:
        _, log_scale = Gaussian("shared", scale, floor).given(torch.zeros(1, 1))
        assert log_scale.item() == pytest.approx(math.log(scale), abs=5e-4)
    with pytest.raises(
        ValueError, match=r"scale 0.01 is a log-variance of -9.21.*min_logvar is -9"
    ):
        Gaussian("shared", scale=0.01)


def test_categorical_reads_classes():
    likelihood = models.Categorical(num_classes=5)
    params = torch.randn(3, 10, 4, dtype=torch.float64)
    x = torch.randint(0, 5, (3, 2, 4), dtype=torch.uint8)
    logits = params.reshape(3, 5, 2, 4).movedim(1, -1)
    p = torch.distributions.Categorical(logits=logits)
    expected = -p.log_prob(x.long()).flatten(1).sum(1)
    torch.testing.assert_close(likelihood.nll(params, x, reduction="none"), expected)
    assert torch.equal(likelihood.mean(params), logits.argmax(-1))
    draws = torch.stack([likelihood.sample(params) for _ in range(3000)])
    frequency = (draws == 2).double().mean(0)
    assert (frequency - p.probs[..., 2]).abs().max() < 0.06
    with pytest.raises(TypeError, match="integer classes"):
        likelihood.nll(params, x.double())


def test_wrong_number_of_parameters_names_both_shapes():
    with pytest.raises(ValueError, match=r"must give \(2, 6, 4\), not \(2, 3, 4\)"):
        Gaussian("learned").nll(torch.zeros(2, 3, 4), torch.zeros(2, 3, 4))


def test_a_shared_variance_starts_from_the_first_training_batch():
    """At the best scale for that batch, only once, and unaffected by earlier evaluation."""
    likelihood, x = Gaussian("shared"), torch.rand(4, 3)
    x[0, 0] = 1.0
    with torch.no_grad():
        assert likelihood.nll(x, x).item() == pytest.approx(6 * math.log(2 * math.pi), rel=1e-4)
    before = likelihood.logvar.item()
    likelihood.eval().nll(x + 0.3, x)
    likelihood.train().nll(torch.full_like(x, math.nan), x)
    assert not likelihood.started and likelihood.logvar.item() == before
    first = likelihood.nll(x + 0.2, x)
    assert first.item() == pytest.approx(6 * (math.log(2 * math.pi * 0.04) + 1), rel=1e-3)
    assert likelihood.started
    start = likelihood.logvar.item()
    likelihood.nll(x + 0.7, x)
    assert likelihood.logvar.item() == start

    # The flag is saved with the weights. Weights without the flag count as started.
    state = likelihood.state_dict()
    other = Gaussian("shared")
    other.load_state_dict(state)
    other.nll(x + 0.7, x)
    assert other.logvar.item() == start
    del state["started"]
    other = Gaussian("shared")
    other.load_state_dict(state)
    other.nll(x + 0.7, x)
    assert other.logvar.item() == start and other.started

    # A scale given by the caller stays. Exact predictions start at the floor.
    asked = Gaussian("shared", scale=0.5)
    asked.nll(x + 0.2, x)
    assert asked.given(x)[1].item() == pytest.approx(math.log(0.5), abs=5e-4)
    floor = Gaussian("shared", min_logvar=-5.0)
    floor.nll(x, x)
    assert -2.5 < floor.given(x)[1].item() < -2.4


def test_the_old_name_warns_and_is_the_same_class():
    from vae_fast import models

    for module in (models, models.vae):
        with pytest.warns(DeprecationWarning, match=r"vae_fast\.models\.BetaVAE"):
            assert module.VAE is BetaVAE
    with pytest.raises(AttributeError, match="no attribute 'Other'"):
        models.Other  # noqa: B018
