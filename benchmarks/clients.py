"""Training in other libraries, with vae_fast.patch and without, in turns: python -m benchmarks.clients

A library that isn't installed is left out. Times are medians over rounds, in milliseconds.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import statistics
import time
import warnings
from collections.abc import Callable

import torch

import vae_fast
from vae_fast.patches import Patch

WAYS = ("without", "torch", "native")  # no patch, or the patch with that noise


def patched(library: str, way: str) -> Patch | None:
    return None if way == "without" else vae_fast.patch(library, noise=way)


def compare(name: str, library: str, measure: Callable[[], float], rounds: int) -> None:
    """Print one row: the seconds that ``measure`` gives, for each way, and the ratios."""
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(rounds):
        for way in WAYS:
            patch = patched(library, way)
            times[way].append(measure())
            if patch is not None:
                patch.undo()
    without, *others = (statistics.median(times[way]) for way in WAYS)
    row = [f"{name:24} {1e3 * without:9.2f}"]
    row += [f"{1e3 * t:9.2f} {without / t:6.2f}x" for t in others]
    print(" ".join(row), flush=True)


def pythae(rounds: int) -> None:
    from pythae import models

    cases = {
        "VAE": ({}, 30, 128),
        "BetaVAE": ({}, 30, 128),
        "IWAE": ({"number_samples": 10}, 6, 128),
        "BetaTCVAE": ({}, 30, 128),
        "BetaTCVAE ": ({}, 10, 512),
    }
    for name, (options, steps, batch) in cases.items():
        config = getattr(models, f"{name.strip()}Config")(
            input_dim=(1, 28, 28), latent_dim=16, reconstruction_loss="bce", **options
        )
        torch.manual_seed(0)
        model = getattr(models, name.strip())(config)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        x = torch.rand(batch, 1, 28, 28)

        def step(model=model, optimizer=optimizer, x=x) -> None:
            loss = model({"data": x}, dataset_size=60000, epoch=1).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        def measure(steps=steps, step=step) -> float:
            step()
            start = time.perf_counter()
            for _ in range(steps):
                step()
            return (time.perf_counter() - start) / steps

        compare(f"pythae {name.strip()} {batch}", "pythae", measure, rounds)


def scvi(rounds: int) -> None:
    """An epoch of SCVI.train over 2,000 cells and 2,000 genes, batches of 128, without its start."""
    import anndata
    import numpy as np
    import scvi as library

    library.settings.verbosity = 0
    for name in ("lightning.pytorch", "pytorch_lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    draw = np.random.default_rng(0)
    rate = draw.gamma(0.3, 1.0, (1, 2000)) * draw.gamma(2.0, 0.5, (2000, 1))
    counts = draw.poisson(rate * draw.gamma(1.0, 1.0, (2000, 2000)) * 0.5).astype(np.float32)
    for likelihood in ("nb", "zinb"):

        def measure(likelihood=likelihood) -> float:
            data = anndata.AnnData(counts.copy())
            library.model.SCVI.setup_anndata(data)
            model = library.model.SCVI(data, gene_likelihood=likelihood)
            spent = []
            for epochs in (1, 1, 4):  # the first run warms up, the second is mostly its start
                start = time.perf_counter()
                model.train(
                    max_epochs=epochs, train_size=1.0, batch_size=128, accelerator="cpu",
                    enable_progress_bar=False, logger=False, enable_checkpointing=False,
                )  # fmt: skip
                spent.append(time.perf_counter() - start)
            return (spent[2] - spent[1]) / 3

        compare(f"scvi-tools SCVI {likelihood}", "scvi", measure, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("libraries", nargs="*", default=["pythae", "scvi"])
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args()
    warnings.simplefilter("ignore")
    print(f"{'':24} {'without':>9} {'torch noise':>17} {'native noise':>17}")
    for name in chosen.libraries:
        if importlib.util.find_spec(name) is None:
            print(f"{name} is not installed")
        else:
            {"pythae": pythae, "scvi": scvi}[name](chosen.rounds)


if __name__ == "__main__":
    main()
