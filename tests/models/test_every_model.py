"""What holds for every model of the registry: backends, compilation, autocast, checkpoints."""

import copy

import pytest
import torch

import vae_fast
from tests.models.gradients import check_gradients
from vae_fast import noise
from vae_fast.models import MODELS, build
from vae_fast.models.phases import phases_of
from vae_fast.networks.scripting import NotScriptable

SHAPE = (1, 8, 6)
SMALL = {"network_options": {"hidden": [16]}, "latent_dim": 3}
OPTIONS = {
    **{name: SMALL for name in ("ae", "vae", "beta-vae", "iwae", "aae", "infovae", "wae-mmd")},
    "beta-tcvae": {**SMALL, "dataset_size": 64},
    "vamp-vae": {**SMALL, "prior_options": {"components": 4}},
    "cvae": {**SMALL, "hidden": 16, "prior": "learned"},
    "ssvae": {**SMALL, "hidden": 16},
    "hvae": {"levels": [[1, 1], [4, 2]], "width": 8, "z_channels": 2},
    "vrae": {"hidden": 8, "latent_dim": 3},
    "vq-vae": {
        "network": "mlp",
        "network_options": {"hidden": [16]},
        "code_dim": 3,
        "places": 2,
        "quantizer_options": {"size": 8, "dead_below": 0.5},
    },
    "autoencoder-kl": {
        "channels": 4,
        "multipliers": [1, 2],
        "groups": 2,
        "z_channels": 2,
        "attention": [4],
        "checkpointing": "blocks",
    },
}
NAMES = sorted(MODELS)


def made(name):
    torch.manual_seed(0)
    model = build(name, SHAPE, **OPTIONS[name])
    return model.eval()  # VRAE's word dropout and AE's running moments are for training


def batch(model, n=5):
    generator = torch.Generator().manual_seed(1)
    x = torch.randint(0, 256, (n, *SHAPE), dtype=torch.uint8, generator=generator)
    return (x, torch.arange(n)) if model.uses_labels else (x,)


def fixed(name):
    return {} if name in ("ae", "vq-vae") else {"noise_key": noise.new_key()}


def gradients(model, value):
    model.zero_grad()
    value.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", NAMES)
def test_gradients_in_float64(name):
    """Every parameter has a gradient in its phase, and it is the slope of the loss."""
    model, options = made(name).double(), fixed(name)
    x, *y = batch(model)
    with torch.no_grad():  # away from the start, where last layers and residuals are zero
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    for phase, parameters, *_ in phases_of(model):
        given = options if phase is None else {**options, "phase": phase}
        if name in STRAIGHT_THROUGH:  # the encoder's gradient is that of another function
            parameters = list(model.decoder.parameters())
        check_gradients(model, lambda given=given: model(x, *y, **given).loss, parameters)


def test_every_model_is_tested():
    assert sorted(OPTIONS) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_reference_and_native_agree(name):
    if not _has_native():
        pytest.skip("the native kernels are not built")
    model, options = made(name), fixed(name)
    results = []
    for backend in ("reference", "native"):
        with vae_fast.set_backend(backend):
            out = model.loss(*batch(model), **options)
            results.append((out, gradients(model, out.loss)))
    (reference, by_reference), (native, by_native) = results
    torch.testing.assert_close(native, reference, rtol=1e-5, atol=1e-5)
    assert by_reference.keys() == by_native.keys()
    for parameter, gradient in by_reference.items():
        scale = gradient.abs().max().item() + 1e-6
        torch.testing.assert_close(
            by_native[parameter], gradient, rtol=1e-4, atol=1e-5 * scale, msg=parameter
        )


def _has_native():
    try:
        with vae_fast.set_backend("native"):
            vae_fast.gaussian_kl(torch.zeros(2, 2), torch.zeros(2, 2))
    except RuntimeError:
        return False
    return True


# Each compilation takes seconds, so the quick tests compile only the two most intricate models.
QUICK = ("iwae", "hvae")
OF_BATCHES = ("infovae", "wae-mmd")  # the MMD has no value for each sample
STRAIGHT_THROUGH = ("vq-vae",)
LARGE = ("hvae", "autoencoder-kl")  # of many blocks, each with a few small ops


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in NAMES]
)
def test_compiled_is_eager(name):
    torch._dynamo.reset()
    model, options = made(name), fixed(name)
    # Dynamo does not trace torch's own GRU: around it, the graph breaks.
    compiled = torch.compile(model, fullgraph=name != "vrae", backend="aot_eager")
    for n in (5, 3):  # the second size makes torch compile for any
        x = batch(model, n)
        expected, out = model.loss(*x, **options), compiled(*x, **options)
        torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
        by_eager, by_compiled = gradients(model, expected.loss), gradients(model, out.loss)
        for parameter, gradient in by_eager.items():
            torch.testing.assert_close(by_compiled[parameter], gradient, rtol=1e-4, atol=1e-5)


class Calls(torch.nn.Module):
    """What is exported of a model: reconstructions of a batch, and its scores if ``scored``."""

    def __init__(self, model, scored):
        super().__init__()
        self.model, self.scored = model, scored

    def forward(self, *x):
        again = self.model.reconstruct(*x)
        return (again, self.model.loss(*x, reduction="none").kl) if self.scored else (again,)


@pytest.mark.parametrize(
    "name", [n if n == "vae" else pytest.param(n, marks=pytest.mark.slow) for n in NAMES]
)
def test_exported_for_any_batch(name):
    # Sums over pairs of a batch need the logarithm of its size, which a traced size can't give.
    calls = Calls(made(name), scored=name not in ("beta-tcvae", "infovae", "wae-mmd"))
    rows = tuple({0: torch.export.Dim("rows", min=2, max=64)} for _ in batch(calls.model))
    exported = torch.export.export(calls, batch(calls.model), dynamic_shapes=(rows,)).module()
    x = batch(calls.model, 3)
    # Some models' terms depend on the noise drawn; reconstructions don't.
    torch.testing.assert_close(exported(*x)[0], calls(*x)[0], rtol=1e-5, atol=1e-5)
    if name in ("vae", "beta-vae", "ae"):
        torch.testing.assert_close(exported(*x)[1], calls(*x)[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_models(name, dtype):
    """Loss, gradients, reconstruction and samples of a model whose parameters are half precision."""
    model, options = made(name), fixed(name)
    x = batch(model)
    half = copy.deepcopy(model).to(dtype)
    expected, out = model.loss(*x, **options), half.loss(*x, **options)
    assert out.loss.dtype == torch.float32
    torch.testing.assert_close(out.loss, expected.loss, rtol=0.01, atol=0.02)
    by_float, by_half = gradients(model, expected.loss), gradients(half, out.loss)
    assert by_half.keys() == by_float.keys()
    for parameter, gradient in by_float.items():
        error = (by_half[parameter].float() - gradient).norm()
        assert error <= 0.1 * gradient.norm() + 1e-3, parameter
    made_by_half = half.reconstruct(*x)
    assert made_by_half.dtype == dtype
    torch.testing.assert_close(made_by_half.float(), model.reconstruct(*x), rtol=0.0, atol=0.02)
    drawn = half.sample(4)
    assert drawn.dtype == dtype and drawn.shape == (4, *SHAPE) and drawn.isfinite().all()


@pytest.mark.filterwarnings("ignore:gradients of vae_fast's ops")
@pytest.mark.parametrize(
    "name", [n if n not in LARGE else pytest.param(n, marks=pytest.mark.slow) for n in NAMES]
)
def test_function_transforms_and_second_derivatives(name):
    """torch.func.grad and jvp, batched gradients, and a gradient penalty, of the model's loss."""
    model, options = made(name), fixed(name)
    x = batch(model)
    weights = {n: p.detach() for n, p in model.named_parameters()}

    def loss(weights):
        return torch.func.functional_call(model, weights, x, options).loss

    expected = gradients(model, model.loss(*x, **options).loss)
    found = torch.func.grad(loss)(weights)
    along = {n: torch.ones_like(p) for n, p in weights.items()}
    slope = torch.func.jvp(loss, (weights,), (along,))[1]
    for parameter, gradient in expected.items():
        scale = gradient.abs().max().item() + 1e-6
        torch.testing.assert_close(
            found[parameter], gradient, rtol=1e-4, atol=1e-4 * scale, msg=parameter
        )
    total = sum(g.double().sum() for g in expected.values())
    torch.testing.assert_close(slope.double(), total, rtol=1e-3, atol=1e-3)

    parameters = [p for n, p in model.named_parameters() if n in expected]
    if name in OF_BATCHES:
        with pytest.raises(ValueError, match="defined on a batch"):
            model.loss(*x, reduction="none", **options)
        return
    each = model.loss(*x, reduction="none", **options).loss
    many = torch.autograd.grad(each, parameters, torch.eye(5), is_grads_batched=True)
    for gradients_, gradient in zip(many, expected.values(), strict=True):
        scale = gradient.abs().max().item() + 1e-6
        torch.testing.assert_close(gradients_.mean(0), gradient, rtol=1e-3, atol=1e-4 * scale)

    def loss_of_one(weights, *one):
        rows = tuple(t[None] for t in one)
        return torch.func.functional_call(model, weights, rows, options).loss

    each = torch.func.vmap(torch.func.grad(loss_of_one), (None, *[0] * len(x)))(weights, *x)
    alone = gradients(model, model.loss(*(t[3:4] for t in x), **options).loss)
    for parameter, gradient in alone.items():
        scale = gradient.abs().max().item() + 1e-6
        torch.testing.assert_close(
            each[parameter][3], gradient, rtol=1e-3, atol=1e-4 * scale, msg=parameter
        )

    penalties = []
    for backend in ("auto", "reference"):
        with vae_fast.set_backend(backend):
            value = model.loss(*x, **options).loss
        grads = torch.autograd.grad(value, parameters, create_graph=True)
        penalties.append(gradients(model, sum(g.square().sum() for g in grads)))
    for parameter, gradient in penalties[1].items():
        scale = gradient.abs().max().item() + 1e-6
        torch.testing.assert_close(
            penalties[0][parameter], gradient, rtol=1e-3, atol=1e-4 * scale, msg=parameter
        )


@pytest.mark.parametrize("name", NAMES)
def test_layers_are_torchs_and_can_be_quantised(name):
    model = made(name)
    linear = [m for m in model.modules() if isinstance(m, torch.nn.Linear)]
    assert all(type(m) is torch.nn.Linear for m in linear)
    quantised = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {torch.nn.Linear})
    assert not any(type(m) is torch.nn.Linear for m in quantised.modules())
    x = batch(model)
    torch.testing.assert_close(quantised.reconstruct(*x), model.reconstruct(*x), rtol=0, atol=0.05)


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize("name", NAMES)
def test_networks_can_be_scripted_or_say_what_can(name):
    model = made(name)
    with pytest.raises(
        TypeError, match="given up: use torch.export.export.* its encoder and its dec"
    ):
        torch.jit.script(model)
    for network in (model.encoder, model.decoder, getattr(model, "condition", None)):
        if network is None:
            continue
        if any(isinstance(module, NotScriptable) for module in network.modules()):
            with pytest.raises(TypeError, match="torch.export.export"):
                torch.jit.script(network)
        else:
            torch.jit.script(network)
    if name in ("vae", "hvae", "autoencoder-kl"):
        x = batch(model)[0] / 255
        exported = torch.export.export(model.encoder, (x,)).module()
        torch.testing.assert_close(exported(x), model.encoder(x))


def test_transforms_of_models_with_running_statistics_are_refused_in_training():
    model = made("ae").train()
    weights = {n: p.detach() for n, p in model.named_parameters()}
    with pytest.raises(RuntimeError, match="call model.eval"):
        torch.func.grad(lambda w: torch.func.functional_call(model, w, batch(model)).loss)(weights)


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_autocast_is_close(name):
    model, options = made(name), fixed(name)
    expected = model.loss(*batch(model), **options)
    with torch.autocast("cpu", torch.bfloat16):
        out = model.loss(*batch(model), **options)
    assert out.loss.dtype == torch.float32
    torch.testing.assert_close(out.loss, expected.loss, rtol=0.02, atol=0.05)
    assert all(g.isfinite().all() for g in gradients(model, out.loss).values())


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_saved_and_loaded(name):
    model, other = made(name), made(name)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1.0)
    x, options = batch(model), fixed(name)
    assert not torch.equal(other.loss(*x, **options).loss, model.loss(*x, **options).loss)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.loss(*x, **options).loss, model.loss(*x, **options).loss)
    draws = [m.sample(4, generator=torch.Generator().manual_seed(5)) for m in (model, other)]
    assert torch.equal(*draws) and draws[0].shape == (4, *SHAPE)
    assert 0.0 <= draws[0].min() and draws[0].max() <= 1.0


@pytest.mark.parametrize("name", NAMES)
def test_reductions_and_an_empty_batch(name):
    model, options = made(name), fixed(name)
    x = batch(model)
    if name in OF_BATCHES:
        mean, total = (model.loss(*x, reduction=r, **options) for r in ("batchmean", "sum"))
        torch.testing.assert_close(5 * mean.loss, total.loss)
        return
    each = model.loss(*x, reduction="none", **options)
    mean, total = (model.loss(*x, reduction=r, **options) for r in ("batchmean", "sum"))
    for term in range(3):
        assert each[term].shape == (5,)
        torch.testing.assert_close(each[term].mean(), mean[term])
        torch.testing.assert_close(each[term].sum(), total[term])
    assert model.reconstruct(*batch(model, n=0)).shape == (0, *SHAPE)


def test_the_check_of_gradients_sees_a_wrong_one():
    model, key = made("vae").double(), noise.new_key()
    x = batch(model)

    def wrong():
        for parameter in model.decoder.parameters():
            if parameter.dim() == 1:
                parameter.register_hook(lambda g: torch.cat([g[:-1], 0.5 * g[-1:]]))
        return model(*x, noise_key=key).loss

    with pytest.raises(AssertionError):
        check_gradients(model, wrong)
