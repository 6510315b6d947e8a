"""Each option against posterior collapse works alone, on models that collapse without it."""

import pytest
import torch

from vae_fast.models import build

LETTERS, LENGTH = 4, 8


def runs_of_letters(n):
    """One letter, repeated: a decoder that sees the step before needs no z."""
    return torch.randint(0, LETTERS, (n, 1)).repeat(1, LENGTH)


def trained(beta=lambda step: 1.0, free_bits=0.0, steps=120, **options):
    """KL, nats, of a sequence model after training."""
    torch.manual_seed(0)
    model = build("vrae", (LENGTH,), latent_dim=2, hidden=12, embedding=6,
                  likelihood_options={"num_classes": LETTERS}, **options)  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for step in range(steps):
        optimizer.zero_grad()
        model(runs_of_letters(32), beta=beta(step), free_bits=free_bits).loss.backward()
        optimizer.step()
    with torch.no_grad():
        return float(model.eval()(runs_of_letters(500)).kl)


STRONG = 3.0  # beta that makes z cost more than the first letter's log 4 nats gain


@pytest.fixture(scope="module")
def collapsed():
    kl = trained(lambda _: STRONG, word_dropout=0.0)
    assert kl < 0.1
    return kl


@pytest.mark.parametrize(
    "options",
    [
        # Without its predecessor at hand, every step is worth telling through z.
        {"beta": lambda _: STRONG, "word_dropout": 1.0},
        {"beta": lambda _: STRONG, "word_dropout": 0.0, "free_bits": 0.5},
    ],
    ids=["word dropout", "free bits"],
)
def test_an_option_keeps_the_posterior(collapsed, options):
    assert trained(**options) > 0.5 > 5 * collapsed


def test_a_warm_up_finds_the_code_that_a_constant_beta_misses():
    """Bits that only agree at high cost: what beta = 1 from the start never finds, warm-up does."""
    torch.manual_seed(0)

    def kl(warm_up):
        torch.manual_seed(0)
        model = build("vae", (8,), latent_dim=2, network_options={"hidden": [16]})
        with torch.no_grad():
            model.encoder[-1].weight.mul_(0.01)  # a posterior that says little at first
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        for step in range(300):
            x = (torch.rand(64, 1) > 0.5).float().repeat(1, 8)
            x = (x - (torch.rand(64, 8) < 0.35).float()).abs()
            beta = min(1.0, step / 200) if warm_up else 1.0
            optimizer.zero_grad()
            model(x, beta=beta).loss.backward()
            optimizer.step()
        with torch.no_grad():
            x = (torch.rand(2000, 1) > 0.5).float().repeat(1, 8)
            return float(model((x - (torch.rand(2000, 8) < 0.35).float()).abs()).kl)

    late, early = kl(warm_up=True), kl(warm_up=False)
    assert late > early + 0.1


@pytest.mark.parametrize("network", ["mlp", "conv", "resnet"])
def test_norm_and_dropout_are_in_the_networks(network):
    """Batch norm learns the data's scale, dropout draws in training alone."""
    options = {"norm": "batch", "dropout": 0.5}
    model = build("vae", (1, 8, 8), latent_dim=2, network=network, network_options=options)
    with torch.no_grad():  # away from the start, where residuals are zero
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    x = torch.rand(32, 1, 8, 8) * 0.1 + 0.7
    norms = [
        m for m in model.encoder.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)
    ]
    assert norms
    before = [norm.running_mean.clone() for norm in norms]
    model.train()
    first, second = (model.encode(x).mu.detach() for _ in range(2))
    assert not torch.equal(first, second)
    assert all(not torch.equal(a, n.running_mean) for a, n in zip(before, norms, strict=True))
    model.eval()
    assert torch.equal(model.encode(x).mu, model.encode(x).mu)
    one, many = model.encode(x[:1]).mu, model.encode(x).mu[:1]
    torch.testing.assert_close(one, many, rtol=1e-4, atol=1e-5)  # not of its batch's statistics
