"""Builders of sequence models, hierarchies, and models with the K-sample bound."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import nn

from vae_fast.functional.checks import check_count
from vae_fast.models.builders.vectors import Choices, conditional, gaussian
from vae_fast.models.conditions import Condition, make_condition
from vae_fast.models.cvae import ConditionalIWAE
from vae_fast.models.hvae import HVAE, HierarchicalIWAE
from vae_fast.models.iwae import IWAE
from vae_fast.models.likelihoods import Categorical
from vae_fast.models.vrae import VRAE, RecurrentIWAE
from vae_fast.networks import mlp
from vae_fast.networks.chosen import NETWORKS, NetworkChoice
from vae_fast.networks.hierarchy import networks_of_hierarchy
from vae_fast.networks.recurrent import RecurrentDecoder, RecurrentEncoder, StepInput
from vae_fast.networks.sequences import step_size


def recurrent(
    input_shape: Sequence[int],
    *,
    model: Callable[..., VRAE] = VRAE,
    hidden: int = 128,
    layers: int = 1,
    embedding: int = 64,
    condition: str | Condition | None = None,
    condition_options: dict[str, Any] | None = None,
    **options: Any,
) -> nn.Module:
    """A VRAE. The likelihood defaults to categorical for tokens (T,), Gaussian for (T, F), and
    Bernoulli for images; tokens need likelihood_options={"num_classes": ...}. With any other
    likelihood, sequences of shape (T,) have one real value per step.
    """
    if options.get("likelihood") is None:
        options["likelihood"] = {1: "categorical", 2: "gaussian"}.get(len(input_shape), "bernoulli")
    for name, size in (("hidden", hidden), ("layers", layers), ("embedding", embedding)):
        check_count(name, size)
    chosen = Choices.among(options, input_shape, without=NETWORKS)
    if (chosen.likelihood_options or {}).get("standardize"):
        raise ValueError(
            "a vrae reads steps, not columns, and standardizes nothing: bring the series to a common "
            "scale before"
        )
    parts = chosen.parts()
    p_x, latent_dim = parts["likelihood"], chosen.latent_dim
    tokens = p_x.parameters_per_element if isinstance(p_x, Categorical) else None
    size = step_size(input_shape)
    y: Condition | None = None
    if condition is not None:
        y = make_condition(condition, input_shape, NetworkChoice(), **(condition_options or {}))
        if y.derive is not None:
            raise ValueError(
                f"a vrae is conditioned on labels, attributes or images given with x, not on "
                f"{condition!r}; a cvae is on either"
            )
    if chosen.prior == "vamp" and (y is not None or tokens is not None):
        raise ValueError(
            "a vamp prior's pseudo-inputs are sequences of numbers without a condition; a mixture "
            "serves tokens and conditions as well"
        )
    c = 0 if y is None else y.features
    outputs = p_x.parameters_per_element * size
    reads, writes = (StepInput(size, tokens, embedding) for _ in range(2))
    return model(
        RecurrentEncoder(reads, hidden, layers),
        RecurrentDecoder(writes, latent_dim + c, hidden, outputs, layers),
        mlp([hidden + c, hidden, chosen.features()]),
        learned_prior=chosen.made_prior(),
        condition=y,
        **parts,
        **options,
    )


def importance_weighted(
    input_shape: Sequence[int], *, of: str = "vae", **options: Any
) -> nn.Module:
    """The K-sample bound of a model, ``of`` "vae", "cvae", "hvae" or "vrae", with that model's
    options; a vae with a ``condition`` is a cvae.
    """
    builders: dict[str, Callable[..., nn.Module]] = {
        "vae": conditional(ConditionalIWAE) if "condition" in options else gaussian(IWAE),
        "cvae": conditional(ConditionalIWAE),
        "hvae": partial(hierarchical, model=HierarchicalIWAE),
        "vrae": partial(recurrent, model=RecurrentIWAE),
    }
    if of not in builders:
        raise ValueError(f"the K-sample bound is of {', '.join(builders)}, not of {of!r}")
    return builders[of](input_shape, **options)


def hierarchical(
    input_shape: Sequence[int],
    *,
    model: Callable[..., HVAE] = HVAE,
    network: str | None = None,
    levels: Sequence[Sequence[int]] | int | None = None,
    width: int = 64,
    z_channels: int = 10,
    hidden: Sequence[int] = (400,),
    **options: Any,
) -> nn.Module:
    """An HVAE with ``networks_of_hierarchy``'s options: by default an MLP of three levels."""
    chosen = Choices.among(options, input_shape, without=("latent_dim", *NETWORKS))
    if chosen.prior != "standard":
        raise ValueError(f"a hierarchy learns its own prior: leave it standard, not {chosen.prior}")
    parts = chosen.parts()
    del parts["latent_dim"]
    output_shape = chosen.output_shape()
    *ends, stages = networks_of_hierarchy(input_shape, output_shape, network, levels, width, hidden)
    return model(*ends, stages, width=width, z_channels=z_channels, **parts, **options)
