"""The autoencoder of latent diffusion: its bound spelled out, its latent maps, what it refuses."""

import math
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from vae_fast import evaluate, noise, reference, tasks
from vae_fast.models import BetaVAE, build
from vae_fast.networks import blocks
from vae_fast.networks.blocks import Residual, SelfAttention, Upsample

SHAPE = (2, 8, 12)
TINY = {
    "channels": 4, "multipliers": [1, 2], "groups": 2, "z_channels": 3, "attention": [4],
    "head_channels": 4, "channels_last": True,
}  # fmt: skip
EXAMPLES = Path(__file__).parents[2] / "examples"


def shaken(module):
    """Away from the start, where residual branches are zero."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return module


def tiny(**options):
    torch.manual_seed(0)
    return shaken(build("autoencoder-kl", SHAPE, **{**TINY, **options}).double())


def images(n=3, dtype=torch.float64):
    x = torch.randint(0, 256, (n, *SHAPE), generator=torch.Generator().manual_seed(1))
    return x.to(torch.uint8) if dtype == torch.uint8 else (x / 255.0).to(dtype)


# --- the plain version, written a second time ----------------------------------------------------


class Plain:
    """The network as a program over its state_dict: loops, einsum and softmax."""

    def __init__(self, model):
        self.weights = dict(model.named_parameters())

    def conv(self, h, name, stride=1):
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return F.conv2d(h, weight, bias, stride, padding=weight.shape[-1] // 2)

    def norm(self, h, name):
        groups = h.reshape(len(h), 2, -1)
        centred = groups - groups.mean(2, keepdim=True)
        scaled = centred / (centred.square().mean(2, keepdim=True) + 1e-6).sqrt()
        weight, bias = (self.weights[f"{name}.{p}"][:, None, None] for p in ("weight", "bias"))
        return scaled.reshape(h.shape) * weight + bias

    def norm_conv(self, h, name):
        h = self.norm(h, f"{name}.norm")
        return self.conv(h * torch.sigmoid(h), f"{name}.conv")

    def residual(self, h, name):
        f = self.norm_conv(self.norm_conv(h, f"{name}.first"), f"{name}.second")
        return f + (self.conv(h, f"{name}.skip") if f"{name}.skip.weight" in self.weights else h)

    def attention(self, h, name):
        def linear(t, part):
            weight, bias = (self.weights[f"{name}.{part}.{p}"] for p in ("weight", "bias"))
            return torch.einsum("oc,nchw->nohw", weight, t) + bias[:, None, None]

        n, c = h.shape[:2]
        qkv = linear(self.norm(h, f"{name}.norm"), "qkv")
        q, k, v = (t.reshape(n, c // 4, 4, -1) for t in qkv.split(c, 1))  # heads of 4 channels
        weights = torch.einsum("nadi,nadj->naij", q, k).div(2.0).softmax(-1)
        return h + linear(torch.einsum("naij,nadj->nadi", weights, v).reshape(h.shape), "out")

    def double(self, h, name):
        return self.conv(h.repeat_interleave(2, 2).repeat_interleave(2, 3), f"{name}.conv")

    def run(self, h, name, layers):
        for number, layer in enumerate(layers):
            h = getattr(self, layer)(h, f"{name}.{number}")
        return h

    def halve(self, h, name):
        return self.conv(h, name, stride=2)

    middle = ("residual", "attention", "residual", "norm_conv")
    encoder = ("conv", "residual", "halve", "residual", "attention", *middle)
    decoder = (
        "conv", *middle[:3], *["residual", "attention"] * 2, "double", *["residual"] * 2,
        "norm_conv",
    )  # fmt: skip

    def terms(self, x, key):
        """recon and kl of each sample."""
        mu, logvar = self.run(x, "encoder", self.encoder).chunk(2, 1)
        z = mu + torch.exp(0.5 * logvar) * reference.normal(key, tuple(mu.shape), torch.float64)
        params = self.run(z, "decoder", self.decoder)
        p = torch.distributions.Bernoulli(logits=params, validate_args=False)
        kl = 0.5 * (logvar.exp() + mu.square() - 1.0 - logvar)
        return -p.log_prob(x).flatten(1).sum(1), kl.flatten(1).sum(1)


@pytest.mark.parametrize("options", [{}, {"checkpointing": "norms"}, {"channels_last": False}])
def test_loss_and_gradients_are_the_plain_version_s(backend, options):
    model, key, x = tiny(**options), noise.new_key(), images()
    recon, kl = Plain(model).terms(x, key)
    expected = torch.autograd.grad((recon + 2.0 * kl).mean(), list(model.parameters()))
    out = model.loss(x, beta=2.0, reduction="none", noise_key=key)
    torch.testing.assert_close(out.recon, recon)
    torch.testing.assert_close(out.kl, kl)
    torch.testing.assert_close(out.loss, recon + 2.0 * kl)
    model.loss(x, beta=2.0, noise_key=key).loss.backward()
    for (name, parameter), gradient in zip(model.named_parameters(), expected, strict=True):
        assert gradient.abs().max() > 1e-6, name
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-7, atol=1e-10, msg=name)


@pytest.mark.parametrize("places", [1, 49, blocks.PLAIN_PLACES, blocks.PLAIN_PLACES + 1])
@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-12), (torch.bfloat16, 2e-2)])
def test_attention_is_softmax_of_scaled_products(places, dtype, error):
    torch.manual_seed(0)
    given = [torch.randn(2, 3, places, 8).to(dtype).requires_grad_() for _ in range(3)]
    exact = [t.detach().double().requires_grad_() for t in given]
    weights = (torch.einsum("bhid,bhjd->bhij", *exact[:2]) / 8**0.5).softmax(3)
    expected = torch.einsum("bhij,bhjd->bhid", weights, exact[2])
    found = blocks.attention(*given)
    upstream = torch.randn_like(expected)
    pairs = zip(
        (found, *torch.autograd.grad(found, given, upstream.to(dtype))),
        (expected, *torch.autograd.grad(expected, exact, upstream)),
        strict=True,
    )
    for mine, true in pairs:  # with a single position, q and k get no gradient
        assert (mine.double() - true).norm() <= error * max(true.norm(), upstream.norm() / 10)


@pytest.mark.parametrize(
    "block", [Residual(4, 6, 2), SelfAttention(4, 2, head_channels=2), Upsample(4)]
)
def test_blocks_by_finite_differences(block):
    torch.manual_seed(0)
    block = shaken(block.double())
    h = torch.randn(2, 4, 3, 2, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    names, values = zip(*block.named_parameters(), strict=True)

    def run(h, *parameters):
        return torch.func.functional_call(block, dict(zip(names, parameters, strict=True)), (h,))

    assert torch.autograd.gradcheck(run, (h.requires_grad_(), *values))


# --- latent maps ---------------------------------------------------------------------------------


def test_flat_codes_are_the_maps():
    model, x = tiny(), images()
    q, maps = model.encode(x), model.posterior_maps(x)
    assert model.latent_shape == (3, 4, 6) and model.latent_dim == 72
    assert q.mu[1, 2 * 24 + 3 * 6 + 5] == maps.mu[1, 2, 3, 5]  # channel 2, row 3, column 5
    torch.testing.assert_close(model.as_maps(q.logvar), maps.logvar, rtol=0, atol=0)
    torch.testing.assert_close(model.decode(q.mu), model.decode_maps(maps.mu))
    two = torch.stack([q.mu, -q.mu])
    torch.testing.assert_close(model.decode(two)[1], model.decode(-q.mu))
    with pytest.raises(ValueError, match=r"z has shape \(3, 71\).*latent_dim is 72"):
        model.decode(q.mu[:, :71])


@pytest.mark.parametrize("free_bits", [0.0, 0.5])
def test_the_loss_is_the_flat_vae_s(free_bits):
    """Fused over maps, with the noise of the flat code."""
    model, key, x = tiny(), noise.new_key(), images()
    options = {"beta": 0.3, "free_bits": free_bits, "noise_key": key}
    expected = BetaVAE.loss(model, x, **options)
    torch.testing.assert_close(model.loss(x, **options), expected)
    assert (model.loss(x).kl < expected.kl) == (free_bits > 0)


def test_kl_per_channel():
    model, x = tiny(), images()
    mu, logvar = model.posterior_maps(x)
    kl = 0.5 * (logvar.exp() + mu.square() - 1.0 - logvar)
    torch.testing.assert_close(model.kl_per_channel(x), kl.mean(0).sum((1, 2)))
    torch.testing.assert_close(model.kl_per_dimension(x), kl.mean(0).flatten())


def test_tasks_and_evaluation():
    model, x = tiny().float(), images(6, torch.uint8)
    assert tasks.interpolate(model, x[:2], x[2:4], steps=5).shape == (2, 5, *SHAPE)
    z = model.features(x)[0].detach()
    walk = tasks.traverse(model, z, dimensions=[0, 71], values=[z[0].item(), 3.0])
    torch.testing.assert_close(walk[0, 0], model.reconstruct(x[:1])[0])
    report = evaluate.evaluate(model, x, num_samples=30)
    assert report["elbo"] < -report["nll"] < 0
    assert len(report["kl_per_dimension"]) == 72 and 0 < report["active_units"] <= 72
    assert sum(report["kl_per_dimension"]) == pytest.approx(report["kl"], rel=1e-3)
    assert model.sample(3).shape == (3, *SHAPE)


@pytest.mark.parametrize(
    ("likelihood", "options", "parameters"),
    [
        ("gaussian", {"scale": 0.3}, 2),
        ("gaussian", {"variance": "shared"}, 2),
        ("gaussian", {"variance": "learned"}, 4),
        ("laplace", {"scale": 0.2}, 2),
    ],
)
def test_likelihoods(likelihood, options, parameters):
    model = tiny(likelihood=likelihood, likelihood_options=options)
    x, key = images(), noise.new_key()
    mu, logvar = model.posterior_maps(x)
    z = mu + torch.exp(0.5 * logvar) * reference.normal(key, tuple(mu.shape), torch.float64)
    params = model.decoder(z)
    assert params.shape == (3, parameters, 8, 12)
    expected = model.likelihood.nll(params, x, reduction="none")
    out = model.loss(x, reduction="none", noise_key=key)
    torch.testing.assert_close(out.recon, expected)
    out.loss.sum().backward()
    assert all(p.grad.abs().max() > 0 for p in model.parameters())


# --- memory and precision ------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float64])
def test_maps_are_channels_last_and_parameters_contiguous(dtype):
    model, layouts = tiny(), []
    for name, module in model.named_modules():
        if name.count(".") == 1:  # the blocks

            def look(_, inputs, output):
                layouts.append(output.is_contiguous(memory_format=torch.channels_last))

            module.register_forward_hook(look)
    model.loss(images(dtype=dtype)).loss.backward()
    assert len(layouts) == 21 and all(layouts)
    assert all(p.is_contiguous() for p in model.parameters())


def test_bfloat16_keeps_maps_in_float32_and_norms_in_bfloat16():
    model, kept = tiny().float(), []
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):  # behind norm and activation
            module.register_forward_hook(lambda _, inputs, output: kept.append(output.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        q = model.posterior_maps(images(dtype=torch.uint8))
    assert set(kept) == {torch.bfloat16}
    assert q.mu.dtype == q.logvar.dtype == torch.float32
    out = tiny().bfloat16().loss(images(dtype=torch.uint8))
    exact = tiny().loss(images(dtype=torch.uint8))
    assert out.loss.dtype == torch.float32
    torch.testing.assert_close(out.loss.double(), exact.loss, rtol=0.05, atol=0.0)


# --- the configurations in examples/, and what is refused ----------------------------------------

CONFIGS = sorted(EXAMPLES.glob("autoencoder_kl*.yaml"))
INPUTS = {"fashion10k": (1, 28, 28), "sprites": (1, 64, 64)}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_an_example_has_the_parameters_its_comment_says(path):
    text = path.read_text()
    config = pytest.importorskip("yaml").safe_load(text)
    stated = re.search(r"([\d,]+) parameters", text).group(1)
    maps = re.search(r"latent maps\s*#?\s*of\s*#?\s*(\d+) x (\d+) x (\d+)", text).groups()
    with torch.device("meta"):
        shape = INPUTS.get(config["data"], (3, 256, 256))
        model = build("autoencoder-kl", shape, **config["model_args"])
    assert sum(p.numel() for p in model.parameters()) == int(stated.replace(",", ""))
    assert model.latent_shape == tuple(map(int, maps))


def test_the_84_million_are_the_published_autoencoder_s():
    """Encoder and decoder have the sizes of the f = 8 autoencoder of Rombach et al. 2022."""
    with torch.device("meta"):
        model = build(
            "autoencoder-kl", (3, 256, 256), channels=128, multipliers=[1, 2, 4, 4], blocks=2,
            groups=32,
        )  # fmt: skip
    sizes = [sum(p.numel() for p in part.parameters()) for part in (model.encoder, model.decoder)]
    assert sizes == [34_163_592, 49_490_179]
    assert model.latent_shape == (4, 32, 32)


@pytest.mark.parametrize(
    ("shape", "options", "words"),
    [
        ((1, 28, 30), {"multipliers": [1, 1, 1]}, r"28 x 30 can't be halved 2 times.*multiples of 4"),
        ((1, 8), {}, r"images of shape \(channels, height, width\), got \(1, 8\)"),
        (SHAPE, {"groups": 3}, "a level has 4 channels, and groups is 3"),
        (SHAPE, {"groups": 0}, "groups is 0"),
        (SHAPE, {"channels": 6, "groups": 2, "head_channels": 8}, "12, and head_channels is 8"),
        (SHAPE, {"attention": [7]}, r"heights \[7\].*height 8 have heights \[8, 4\]"),
        (SHAPE, {"multipliers": []}, "an entry for each level"),
        (SHAPE, {"multipliers": [1, 0]}, "a multiplier must be at least 1, got 0"),
        (SHAPE, {"z_channels": 0}, "z_channels must be at least 1, got 0"),
        (SHAPE, {"checkpointing": "some"}, "one of none, norms, blocks, got 'some'"),
    ],
)  # fmt: skip
def test_arguments_that_do_not_fit_are_refused(shape, options, words):
    with pytest.raises(ValueError, match=words):
        build("autoencoder-kl", shape, **{**TINY, **options})


def test_a_new_model_reconstructs_after_a_few_steps():
    torch.manual_seed(0)
    model = build("autoencoder-kl", SHAPE, **TINY)
    x = (F.interpolate(torch.rand(8, 2, 2, 3), SHAPE[1:]) > 0.5).float()
    before = evaluate.reconstruction_error(model, x).mean()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        loss = model.loss(x, beta=0.1).loss
        loss.backward()
        optimizer.step()
    assert loss < 0.7 * math.prod(SHAPE) * math.log(2)
    assert evaluate.reconstruction_error(model, x).mean() < 0.3 * before
