"""Training in other libraries, with vae_fast.patch and without, in turns: python -m benchmarks.clients

A library that isn't installed is left out. Times are medians over rounds, in milliseconds.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

import vae_fast
from vae_fast.patches import LIBRARIES, Patch

WAYS = ("without", "torch", "native")  # no patch, or the patch with that noise


def patched(library: str, way: str) -> Patch | None:
    return None if way == "without" else vae_fast.patch(library, noise=way)


def compare(
    name: str,
    library: str,
    measure: Callable[[], float],
    rounds: int,
    rest: Callable[[], float] | None = None,
) -> None:
    """Print one row: the seconds that ``measure`` gives, for each way, and the ratios.

    Args:
        rest: measures the part that the patch does not replace, a lower bound for any patch.
    """
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    left: list[float] = []
    for _ in range(rounds):
        for way in WAYS:
            patch = patched(library, way)
            times[way].append(measure())
            if patch is not None:
                patch.undo()
        if rest is not None:
            left.append(rest())
    without, *others = (statistics.median(times[way]) for way in WAYS)
    row = [f"{name:24} {1e3 * without:9.2f}"]
    row += [f"{1e3 * t:9.2f} {without / t:6.2f}x" for t in others]
    if left:
        row.append(
            f"{1e3 * statistics.median(left):9.2f} {without / statistics.median(left):6.2f}x"
        )
    print(" ".join(row), flush=True)


def repeated(step: Callable[[], None], steps: int) -> float:
    """Seconds of a step, after one that isn't counted."""
    step()
    start = time.perf_counter()
    for _ in range(steps):
        step()
    return (time.perf_counter() - start) / steps


def pythae(rounds: int) -> None:
    """A step of pythae's own trainer on a batch in memory, and of the networks and Adam alone."""
    from pythae import models
    from pythae.data.datasets import BaseDataset
    from pythae.trainers import BaseTrainer, BaseTrainerConfig

    logging.disable(logging.WARNING)  # each of its modules has a logger that prints
    cases = (
        ("VAE", {}, 40, 128),
        ("BetaVAE", {}, 40, 128),
        ("IWAE", {"number_samples": 10}, 8, 128),
        ("BetaTCVAE", {}, 40, 128),
        ("BetaTCVAE", {}, 10, 512),
    )
    for name, options, steps, batch in cases:
        x = torch.rand(batch, 1, 28, 28)

        def trainer(name=name, options=options, x=x) -> BaseTrainer:
            config = getattr(models, f"{name}Config")(
                input_dim=(1, 28, 28), latent_dim=16, reconstruction_loss="bce", **options
            )
            torch.manual_seed(0)
            model = getattr(models, name)(config)
            with tempfile.TemporaryDirectory() as folder:
                made = BaseTrainer(
                    model,
                    BaseDataset(x, torch.zeros(len(x))),
                    training_config=BaseTrainerConfig(output_dir=folder),
                )
            made.set_optimizer()
            return made

        def measure(steps=steps, trainer=trainer, x=x) -> float:
            own = trainer()

            def step() -> None:
                out = own.model({"data": x}, dataset_size=60000, epoch=1)
                own._optimizers_step(out)
                out.loss.item()

            return repeated(step, steps)

        def networks(steps=steps, trainer=trainer, x=x, options=options) -> float:
            with vae_fast.patch("pythae"):
                own = trainer()
            samples = options.get("number_samples", 1)
            grad = 1e-5 * torch.randn(samples * len(x), 1, 28, 28)

            def step() -> None:
                encoded = own.model.encoder(x)
                z = (encoded.embedding + encoded.log_covariance).repeat(samples, 1)
                own.optimizer.zero_grad()
                own.model.decoder(z)["reconstruction"].backward(grad)
                own.optimizer.step()

            return repeated(step, steps)

        compare(f"pythae {name} {batch}", "pythae", measure, rounds, networks)


def diffusers(rounds: int) -> None:
    """A step of AutoencoderKL: (128, 256) channels, 4 images of 64x64, channels-last, AdamW."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    model = AutoencoderKL(
        block_out_channels=(128, 256), latent_channels=4, sample_size=64,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    ).to(memory_format=torch.channels_last)  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    x = torch.rand(4, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    convolutions = [m for m in model.modules() if type(m) is torch.nn.Conv2d]
    inputs: list[tuple[torch.nn.Module, torch.Tensor]] = []

    def step() -> None:
        posterior = model.encode(x).latent_dist
        made = model.decode(posterior.sample()).sample
        loss = (made - x).square().sum() / len(x) + 1e-6 * posterior.kl().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()

    def alone() -> None:
        for module, given in inputs:
            out = module(given)
            out.backward(torch.ones_like(out))
        optimizer.zero_grad()

    handles = [
        m.register_forward_hook(lambda m, i, _: inputs.append((m, i[0].detach().requires_grad_())))
        for m in convolutions
    ]
    step()
    for handle in handles:
        handle.remove()
    compare(
        "diffusers AutoencoderKL", "diffusers", lambda: repeated(step, 2), rounds,
        lambda: repeated(alone, 2),
    )  # fmt: skip


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


def examples(rounds: int) -> None:
    """An epoch of pytorch/examples' VAE script over 10,000 images, with its loss and with ours imported."""
    from vae_fast.compat.pytorch_examples import loss_function

    path = Path(__file__).parents[1] / "tests" / "tutorial" / "pytorch_examples.py"
    spec = importlib.util.spec_from_file_location("pytorch_examples", path)
    if spec is None or spec.loader is None or not path.is_file():
        print(f"{path} is not there: this is measured in the source tree")
        return
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    times: dict[str, list[float]] = {"own": [], "imported": []}
    for turn in range(rounds + 1):
        for name, loss in (("own", script.loss_function), ("imported", loss_function)):
            start = time.perf_counter()
            curve = script.train(loss, epochs=2, images=9500)
            if turn > 0:
                times[name].append((time.perf_counter() - start) / 2)
            print(f"# {name}: {curve}", flush=True)
    own, imported = (statistics.median(t) for t in times.values())
    print(f"{'pytorch/examples':24} {1e3 * own:9.2f} {1e3 * imported:9.2f} {own / imported:6.2f}x")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("libraries", nargs="*", default=[*LIBRARIES, "examples"])
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args()
    warnings.simplefilter("ignore")
    print(f"{'':24} {'without':>9} {'torch noise':>17} {'native noise':>17} {'the rest':>17}")
    for name in chosen.libraries:
        if name != "examples" and importlib.util.find_spec(name) is None:
            print(f"{name} is not installed")
        else:
            {"pythae": pythae, "scvi": scvi, "diffusers": diffusers,
             "examples": examples}[name](chosen.rounds)  # fmt: skip


if __name__ == "__main__":
    main()
