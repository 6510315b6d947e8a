"""Trained models for others: folders in Hugging Face's form, torch.export programs, ONNX files."""

from vae_fast.hub.export import FORMATS, export
from vae_fast.hub.pretrained import pretrained, pretrained_class
from vae_fast.hub.stable_diffusion import load_stable_diffusion

__all__ = ["FORMATS", "export", "load_stable_diffusion", "pretrained", "pretrained_class"]
