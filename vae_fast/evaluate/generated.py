"""How similar samples are to data, by the features of a given network."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vae_fast.functional.checks import check_count, check_finite
from vae_fast.import_paths import imported
from vae_fast.models.interface import uses_labels
from vae_fast.tasks.batched import in_batches


def network_features(network: nn.Module, x: Tensor, *, batch_size: int = 256) -> Tensor:
    """The outputs of ``network`` for each sample, (N, F): flattened, on x's device, in float64."""
    return in_batches(
        network, lambda part: network(part).flatten(1), x, batch_size=batch_size
    ).double()


def feature_network(name: str, device: str = "auto") -> nn.Module:
    """The network that ``name`` stands for, in evaluation mode.

    Args:
        name: ``package.module:Class`` or the folder of a run. The class is a torch.nn.Module that is
            built without arguments. It takes what the evaluated model's encoder takes, such as
            images (N, C, H, W) in [0, 1]. The features of a run are its model's codes.

    Raises:
        ValueError: it is neither.
    """
    from vae_fast.tasks import load_model
    from vae_fast.train.config import resolve_device

    if ":" in name and not Path(name).is_dir():
        made = imported(name, "the features' network", nn.Module, "a subclass of nn.Module")()
        return made.to(resolve_device(device)).eval()
    if not (Path(name) / "config.yaml").is_file():
        raise ValueError(
            f"features come from a network by its import path (package.module:Class) or from a run's "
            f"folder, but {name!r} is neither"
        )
    return _Codes(load_model(name, device=device).model)


class _Codes(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        if uses_labels(model):
            raise ValueError("features come from a model that sees samples alone, without labels")
        self.model: Any = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model.features(x)


def of_samples(
    model: Any, network: nn.Module, x: Tensor, y: Tensor | None = None, *, seed: int = 0
) -> dict[str, float]:
    """``frechet_distance`` and ``precision_recall`` between x and as many samples of the model.

    Args:
        x: data (N, *input_shape). y: what the samples of a conditional model are conditioned on.
        network: takes what the model's encoder takes: images in [0, 1].
    """
    from vae_fast.tasks import generate

    made = generate(model, len(x), y, seed=seed)
    real = network_features(network, in_batches(model, model.network_input, x))
    fake = network_features(
        network, in_batches(model, lambda part: model.as_input(part, x.dtype), made)
    )
    near = precision_recall(real, fake)
    return {
        "frechet_distance": frechet_distance(real, fake),
        "precision": near.precision,
        "recall": near.recall,
    }


def frechet_distance(real: Tensor, made: Tensor) -> float:
    """|m - m'|^2 + tr(C + C' - 2 (C C')^(1/2)) of means and covariances of features (N, F).

    Heusel et al. 2017, equation 6: the FID if the features are Inception's. It decreases with the
    number of samples, so compare equal numbers.
    """
    _check(real, made)
    (m, c), (m2, c2) = (_moments(t) for t in (real, made))
    values, vectors = torch.linalg.eigh(c)
    root = vectors * values.clamp_min(0).sqrt() @ vectors.t()
    # (C C')^(1/2) has the eigenvalues of (C^(1/2) C' C^(1/2))^(1/2), which is symmetric.
    between = torch.linalg.eigvalsh(root @ c2 @ root).clamp_min(0).sqrt().sum()
    return float((m - m2).square().sum() + c.trace() + c2.trace() - 2 * between)


class PrecisionRecall(NamedTuple):
    """The fraction of made samples that lie among the data, and of data that lie among the made
    samples."""

    precision: float
    recall: float


def precision_recall(real: Tensor, made: Tensor, *, k: int = 3) -> PrecisionRecall:
    """Precision and recall of samples (Kynkaanniemi et al. 2019, equation 2).

    A point lies among others if its distance to one of them is at most that one's distance to its
    k-th neighbour.

    Args:
        real, made: features (N, F) and (M, F), more than k each.
    """
    _check(real, made)
    check_count("k", k)
    if min(len(real), len(made)) <= k:
        raise ValueError(
            f"k must be below the numbers of samples, {len(real)} and {len(made)}; got {k}"
        )
    return PrecisionRecall(_share_near(made, real, k), _share_near(real, made, k))


def _share_near(points: Tensor, others: Tensor, k: int, chunk: int = 1024) -> float:
    """The share of ``points`` that lie nearer to one of ``others`` than its k-th neighbour does."""
    radius = torch.cat(
        [torch.cdist(part, others).kthvalue(k + 1, 1).values for part in others.split(chunk)]
    )
    inside = [(torch.cdist(part, others) <= radius).any(1) for part in points.split(chunk)]
    return float(torch.cat(inside).double().mean())


def _moments(t: Tensor) -> tuple[Tensor, Tensor]:
    t = t.double()
    return t.mean(0), torch.cov(t.t()).view(t.shape[1], t.shape[1])


def _check(real: Tensor, made: Tensor) -> None:
    if real.dim() != 2 or made.dim() != 2 or real.shape[1] != made.shape[1]:
        raise ValueError(
            f"features must be (N, F) and (M, F) with one F, got {tuple(real.shape)} and "
            f"{tuple(made.shape)}"
        )
    if min(len(real), len(made)) < 2:
        raise ValueError(
            "at least two samples of the data and two of the model are needed, got "
            f"{len(real)} and {len(made)}"
        )
    check_finite("features of the data", real)
    check_finite("features of the made samples", made)
