"""The models that pythae has too: ours by name, and pythae's of the same networks, where installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Pair(NamedTuple):
    """A model of ours and pythae's of the same kind.

    ``model``, ``args``, ``beta``: our model. ``theirs``: pythae's class. ``options``: those of its
    configuration. ``nll``: what can compute pythae's log-likelihood: "ours" (its posterior is a
    Gaussian, so its networks are evaluated in our model), "theirs" (its own ``get_nll``) or "".
    ``step``: more arguments of ours, for a step that computes what pythae's does.
    """

    model: str
    args: dict[str, Any]
    theirs: str
    options: dict[str, Any]
    beta: float = 1.0
    nll: str = ""
    step: Mapping[str, Any] = MappingProxyType({})


def _objective(name: str, **options: Any) -> dict[str, Any]:
    return {"objective": name, "objective_options": options}


def _posterior(name: str, **options: Any) -> dict[str, Any]:
    return {"posterior": name, "posterior_options": options}


PAIRS: dict[str, Pair] = {
    "AE": Pair("ae", {}, "AE", {}),
    "VAE": Pair("vae", {}, "VAE", {}, nll="ours"),
    "beta-VAE": Pair("beta-vae", {}, "BetaVAE", {"beta": 4.0}, beta=4.0, nll="ours"),
    "capacity": Pair(
        "vae", _objective("capacity", capacity=25.0, gamma=10.0, rise=0), "DisentangledBetaVAE",
        {"beta": 10.0, "C": 25.0, "warmup_epoch": 1}, nll="ours",
    ),
    "beta-TCVAE": Pair(
        "beta-tcvae", {"dataset_size": 10_000}, "BetaTCVAE", {"beta": 6.0}, beta=6.0, nll="ours"
    ),
    "FactorVAE": Pair(
        "vae", _objective("factor", gamma=6.4, hidden=[200, 200]), "FactorVAE", {"gamma": 6.4},
        nll="ours",
        step=_objective("factor", gamma=6.4, hidden=[200, 200], simultaneous=True),
    ),
    "InfoVAE": Pair(
        "infovae", {"alpha": 0.5, "mmd_weight": 100.0}, "INFOVAE_MMD", {"alpha": 0.5, "lbd": 100.0},
        nll="ours",
    ),
    "VampPrior": Pair(
        "vamp-vae", {"prior_options": {"components": 100}}, "VAMP", {"number_components": 100},
        nll="ours",
    ),
    "IWAE": Pair("iwae", {"num_samples": 8}, "IWAE", {"number_samples": 8}, nll="ours"),
    "MIWAE": Pair(
        "vae", _objective("miwae", samples=4, estimates=4), "MIWAE",
        {"number_samples": 4, "number_gradient_estimates": 4}, nll="ours",
    ),
    "PIWAE": Pair(
        "vae", _objective("piwae", samples=4, estimates=4), "PIWAE",
        {"number_samples": 4, "number_gradient_estimates": 4}, nll="ours",
    ),
    "CIWAE": Pair(
        "vae", _objective("ciwae", samples=8, mix=0.5), "CIWAE", {"number_samples": 8, "beta": 0.5},
        nll="ours",
    ),
    "planar flows": Pair(
        "vae", _posterior("planar", steps=4), "VAE_LinNF", {"flows": ["Planar"] * 4}, nll="theirs"
    ),
    "radial flows": Pair(
        "vae", _posterior("radial", steps=4), "VAE_LinNF", {"flows": ["Radial"] * 4}, nll="theirs"
    ),
    "IAF": Pair(
        "vae", _posterior("iaf", steps=2, hidden=[128, 128]), "VAE_IAF",
        {"n_made_blocks": 2, "n_hidden_in_made": 2, "hidden_size": 128}, nll="theirs",
    ),
    "hyperspherical": Pair("vae", _posterior("vmf"), "SVAE", {}, nll="ours"),
    "Poincaré": Pair(
        "vae", _posterior("poincare"), "PoincareVAE",
        {"prior_distribution": "wrapped_normal", "posterior_distribution": "wrapped_normal"},
        nll="theirs",
    ),
    "Hamiltonian": Pair(
        "vae", _objective("hamiltonian", leaps=3, step=1e-3), "HVAE", {"n_lf": 3, "eps_lf": 1e-3},
        nll="ours",
    ),
    "Riemannian": Pair(
        "vae", _objective("riemannian", leaps=3, step=1e-3), "RHVAE", {"n_lf": 3, "eps_lf": 1e-3},
        nll="ours",
    ),
    "WAE-MMD": Pair("wae-mmd", {}, "WAE_MMD", {"reg_weight": 10.0}, beta=10.0),
    "AAE": Pair("aae", {"discriminator_hidden": [200, 200]}, "Adversarial_AE",
                {"deterministic_posterior": True}, step={"simultaneous": True}),
    "VAE-GAN": Pair("vae", _objective("vae-gan", channels=16), "VAEGAN", {}),
    "VQ-VAE": Pair(
        "vq-vae",
        {"network": "mlp", "places": 4, "code_dim": 8, "quantizer_options": {
            "size": 512, "kmeans": 0, "dead_below": 0.0}},
        "VQVAE", {"num_embeddings": 512, "use_ema": True},
    ),
    "RAE-L2": Pair("ae", _objective("rae-l2"), "RAE_L2", {}),
    "RAE-GP": Pair("ae", _objective("rae-gp"), "RAE_GP", {}),
    "MS-SSIM": Pair("vae", _objective("ms-ssim"), "MSSSIM_VAE", {}),
}  # fmt: skip


def absence() -> str | None:
    """Why pythae can't take part, or None."""
    if importlib.util.find_spec("pythae") is None:
        return "pythae is not installed (pip install pythae==0.1.2)"
    try:
        import pythae.models
        import pythae.trainers  # noqa: F401
    except Exception as error:  # noqa: BLE001 - it is old, and its imports may fail
        return f"pythae does not import ({type(error).__name__}: {error})"
    return None


def options_of(pair: Pair, latent_dim: int, hidden: Sequence[int]) -> dict[str, Any]:
    """Our model's arguments: the pair's, and the networks that all share."""
    shared: dict[str, Any] = {"network_options": {"hidden": list(hidden)}}
    if pair.model != "vq-vae":
        shared["latent_dim"] = latent_dim
    return {**shared, **pair.args}


def theirs(pair: Pair, ours: nn.Module) -> nn.Module:
    """pythae's model around the encoder, decoder and discriminator of ``ours``."""
    from pythae import models

    found = getattr(models, pair.theirs)
    suffix = "Config" if hasattr(models, f"{pair.theirs}Config") else "_Config"
    config_class = getattr(models, pair.theirs + suffix)
    shape = tuple(ours.input_shape)
    known = config_class.__dataclass_fields__
    vectors = pair.theirs == "VQVAE"
    dim = ours.latent_shape[0] if vectors else ours.latent_dim
    common = {"input_dim": shape, "latent_dim": dim, "reconstruction_loss": "bce"}
    chosen = {k: v for k, v in {**common, **pair.options}.items() if k in known}
    parts = networks(ours, logits=pair.theirs == "HVAE")
    if hasattr(found, "set_discriminator"):
        judge = ours.objective.discriminator if ours.objective is not None else ours.discriminator
        wrap = of_images if pair.theirs == "VAEGAN" else of_codes
        judge = wrap(judge, two=pair.theirs == "FactorVAE")
        if pair.theirs != "FactorVAE":
            parts["discriminator"] = judge
    made = found(config_class(**chosen), **parts)
    if pair.theirs == "FactorVAE":
        made.set_discriminator(judge)
    return made


def networks(ours: nn.Module, *, logits: bool = False) -> dict[str, nn.Module]:
    """Our networks by pythae's interface; the decoder gives probabilities, or logits if asked."""
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder

    maps = getattr(ours, "latent_shape", None)
    dim = ours.latent_dim

    class Encoder(BaseEncoder):
        def __init__(self) -> None:
            super().__init__()
            self.latent_dim, self.network = dim, ours.encoder

        def forward(self, x: Tensor) -> ModelOutput:
            h = self.network(x)
            if maps is not None:
                return ModelOutput(embedding=h.view(len(h), maps[0], -1, 1))
            if h.shape[1] == dim:
                zeros = torch.zeros_like(h)  # for a deterministic posterior
                return ModelOutput(embedding=h, log_covariance=zeros)
            mu, logvar = h.chunk(2, 1)
            mean = logvar.mean(1, keepdim=True)
            return ModelOutput(embedding=mu, log_covariance=logvar, log_concentration=mean)

    class Decoder(BaseDecoder):
        def __init__(self) -> None:
            super().__init__()
            self.network = ours.decoder

        def forward(self, z: Tensor) -> ModelOutput:
            params = self.network(z.flatten(1))
            return ModelOutput(reconstruction=params if logits else ours.likelihood.mean(params))

    return {"encoder": Encoder(), "decoder": Decoder()}


def of_codes(judge: nn.Module, two: bool) -> nn.Module:
    """A discriminator of z: two logits (FactorVAE's, a plain tensor), or a probability."""
    return _judge(judge, lambda h: h if two else torch.sigmoid(h), None, plain=two)


def of_images(judge: nn.Sequential, two: bool) -> nn.Module:
    """A discriminator of images with its features, one probability an image."""
    head = lambda h: torch.sigmoid(judge[-1](h).flatten(1).mean(1))
    return _judge(judge, head, judge[:-1])


def _judge(
    judge: nn.Module, head: Callable[[Tensor], Tensor], body: nn.Module | None, plain: bool = False
) -> nn.Module:
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDiscriminator

    class Discriminator(BaseDiscriminator):
        def __init__(self) -> None:
            super().__init__()
            self.network, self.depth = judge, 2  # the levels that pythae asks about

        def forward(self, x: Tensor, output_layer_levels: list[int] | None = None) -> Any:
            features = (judge if body is None else body)(x)
            if plain:
                return head(features)
            found = {f"embedding_layer_{level}": features for level in output_layer_levels or ()}
            return ModelOutput(embedding=None if found else head(features), **found)

    return Discriminator()


def trainer(model: nn.Module, data: Any, folder: str, **options: Any) -> Any:
    """pythae's trainer for the model's kind, prepared, on the CPU."""
    from pythae import trainers

    kinds = {"VAEGAN": "CoupledOptimizerAdversarialTrainer", "FactorVAE": "AdversarialTrainer",
             "Adversarial_AE": "AdversarialTrainer"}  # fmt: skip
    name = kinds.get(model.model_name, "BaseTrainer")
    given = {**options, "output_dir": folder, "no_cuda": True}
    rate = given.pop("learning_rate")
    if name == "BaseTrainer":
        given["learning_rate"] = rate
    elif name == "AdversarialTrainer":
        given |= {"autoencoder_learning_rate": rate, "discriminator_learning_rate": rate}
    else:
        given |= {f"{p}_learning_rate": rate for p in ("encoder", "decoder", "discriminator")}
    config = getattr(trainers, f"{name}Config")(**given)
    made = getattr(trainers, name)(model, data, training_config=config)
    made.prepare_training()
    return made
