"""All noise of a loss comes from its noise key, and one call has one density."""

import pytest
import torch

from vae_fast import noise
from vae_fast.models import build

SHAPE = (1, 8, 8)


def images(n=6):
    return torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vae", {"objective": "vae-gan", "prior": "mixture"}),
        ("vae", {"objective": "vae-gan", "prior": "vamp"}),
        ("vae", {"objective": "factor"}),
        ("vrae", {"hidden": 8}),
        ("vrae", {"hidden": 8, "objective": "hamiltonian"}),
        ("vrae", {"hidden": 8, "objective": "riemannian"}),
        ("vrae", {"hidden": 8, "objective": "dip-ii"}),
        ("vrae", {"hidden": 8, "objective": "piwae"}),
        ("vrae", {"hidden": 8, "posterior": "planar"}),
        ("iwae", {"of": "vrae", "hidden": 8}),
    ],
)
def test_a_key_fixes_all_noise_in_training(name, options):
    torch.manual_seed(0)
    model, x, key = build(name, SHAPE, latent_dim=3, **options), images(), noise.new_key()
    losses = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        losses.append(model.loss(x, noise_key=key).loss)
    torch.manual_seed(2)
    other = model.loss(x, noise_key=noise.new_key()).loss
    assert losses[0] == losses[1] != other


@pytest.mark.parametrize("prior", ["mixture", "vamp"])
def test_a_key_draws_a_mixtures_components_by_their_weights(prior):
    torch.manual_seed(0)
    model = build("vae", SHAPE, latent_dim=2, prior=prior, prior_options={"components": 3}).double()
    part, wanted = model.learned_prior, torch.full((3,), 1 / 3, dtype=torch.float64)
    if prior == "mixture":
        part.logits.data = torch.tensor([0.0, 1.0, -1.0], dtype=torch.float64)
        wanted = part.logits.softmax(0)
    means = part.components(model.encode).mu
    zeros = torch.zeros(30_000, 2, dtype=torch.float64)  # z is then a component's mean
    nearest = torch.cdist(part.sample(zeros, model.encode, noise.new_key()), means).argmin(1)
    found = nearest.bincount(minlength=3) / len(zeros)
    torch.testing.assert_close(found.double(), wanted.detach(), atol=0.012, rtol=0)


@pytest.mark.parametrize("objective", ["hamiltonian", "riemannian"])
def test_word_dropout_is_drawn_once_for_all_forces(objective):
    torch.manual_seed(0)
    model = build("vrae", SHAPE, latent_dim=3, hidden=8, word_dropout=0.5, objective=objective)
    seen = []
    model.decoder.register_forward_pre_hook(lambda module, args: seen.append(args[1].detach()))
    for _ in range(2):
        model.loss(images())
    assert len(seen) == 8  # at z_0 and after each of 3 leaps, twice
    assert all(torch.equal(t, seen[0]) for t in seen[:4])
    assert all(torch.equal(t, seen[4]) for t in seen[4:])
    hidden = (seen[0] == 0).all(2)[:, 1:].float().mean()  # the first step has no previous one
    assert 0.2 < hidden < 0.8 and not torch.equal(seen[0], seen[4])
    model.eval().loss(images())
    assert not (seen[-1][:, 1:] == 0).all(2).any()


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        (
            "vrae",
            {"hidden": 8, "objective": "dip-i"},
            "DIP's loss takes no lengths: give .* padding=",
        ),
        (
            "vrae",
            {"hidden": 8, "objective": "hamiltonian"},
            "Hamiltonian's loss takes no lengths: ",
        ),
        ("vae", {}, "BetaVAE's loss takes no lengths: "),
        ("aae", {}, "AAE's loss takes no lengths: "),
    ],
)
def test_options_that_a_loss_does_not_take_are_refused_in_a_sentence(name, options, says):
    model = build(name, SHAPE, latent_dim=3, **options)
    with pytest.raises(TypeError, match=says):
        model.loss(images(), lengths=torch.full((6,), 4))
