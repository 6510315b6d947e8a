"""What no task can do: an error that names it, before any work, and no number made of nothing."""

import pytest
import torch

from vae_fast import tasks
from vae_fast.evaluate import bits_per_dimension, importance_nll
from vae_fast.models import build
from vae_fast.tasks.samplers import fit_sampler, make_sampler

NAN, INF = float("nan"), float("inf")
X, Y, MASK = torch.rand(6, 1, 8, 8), torch.tensor([0, 1, 2, 0, 1, 2]), torch.ones(8, 8).bool()


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build("vae", (1, 8, 8), latent_dim=4)


@pytest.fixture(scope="module")
def conditional():
    torch.manual_seed(0)
    return build("cvae", (1, 8, 8), latent_dim=4, condition_options={"num_classes": 3})


@pytest.mark.parametrize("count", [0, -1, 2.5])
def test_impossible_numbers_of_things(model, count):
    z = torch.randn(2, 4)
    calls = {
        "batch_size": [
            lambda: tasks.reconstruct(model, X, batch_size=count),
            lambda: tasks.decode(model, z, batch_size=count),
            lambda: tasks.generate(model, 2, batch_size=count),
            lambda: tasks.impute(model, X, MASK, batch_size=count),  # gave zeros for -1
        ],
        "steps": [
            lambda: tasks.interpolate(model, X[:2], X[2:4], steps=count),
            lambda: tasks.denoise(model, X, steps=count),
            lambda: tasks.impute(model, X, MASK, steps=count),
            lambda: make_sampler("maf", model, steps=count),
        ],
        "draws": [lambda: tasks.impute(model, X, MASK, draws=count)],
        "num_samples": [
            lambda score=score: tasks.anomaly_scores(model, X, score=score, num_samples=count)
            for score in ("elbo", "nll")
        ],
        "samples_at_once": [lambda: importance_nll(model, X, samples_at_once=count)],
        "levels": [lambda: bits_per_dimension(1.0, 3, levels=count)],
        "components": [lambda: make_sampler("gmm", model, components=count)],
    }
    for name, each in calls.items():
        for call in each:
            with pytest.raises((ValueError, TypeError), match=rf"{name} must be .*, got {count}"):
                call()
    with pytest.raises((ValueError, TypeError), match="n must be"):
        tasks.generate(model, count or -2)
    with pytest.raises(ValueError, match="levels must be at least 2, got 1"):
        bits_per_dimension(1.0, 3, levels=1)


def test_conditions_and_codes_that_do_not_fit(model, conditional):
    z = torch.randn(2, 4)
    for call in (
        lambda: tasks.decode(model, z, Y[:2]),
        lambda: tasks.generate(model, 2, Y[:2]),
        lambda: tasks.interpolate(model, X[:2], X[2:4], Y[:2]),
        lambda: tasks.traverse(model, z[0], y=Y[:1]),
    ):
        with pytest.raises(ValueError, match="BetaVAE is not conditional, and y was given"):
            call()
    with pytest.raises(ValueError, match="CVAE is conditional: .* give y"):
        tasks.decode(conditional, z)
    with pytest.raises(ValueError, match="under one condition, got 6"):
        tasks.traverse(conditional, z[0], y=Y)
    with pytest.raises(ValueError, match=r"z must be \(N, latent_dim\), got \(4,\)"):
        tasks.decode(model, z[0])
    with pytest.raises(ValueError, match=r"one code \(latent_dim,\), got \(1, 4\)"):
        tasks.traverse(model, z[:1])
    with pytest.raises(TypeError, match="a dimension must be a whole number, got 1.0"):
        tasks.traverse(model, z[0], dimensions=[1.0])
    with pytest.raises(ValueError, match="features are written as .npy"):
        tasks.encode(model, X, path="codes.npz")
    with pytest.raises(ValueError, match="x has no samples"):
        tasks.statistics(model, X[:0])


def test_no_codes_are_no_images(model):
    assert tasks.decode(model, torch.zeros(0, 4)).shape == (0, 1, 8, 8)
    assert tasks.traverse(model, torch.zeros(4), values=[]).shape == (4, 0, 1, 8, 8)
    assert tasks.traverse(model, torch.zeros(4), dimensions=[]).shape == (0, 7, 1, 8, 8)


def test_what_is_no_number_is_not_rounded_to_one(model):
    """A code of NaN became the symbol 0, and a temperature of NaN images of NaN."""
    broken = X.clone()
    broken[2, 0, 3, 3] = NAN
    words = "hold NaN or infinity in 1 of 6 rows, the first of them 2"
    with pytest.raises(ValueError, match=f"codes {words}"):
        tasks.compress(model, broken)
    with pytest.raises(ValueError, match=f"codes {words}"):
        fit_sampler("gmm", model, broken)
    with pytest.raises(ValueError, match=f"features {words}"):
        tasks.linear_probe(tasks.encode(model, broken), Y)
    for step in (0, -1.0, NAN, INF):
        with pytest.raises(ValueError, match="step must be positive and finite"):
            tasks.compress(model, X, step=step)
    for temperature in (-1.0, NAN):
        with pytest.raises(ValueError, match="temperature can't be negative"):
            tasks.generate(model, 2, temperature=temperature)
