"""An epoch of scvi-tools' own SCVI.train, with its log_prob and with ours in its place.

    python -m benchmarks.scvi_epoch --likelihood nb --turns 3

This measures scvi-tools' whole training loop: its data loader, networks, KL, optimizer and Lightning
around it. Both train from one seed, so their ELBOs must agree to rounding. The counts, cells by genes,
are drawn from gamma-Poisson rates. Most are 0, as in single cells.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import logging
import statistics
import time
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import vae_fast

LIKELIHOODS = ("nb", "zinb")


class Epoch(NamedTuple):
    seconds: float
    elbo: float  # the model's own, over all cells, after one epoch


def absence() -> str | None:
    """Why there is nothing to measure, or None."""
    if importlib.util.find_spec("scvi") is None:
        return "scvi-tools is not installed: pip install scvi-tools"
    try:
        import scvi  # noqa: F401
    except Exception as error:  # noqa: BLE001 - its imports may fail
        return f"scvi-tools does not import: {type(error).__name__}: {error}"
    return None


def counts(cells: int, genes: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    rate = random.gamma(0.3, 1.0, (1, genes)) * random.gamma(2.0, 0.5, (cells, 1))
    return random.poisson(rate * random.gamma(1.0, 0.5, (cells, genes))).astype(np.float32)


@contextlib.contextmanager
def our_log_prob() -> Iterator[None]:
    """scvi-tools' distributions with vae_fast's likelihood: a cell's sum over its genes, in one op.

    A gene's dispersion is kept as it was given, since scvi-tools would repeat it for each cell.
    """
    from scvi.distributions import NegativeBinomial, ZeroInflatedNegativeBinomial

    places = {
        NegativeBinomial: ("negative_binomial", ("mu", "given_theta")),
        ZeroInflatedNegativeBinomial: (
            "zero_inflated_negative_binomial",
            ("mu", "given_theta", "zi_logits"),
        ),
    }
    before = {place: (place.__init__, place.log_prob) for place in places}

    def patched(place: type, name: str, params: tuple[str, ...]) -> None:
        own_init = place.__init__

        def init(self: Any, *args: Any, theta: Tensor | None = None, **options: Any) -> None:
            own_init(self, *args, theta=theta, **options)
            self.given_theta = theta

        def log_prob(self: Any, value: Tensor) -> Tensor:
            given = [getattr(self, p) for p in params]
            return -vae_fast.nll(name, given, value, reduction="none").unsqueeze(-1)

        place.__init__, place.log_prob = init, log_prob

    # The second inherits from the first in scvi-tools, so its own come last.
    for place, (name, params) in places.items():
        patched(place, name, params)
    try:
        yield
    finally:
        for place, (init, log_prob) in before.items():
            place.__init__, place.log_prob = init, log_prob


def epoch(data: np.ndarray, likelihood: str, batch: int) -> Epoch:
    """One epoch to warm up, whose ELBO is read, and one that is timed."""
    import anndata
    import scvi

    cells = anndata.AnnData(data.copy())
    scvi.settings.seed = 0
    scvi.model.SCVI.setup_anndata(cells)
    model = scvi.model.SCVI(cells, gene_likelihood=likelihood)
    options = {
        "train_size": 1.0, "batch_size": batch, "accelerator": "cpu", "max_epochs": 1,
        "enable_progress_bar": False, "logger": False, "enable_checkpointing": False,
    }  # fmt: skip
    torch.manual_seed(0)
    model.train(**options)
    elbo = float(model.get_elbo())
    begin = time.perf_counter()
    model.train(**options)
    return Epoch(time.perf_counter() - begin, elbo)


def compare(likelihood: str, cells: int, genes: int, batch: int, turns: int) -> str:
    """Both by turns; the line that says how they did."""
    data = counts(cells, genes)
    theirs, ours = [], []
    for _ in range(turns):
        theirs.append(epoch(data, likelihood, batch))
        with our_log_prob():
            ours.append(epoch(data, likelihood, batch))
    own, mine = (statistics.median(e.seconds for e in runs) for runs in (theirs, ours))
    apart = abs(ours[0].elbo / theirs[0].elbo - 1)
    return (
        f"{likelihood}, {cells} cells, {genes} genes, {100 * (data == 0).mean():.0f}% zeros: an epoch "
        f"of SCVI.train takes {own:.2f} s, with vae_fast's log_prob {mine:.2f} s: {own / mine:.2f} "
        f"times as fast; ELBO {theirs[0].elbo:.3f} and {ours[0].elbo:.3f}, {apart:.1e} apart"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--likelihood", choices=LIKELIHOODS, action="append")
    parser.add_argument("--cells", type=int, default=5000)
    parser.add_argument("--genes", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    if reason := absence():
        print(f"nothing is measured: {reason}")
        return
    torch.set_num_threads(args.threads)
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "pytorch_lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for likelihood in args.likelihood or LIKELIHOODS:
        print(compare(likelihood, args.cells, args.genes, args.batch, args.turns), flush=True)


if __name__ == "__main__":
    main()
