"""The tutorial's training script, everything spelt out. `imported.py` is this script with its
definitions and its loader imported instead; tests/test_tutorial_script.py compares the two.
"""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from vae_fast.data.embedded import read_fashion10k

# --- model: begin ---


class Encoder(nn.Module):
    def __init__(self, input_dim, hidden_dim, latent_dim):
        super().__init__()
        self.fc1 = nn.Linear(input_dim, hidden_dim)
        self.fc_mu = nn.Linear(hidden_dim, latent_dim)
        self.fc_logvar = nn.Linear(hidden_dim, latent_dim)

    def forward(self, x):
        h = F.relu(self.fc1(x))
        return self.fc_mu(h), self.fc_logvar(h)


class Decoder(nn.Module):
    def __init__(self, latent_dim, hidden_dim, output_dim):
        super().__init__()
        self.fc1 = nn.Linear(latent_dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, output_dim)

    def forward(self, z):
        return torch.sigmoid(self.fc2(F.relu(self.fc1(z))))


class VAE(nn.Module):
    def __init__(self, input_dim, hidden_dim, latent_dim):
        super().__init__()
        self.encoder = Encoder(input_dim, hidden_dim, latent_dim)
        self.decoder = Decoder(latent_dim, hidden_dim, input_dim)

    def forward(self, x):
        mu, logvar = self.encoder(x)
        std = torch.exp(0.5 * logvar)
        z = mu + std * torch.randn_like(std)
        return self.decoder(z), mu, logvar


def loss_function(x, x_hat, mu, logvar):
    bce = F.binary_cross_entropy(x_hat, x, reduction="sum")
    kld = -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())
    return bce + kld


# --- model: end ---


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
