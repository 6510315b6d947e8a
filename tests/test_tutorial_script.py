"""A training script that changes one import keeps its results."""

import importlib.util
import inspect
from pathlib import Path

import pytest
import torch

import vae_fast
from vae_fast.compat import pytorch_examples

SCRIPTS = Path(__file__).parent / "tutorial"


def script(name):
    spec = importlib.util.spec_from_file_location(f"tutorial_{name}", SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_only_names_differ():
    by_hand, imported = script("by_hand"), script("imported")
    assert inspect.getsource(by_hand.train) == inspect.getsource(imported.train)
    assert imported.VAE is vae_fast.VAE and imported.loss_function is vae_fast.loss_function
    assert imported.DataLoader is vae_fast.DataLoader


def test_same_loss_curve_over_two_epochs():
    expected, found = script("by_hand").train(epochs=2), script("imported").train(epochs=2)
    assert expected[0] > expected[1]
    for by_hand, imported in zip(expected, found, strict=True):
        assert abs(by_hand - imported) < 0.5, (expected, found)


def test_same_seed_gives_the_same_initial_weights():
    by_hand = script("by_hand")
    weights = []
    for vae in (by_hand.VAE, vae_fast.VAE):
        torch.manual_seed(7)
        weights.append(vae(12, 5, 3).state_dict())
    assert list(weights[0]) == list(weights[1])
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_state_dict_round_trip():
    by_hand, ours = script("by_hand").VAE(12, 5, 3), vae_fast.VAE(12, 5, 3)
    ours.load_state_dict(by_hand.state_dict())
    back = script("by_hand").VAE(12, 5, 3)
    back.load_state_dict(ours.state_dict())
    x = torch.rand(4, 12)
    for model in (ours, back):
        torch.testing.assert_close(model.encoder(x), by_hand.encoder(x))
        z = torch.randn(4, 3)
        torch.testing.assert_close(model.decoder(z), by_hand.decoder(z))


@pytest.mark.parametrize("prefix", ["", "module."])
def test_the_flat_names_of_pytorch_examples_load(prefix):
    torch.manual_seed(0)
    ours = vae_fast.VAE(12, 5, 3)
    flat = {
        "fc1": ours.encoder.fc1,
        "fc21": ours.encoder.fc_mu,
        "fc22": ours.encoder.fc_logvar,
        "fc3": ours.decoder.fc1,
        "fc4": ours.decoder.fc2,
    }
    saved = {f"{prefix}{n}.{k}": v for n, m in flat.items() for k, v in m.state_dict().items()}
    before = list(saved)
    other = vae_fast.VAE(12, 5, 3)
    target = torch.nn.ModuleDict({"module": other}) if prefix else other
    target.load_state_dict(saved)
    assert list(saved) == before  # the caller's dictionary is left alone
    for name, value in ours.state_dict().items():
        assert torch.equal(other.state_dict()[name], value)
    x = torch.rand(4, 1, 3, 4)  # images, which that script's model flattens itself
    drawn = [torch.manual_seed(1) and ours(of) for of in (x, x.flatten(1))]
    assert all(map(torch.equal, *drawn)) and drawn[0][0].shape == (4, 12)
    pytorch_examples.loss_function(drawn[0][0], x, *drawn[0][1:]).backward()


@pytest.mark.parametrize(
    ("dtype", "within"), [(torch.float64, 5e-5), (torch.float32, 0.02)], ids=str
)
def test_pytorch_examples_script_has_the_same_curve(threads, dtype, within):
    """Its own loop, with its loss imported in place of its own; `data` is (N, 1, 28, 28) there.

    In float64 to four decimals. In float32 the script with its own loss computed in float64 moves by
    2e-3 and more on some sizes: rounding decides which way a weight goes whose gradient cancels.
    """
    threads(1)
    examples = script("pytorch_examples")
    expected = examples.train(examples.loss_function, dtype=dtype)
    found = examples.train(pytorch_examples.loss_function, dtype=dtype)
    assert expected[0][1] > expected[1][1]
    for own, imported in zip(expected, found, strict=True):
        assert own == pytest.approx(imported, rel=0, abs=within)


def test_pytorch_examples_loss_reads_bytes_and_refuses_what_does_not_fit():
    recon, mu = torch.rand(3, 784), torch.randn(3, 2)
    data = torch.randint(0, 256, (3, 1, 28, 28), dtype=torch.uint8)
    found = pytorch_examples.loss_function(recon, data, mu, mu)
    expected = script("pytorch_examples").loss_function(recon, data / 255, mu, mu)
    torch.testing.assert_close(found, expected)
    with pytest.raises(ValueError, match=r"\(2, 1, 28, 28\), recon_x \(3, 784\)"):
        pytorch_examples.loss_function(recon, data[:2], mu, mu)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_loss_function_is_the_tutorials_value_and_gradient(dtype):
    torch.manual_seed(1)
    by_hand = script("by_hand").loss_function
    x = torch.rand(9, 784, dtype=dtype)
    inputs = [
        torch.rand(9, 784, dtype=dtype).clamp(1e-3, 1 - 1e-3),
        torch.randn(9, 20, dtype=dtype),
        torch.randn(9, 20, dtype=dtype),
    ]
    inputs = [t.requires_grad_() for t in inputs]
    expected, found = by_hand(x, *inputs), vae_fast.loss_function(x, *inputs)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        torch.autograd.grad(3 * found, inputs), torch.autograd.grad(3 * expected, inputs)
    )


def test_loss_function_under_autocast():
    """F.binary_cross_entropy refuses autocast; ours gives the float32 loss to bfloat16's digits."""
    torch.manual_seed(0)
    model = vae_fast.VAE(784, 400, 20)
    with torch.no_grad():
        model.decoder.fc2.weight.mul_(40)  # near-certain pixels, where bfloat16 has 1 - p = 0
        x = (torch.rand(32, 784) > 0.5).float()
        losses = []
        for enabled in (False, True):
            torch.manual_seed(3)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
                losses.append(vae_fast.loss_function(x, *model(x)))
    assert losses[1].dtype == torch.float32
    torch.testing.assert_close(losses[1], losses[0], rtol=0.01, atol=0.0)


def test_uint8_images_are_read_as_they_are():
    torch.manual_seed(0)
    x = torch.randint(0, 256, (5, 784), dtype=torch.uint8)
    x_hat, mu, logvar = vae_fast.VAE(784, 40, 4)(x / 255)
    torch.testing.assert_close(
        vae_fast.loss_function(x, x_hat, mu, logvar),
        vae_fast.loss_function(x / 255, x_hat, mu, logvar),
    )
