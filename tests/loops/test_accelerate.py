"""accelerate's loop over our models is a loop by hand, and goes on to the same bits from its states."""

import copy

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

accelerate = pytest.importorskip(
    "accelerate", reason="accelerate is not installed: pip install accelerate"
)

from vae_fast.models import build

X = torch.rand(32, 1, 6, 6, generator=torch.Generator().manual_seed(1))


def test_a_loop_and_its_states(tmp_path):
    torch.manual_seed(0)
    model = build("vae", (1, 6, 6), latent_dim=2, network_options={"hidden": [8]})
    by_hand = copy.deepcopy(model)
    accelerator = accelerate.Accelerator(gradient_accumulation_steps=2, cpu=True)
    loader = DataLoader(TensorDataset(X), batch_size=8, generator=torch.Generator())
    model, optimizer, loader = accelerator.prepare(
        model, torch.optim.Adam(model.parameters(), lr=0.01), loader
    )

    def epoch():
        for (x,) in loader:
            with accelerator.accumulate(model):
                accelerator.backward(model(x, beta=0.5).loss)
                optimizer.step()
                optimizer.zero_grad()
        return [p.detach().clone() for p in model.parameters()]

    torch.manual_seed(3)
    first = epoch()
    plain = torch.optim.Adam(by_hand.parameters(), lr=0.01)
    torch.manual_seed(3)
    for number, x in enumerate(X.split(8)):
        (by_hand.loss(x, beta=0.5).loss / 2).backward()
        if number % 2:
            plain.step()
            plain.zero_grad()
    for a, b in zip(first, by_hand.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
    accelerator.save_state(tmp_path / "state")
    second = epoch()
    epoch()
    accelerator.load_state(tmp_path / "state")  # weights, Adam, and the generator of the noise
    assert all(map(torch.equal, second, epoch()))
    assert type(accelerator.unwrap_model(model)) is type(by_hand)
