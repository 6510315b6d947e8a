"""Counts of cells and genes: cell types found without labels, and the same under batch effects.

    python examples/counts.py FOLDER

generates a sparse matrix of counts with known cell types and two batches (laboratories). It trains a
VAE with a zero-inflated negative binomial likelihood on it, and a CVAE that is told the batch. Then
it clusters the latent codes and prints how well the clusters match the cell types (adjusted Rand
index: 1 is perfect, 0 is chance). The picture shows both latent spaces, by UMAP if umap-learn is
installed, else by principal components.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vae_fast import tasks
from vae_fast.data import as_data
from vae_fast.train import TrainConfig, Trainer

TYPES, LABS = 6, 2


def cells(count: int = 3000, genes: int = 500, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Counts (count, genes) as a sparse CSR tensor, the type and the batch of each cell.

    A cell's rates are its type's rates times its batch's effect on each gene times its depth. Counts
    are negative binomial, and some of them are set to 0, as in single-cell sequencing.
    """
    draw = np.random.default_rng(seed)
    kind, lab = draw.integers(0, TYPES, count), draw.integers(0, LABS, count)
    base = draw.normal(-1.2, 1.0, genes)
    marks = (draw.random((TYPES, genes)) < 0.08) * draw.normal(1.5, 0.3, (TYPES, genes))
    effect = 1.2 * draw.normal(size=(LABS, genes))
    depth = draw.normal(0.0, 0.3, (count, 1))
    rate = np.exp(base + marks[kind] + effect[lab] + depth)
    x = draw.poisson(rate * draw.gamma(2.0, 1 / 2.0, rate.shape)) * (draw.random(rate.shape) > 0.2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that sparse CSR is in beta
        x = torch.from_numpy(x.astype(np.float32)).to_sparse_csr()
    return x, torch.from_numpy(kind), torch.from_numpy(lab)


def train(name: str, x: Tensor, lab: Tensor, folder: Path, epochs: int) -> Tensor:
    """Train a vae or a cvae (told the batch) on the counts; the codes of all cells."""
    config = TrainConfig(
        model=name,
        model_args={
            "latent_dim": 10,
            "likelihood": "zero_inflated_negative_binomial",
            "network_options": {"hidden": [128]},
        },
        epochs=epochs,
        lr=2e-3,
        objective=warm(epochs),
        device="cpu",
        out=str(folder / name),
    )
    if name == "cvae":
        config.model_args["condition_options"] = {"num_classes": LABS}
    data = as_data((x, lab), bounded=False)
    held = len(data) // 10
    Trainer(config, train_data=data.slice(held, len(data)), val_data=data.slice(0, held)).fit()
    model = tasks.load_model(folder / name).model
    return tasks.encode(model, data.images, lab if name == "cvae" else None)


def warm(epochs: int):
    from vae_fast.train import ObjectiveConfig

    return ObjectiveConfig(schedule="linear", period=max(1.0, epochs / 3))


def clusters(codes: Tensor, k: int, seed: int = 0, starts: int = 20) -> Tensor:
    """Cluster numbers (N,): the best of several k-means runs that start at points far apart."""
    g = torch.Generator().manual_seed(seed)
    best, found = float("inf"), None
    for _ in range(starts):
        centers = codes[torch.randint(len(codes), (1,), generator=g)]
        while len(centers) < k:
            near = torch.cdist(codes, centers).amin(1).square()
            centers = torch.cat([centers, codes[torch.multinomial(near, 1, generator=g)]])
        for _ in range(50):
            own = torch.cdist(codes, centers).argmin(1)
            sums = torch.zeros_like(centers).index_add_(0, own, codes)
            centers = sums / own.bincount(minlength=k).clamp_min(1)[:, None]
        cost = float(torch.cdist(codes, centers).amin(1).square().sum())
        if cost < best:
            best, found = cost, own
    return found


def rand_index(one: Tensor, other: Tensor) -> float:
    """The adjusted Rand index of two partitions (Hubert and Arabie 1985)."""
    table = torch.zeros(int(one.max()) + 1, int(other.max()) + 1, dtype=torch.float64)
    table.index_put_((one, other), torch.ones((), dtype=torch.float64), accumulate=True)

    def pairs(counts: Tensor) -> float:
        return float((counts * (counts - 1) / 2).sum())

    both, rows, columns = pairs(table), pairs(table.sum(1)), pairs(table.sum(0))
    chance = rows * columns / (len(one) * (len(one) - 1) / 2)
    return (both - chance) / ((rows + columns) / 2 - chance)


def plane(codes: Tensor) -> tuple[np.ndarray, str]:
    """Two coordinates of each code, and how they were made."""
    try:
        import umap
    except ModuleNotFoundError:
        centered = codes - codes.mean(0)
        _, _, axes = torch.linalg.svd(centered, full_matrices=False)
        return (centered @ axes[:2].T).numpy(), "principal components"
    return umap.UMAP(random_state=0, n_jobs=1).fit_transform(codes.numpy()), "UMAP"


def draw(path: Path, codes: dict[str, Tensor], kind: Tensor, lab: Tensor) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(9, 8.4), layout="constrained")
    for row, (name, z) in zip(axes, codes.items(), strict=True):
        at, how = plane(z)
        # In random order, so that no group covers the others.
        order = np.random.default_rng(0).permutation(len(at))
        for ax, colors, what, shades in zip(
            row, (kind, lab), ("cell type", "batch"), ("tab10", "coolwarm"), strict=True
        ):
            ax.scatter(*at[order].T, c=colors.numpy()[order], s=3, cmap=shades)
            ax.set_title(f"{name}: coloured by {what} ({how})", loc="left", fontsize=10)
            ax.set(xticks=[], yticks=[])
            ax.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(folder: Path, count: int = 3000, epochs: int = 40) -> dict[str, float]:
    """Adjusted Rand indices: of the clusters with the types, and with the batches."""
    folder.mkdir(parents=True, exist_ok=True)
    x, kind, lab = cells(count)
    print(f"{count} cells, {x.shape[1]} genes, {1 - x.values().numel() / x.numel():.0%} zeros")
    codes = {name: train(name, x, lab, folder, epochs) for name in ("vae", "cvae")}
    found = {}
    for name, z in codes.items():
        own = clusters(z, TYPES)
        found[f"{name}: clusters and cell types"] = rand_index(own, kind)
        found[f"{name}: clusters and batches"] = rand_index(own, lab)
    draw(folder / "latent.png", codes, kind, lab)
    return found


if __name__ == "__main__":
    for what, index in main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/counts")).items():
        print(f"{what:36s} {index:.3f}")
