"""The structure of pytorch/examples' VAE script: one class with flat names, the loss in its order and
with its reshaping, and its printed curve.
"""

import torch
import torch.nn.functional as F
from torch import nn, optim
from torch.utils.data import DataLoader, TensorDataset

from vae_fast.data.embedded import read_fashion10k


class VAE(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(784, 400)
        self.fc21 = nn.Linear(400, 20)
        self.fc22 = nn.Linear(400, 20)
        self.fc3 = nn.Linear(20, 400)
        self.fc4 = nn.Linear(400, 784)

    def forward(self, x):
        h = F.relu(self.fc1(x.view(-1, 784)))
        mu, logvar = self.fc21(h), self.fc22(h)
        std = torch.exp(0.5 * logvar)
        z = mu + std * torch.randn_like(std)
        return torch.sigmoid(self.fc4(F.relu(self.fc3(z)))), mu, logvar


def loss_function(recon_x, x, mu, logvar):
    bce = F.binary_cross_entropy(recon_x, x.view(-1, 784), reduction="sum")
    kld = -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())
    return bce + kld


def train(loss_function, epochs=2, images=1000, seed=1, dtype=torch.float32):
    """The curve as the script prints it: each epoch's mean training and test loss."""
    torch.manual_seed(seed)
    pictures = torch.from_numpy(read_fashion10k()["train_images"][: images + 500])
    pictures = pictures.to(dtype).div(255).view(-1, 1, 28, 28)
    train_loader = DataLoader(TensorDataset(pictures[:images]), batch_size=128, shuffle=True)
    test_loader = DataLoader(TensorDataset(pictures[images:]), batch_size=128)
    model = VAE().to(dtype)
    optimizer = optim.Adam(model.parameters(), lr=1e-3)
    curve = []
    for _ in range(epochs):
        model.train()
        train_loss = 0
        for (data,) in train_loader:
            optimizer.zero_grad()
            recon_batch, mu, logvar = model(data)
            loss = loss_function(recon_batch, data, mu, logvar)
            loss.backward()
            train_loss += loss.item()
            optimizer.step()
        model.eval()
        test_loss = 0
        with torch.no_grad():
            for (data,) in test_loader:
                recon_batch, mu, logvar = model(data)
                test_loss += loss_function(recon_batch, data, mu, logvar).item()
        curve.append((train_loss / images, test_loss / 500))
    return curve
