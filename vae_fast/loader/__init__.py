"""A drop-in for ``torch.utils.data.DataLoader`` that serves what it can from memory."""

from vae_fast.loader.loader import DataLoader

__all__ = ["DataLoader"]
