"""What people do with a trained VAE."""

from vae_fast.tasks.restore import Restored, load_model

__all__ = ["Restored", "load_model"]
