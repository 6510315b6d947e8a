"""`by_hand.py` with nothing changed but that the model's names and the loader are imported."""

import torch
from torch.utils.data import TensorDataset

from vae_fast import VAE, DataLoader, loss_function
from vae_fast.data.embedded import read_fashion10k


def train(epochs=3, batch_size=128, seed=0):
    """The mean loss of each epoch, in nats per sample."""
    images = torch.from_numpy(read_fashion10k()["train_images"])
    dataset = TensorDataset(images.float().view(-1, 784) / 255)
    order = torch.Generator().manual_seed(seed)
    loader = DataLoader(dataset, batch_size=batch_size, shuffle=True, generator=order)

    torch.manual_seed(seed)
    model = VAE(784, 400, 20)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    curve = []
    model.train()
    for _ in range(epochs):
        total = 0.0
        for (x,) in loader:
            optimizer.zero_grad()
            x_hat, mu, logvar = model(x)
            loss = loss_function(x, x_hat, mu, logvar)
            loss.backward()
            optimizer.step()
            total += loss.item()
        curve.append(total / len(dataset))
    return curve


if __name__ == "__main__":
    for epoch, loss in enumerate(train(), start=1):
        print(f"epoch {epoch}: {loss:.2f} nats per sample")
