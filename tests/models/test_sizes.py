"""Sizes that no model can have: an error that names the option, and no network that learns nothing.

torch makes a layer of 0 features without a word, and what follows it is a constant.
"""

from __future__ import annotations

import pytest

from vae_fast.models import build

IMAGE, SERIES = (1, 8, 8), (5, 2)
CLASSES = {"condition_options": {"num_classes": 3}}
# model, shape, options, the option's name in the message
SIZES = [
    ("vae", IMAGE, lambda n: {"latent_dim": n}, "latent_dim"),
    ("vae", IMAGE, lambda n: {"network_options": {"hidden": [8, n]}}, "each of hidden"),
    *(
        ("vae", IMAGE, lambda n, kind=kind: {
            "network": kind, "network_options": {"channels": [n, 8]}}, "each of channels")
        for kind in ("conv", "resnet")
    ),
    ("vae", IMAGE, lambda n: {"network": "conv", "network_options": {"hidden": n}}, "an MLP's sizes"),
    ("vae", IMAGE, lambda n: {"prior": "vamp", "prior_options": {"components": n}}, "components"),
    ("vae", IMAGE, lambda n: {"posterior": "iaf", "posterior_options": {"hidden": [n]}}, "hidden"),
    ("vae", IMAGE, lambda n: {"posterior": "iaf", "posterior_options": {"steps": n}}, "steps"),
    ("vae", IMAGE, lambda n: {"objective": "miwae", "objective_options": {"samples": n}}, "samples"),
    *(("vae", IMAGE, lambda n, kind=kind, name=name: {
        "objective": kind, "objective_options": {name: n}}, name)
      for kind, names in {
          "vae-gan": ("channels", "layers"), "latent-diffusion": ("channels", "layers"),
          "hamiltonian": ("leaps",), "riemannian": ("leaps", "anchors", "iterations"),
      }.items() for name in names),
    *(("vae", IMAGE, lambda n, kind=kind: {
        "objective": kind, "objective_options": {"hidden": [n]}}, "each of hidden")
      for kind in ("factor", "riemannian")),
    ("iwae", IMAGE, lambda n: {"num_samples": n}, "num_samples"),
    ("aae", IMAGE, lambda n: {"discriminator_hidden": [n]}, "each of discriminator_hidden"),
    ("cvae", IMAGE, lambda n: {"hidden": n, **CLASSES}, "hidden|an MLP's sizes"),
    ("cvae", IMAGE, lambda n: {"condition_options": {"num_classes": n}}, "num_classes"),
    ("cvae", IMAGE, lambda n: {"condition": "attributes", "condition_options": {"size": n}}, "size"),
    ("ssvae", IMAGE, lambda n: {"hidden": n, **CLASSES}, "hidden|an MLP's sizes"),
    ("hvae", IMAGE, lambda n: {"levels": n, "network": "mlp"}, "levels"),
    ("hvae", IMAGE, lambda n: {"width": n}, "width"),
    ("hvae", IMAGE, lambda n: {"z_channels": n}, "z_channels"),
    ("hvae", IMAGE, lambda n: {"hidden": [n]}, "each of hidden"),
    ("hvae", IMAGE, lambda n: {"network": "conv", "levels": [(1, n), (4, 1)]}, "levels are pairs"),
    *(("vrae", SERIES, lambda n, name=name: {name: n}, name)
      for name in ("hidden", "layers", "embedding", "latent_dim")),
    *(("vq-vae", (20,), lambda n, name=name: {name: n}, name) for name in ("code_dim", "places")),
    *(("vq-vae", IMAGE, lambda n, name=name: {"quantizer_options": {name: n}}, name)
      for name in ("groups", "size", "heads")),
    ("vq-vae", IMAGE, lambda n: {"quantizer": "rvq", "quantizer_options": {"layers": n}}, "layers"),
    ("vq-vae", IMAGE, lambda n: {"quantizer": "fsq", "quantizer_options": {"levels": [4, n]}}, "levels"),
    *(("autoencoder-kl", IMAGE, lambda n, name=name: {name: n}, name)
      for name in ("channels", "z_channels", "blocks")),
]  # fmt: skip


@pytest.mark.parametrize("size", [0, -1, 2.5])
def test_an_impossible_size_is_named(size):
    for model, shape, options, words in SIZES:
        with pytest.raises((ValueError, TypeError), match=rf"({words}).*{size}"):
            build(model, shape, **options(size))
            pytest.fail(f"{model} was built with {options(size)}")


def test_sequences_of_sizes_are_sequences():
    for options in (
        {"network_options": {"hidden": 400}},
        {"network_options": {"hidden": "400"}},
        {"network": "conv", "network_options": {"channels": 32}},
    ):
        with pytest.raises(
            TypeError, match="(hidden|channels) must be a sequence of whole numbers"
        ):
            build("vae", IMAGE, **options)
    for levels in ([], [1, 2], 3, "a"):
        with pytest.raises(TypeError, match=r"are pairs \(height, count\), got"):
            build("hvae", IMAGE, network="conv", levels=levels)
    with pytest.raises(TypeError, match="levels of an mlp must be a whole number"):
        build("hvae", IMAGE, network="mlp", levels=[(1, 1)])
    with pytest.raises(TypeError, match="levels must be a sequence"):
        build("vq-vae", IMAGE, quantizer="fsq", quantizer_options={"levels": 8})
