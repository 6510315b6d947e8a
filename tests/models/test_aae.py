"""The adversarial autoencoder: each loss trains its own parameters, and the codes match the prior."""

import math

import pytest
import torch
import torch.nn.functional as F

from vae_fast import noise, reference
from vae_fast.models import build


def tiny(**options):
    torch.manual_seed(0)
    return build(
        "aae",
        (1, 2, 3),
        latent_dim=2,
        network_options={"hidden": [4], "activation": "tanh"},
        discriminator_hidden=[5],
        **options,
    ).double()


def images(n=6):
    return torch.rand(n, 1, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def gradients(model, value):
    model.zero_grad()
    value.backward()
    return {n: torch.zeros_like(p) if p.grad is None else p.grad.clone()
            for n, p in model.named_parameters()}  # fmt: skip


def test_the_three_losses_by_hand():
    model, key, x = tiny(), noise.new_key(), images()
    z = model.encoder(x)
    eps = reference.normal(key, (6, 2), torch.float64)
    ones, zeros = torch.ones(6, 1).double(), torch.zeros(6, 1).double()
    bce = F.binary_cross_entropy_with_logits
    expected = {
        "reconstruction": bce(model.decoder(z), x, reduction="sum") / 6,
        "generator": bce(model.discriminator(z), ones),
        "discriminator": bce(model.discriminator(eps), ones)
        + bce(model.discriminator(z.detach()), zeros),
    }
    together = model.loss(x, beta=2.0, noise_key=key)
    torch.testing.assert_close(together.recon, expected["reconstruction"])
    torch.testing.assert_close(together.kl, expected["generator"])
    torch.testing.assert_close(
        together.loss, together.recon + 2.0 * together.kl + expected["discriminator"]
    )
    parameters = {phase.name: phase.parameters for phase in model.phases()}
    of_together = gradients(model, together.loss)
    summed = {name: 0.0 for name in of_together}
    for phase, weight in (("reconstruction", 1.0), ("generator", 2.0), ("discriminator", 1.0)):
        out = model.loss(x, phase=phase, noise_key=key).loss
        torch.testing.assert_close(out, expected[phase])
        found = gradients(model, weight * out)
        own = {id(p) for p in parameters[phase]}
        theirs = gradients(model, weight * expected[phase])
        for name, p in model.named_parameters():
            if id(p) in own:
                assert found[name].any()
                torch.testing.assert_close(found[name], theirs[name])
                summed[name] = summed[name] + found[name]
            else:
                assert not found[name].any(), (phase, name)
        expected = {
            "reconstruction": bce(model.decoder(model.encoder(x)), x, reduction="sum") / 6,
            "generator": bce(model.discriminator(model.encoder(x)), ones),
            "discriminator": bce(model.discriminator(eps), ones)
            + bce(model.discriminator(model.encoder(x).detach()), zeros),
        }
    for name, value in summed.items():
        torch.testing.assert_close(of_together[name], value)


def test_codes_come_to_match_the_prior():
    """Points on a line: trained, their codes look like the prior's draws, and D can't tell."""
    torch.manual_seed(1)
    model = build("aae", (2,), latent_dim=1, network_options={"hidden": [32]},
                  discriminator_hidden=[32], likelihood="gaussian",
                  likelihood_options={"scale": 0.5})  # fmt: skip
    optimizers = {
        name: torch.optim.Adam(parameters, lr=2e-3, betas=(0.5, 0.99))
        for name, parameters, *_ in model.phases()
    }

    def points(n):
        u = torch.rand(n, 1)
        return torch.cat([3 * u - 1.5, u], 1)

    for _ in range(700):
        x = points(128)
        for name, optimizer in optimizers.items():
            optimizer.zero_grad()
            out = model(x, phase=name)
            out.loss.backward()
            optimizer.step()
    with torch.no_grad():
        z = model.features(points(4000))
        logits = model.discriminator(torch.cat([z, torch.randn(4000, 1)]))
        again = model.reconstruct(torch.tensor([[0.0, 0.5]]))
    assert abs(z.mean()) < 0.3 and 0.5 < z.std() < 1.5
    accuracy = ((logits[:4000] < 0).float().mean() + (logits[4000:] > 0).float().mean()) / 2
    with torch.no_grad():
        said = model.diagnostics(points(4000))["discriminator_accuracy"].mean()
    torch.testing.assert_close(said, accuracy, rtol=0, atol=0.03)
    assert 0.3 < accuracy < 0.62  # below a half: D is fooled
    assert abs(out.kl.item() - math.log(2)) < 0.2
    torch.testing.assert_close(again, torch.tensor([[0.0, 0.5]]), rtol=0, atol=0.2)


def test_refusals():
    with pytest.raises(ValueError, match="unknown phase 'encoder'; known: reconstruction"):
        tiny().loss(images(), phase="encoder")
    with pytest.raises(ValueError, match="free_bits"):
        tiny().loss(images(), free_bits=1.0)
