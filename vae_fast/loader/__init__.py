"""A drop-in for ``torch.utils.data.DataLoader`` that serves batches from memory where possible."""

from vae_fast.loader.loader import DataLoader

__all__ = ["DataLoader"]
