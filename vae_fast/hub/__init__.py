"""Trained models for others: folders in Hugging Face's form, torch.export programs, ONNX files."""

from vae_fast.hub.export import FORMATS, export
from vae_fast.hub.pretrained import pretrained, pretrained_class

__all__ = ["FORMATS", "export", "pretrained", "pretrained_class"]
