"""vae-fast sample and vae-fast reconstruct: samples and reconstructions of a model."""

from __future__ import annotations

import math
from typing import Any

from vae_fast.cli.flags import one_of, parse
from vae_fast.cli.output import write, write_text
from vae_fast.cli.runs import (
    add_samples,
    caption,
    model_and_samples,
    out_path,
    restore,
    run_parser,
)

SAMPLERS = (
    "prior",
    "normal",
    "gmm",
    "flow",
    "maf",
    "iaf",
    "realnvp",
    "second-stage",
    "pixelcnn",
    "metric",
)
OUT = ".png picture or .npy array"


def sample(arguments: list[str], program: str) -> int:
    """draw samples from a trained model"""
    parser = run_parser(
        program, sample.__doc__, f"{OUT}, or .txt for characters", (".png", ".npy", ".txt")
    )
    parser.add_argument("--n", type=int, default=100, help="how many")
    parser.add_argument(
        "--temperature", type=float, default=1.0, help="standard deviation of the prior's draws"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the draws")
    parser.add_argument(
        "--label",
        type=str,
        default=None,
        help="draw this class alone, by name or number, of a conditional model",
    )
    parser.add_argument(
        "--draw",
        action="store_true",
        help="draw each step of a sequence, as with text, instead of following the likeliest",
    )
    parser.add_argument(
        "--sampler",
        type=str,
        default="prior",
        help=f"where codes come from: {', '.join(SAMPLERS)}; all but prior, normal and metric are "
        "fitted to the run's training data, once, and kept in the run's folder",
    )
    parser.add_argument("--sampler_data", type=int, default=0, help="how many samples; 0 for all")
    parser.add_argument(
        "--sampler_steps", type=int, default=0, help="of a trained sampler; 0 for its own number"
    )
    values = parse(parser, arguments, one_of("sampler", *SAMPLERS))
    import torch

    from vae_fast import pictures
    from vae_fast.models.interface import uses_labels
    from vae_fast.tasks import generate
    from vae_fast.train.memory import check_fits
    from vae_fast.train.run_data import class_names, label_of, labels_for
    from vae_fast.train.run_pictures import classes_of

    restored = restore(values)
    size = values.n * math.prod(restored.model.input_shape) * 4
    check_fits(size, f"--n {values.n:,}")
    y = None
    if values.label is not None:
        if not uses_labels(restored.model):
            raise ValueError(
                f"--label needs a model with labels, and {restored.config.model} is none"
            )
        y = torch.full((values.n,), label_of(values.label, class_names(restored.config)))
        labels_for(restored.model, restored.config.model, y, "--label")
    options = {"temperature": values.temperature, "seed": values.seed, "draw": values.draw}
    options["sampler"] = _fitted(restored, values)
    images = generate(restored.model, values.n, y, **options)
    out = out_path(values, "samples.png")
    if out.suffix == ".txt":
        write_text(out, images)
        return 0
    columns = classes_of(restored.model) if y is None else 10
    said = caption(restored)
    write(out, lambda path: pictures.draw_samples(path, images, said, columns), images, images)
    return 0


def _fitted(restored: Any, values: Any) -> Any:
    """The sampler that is asked for: the run's, or fitted to its training data; None for the prior."""
    from vae_fast.tasks import fit_sampler
    from vae_fast.tasks.samplers.kept import kept_sampler

    config, model = restored.config, restored.model
    options = {"steps": values.sampler_steps} if values.sampler_steps else {}

    def fit() -> Any:
        from vae_fast.evaluate.run import gather
        from vae_fast.train import run_data

        x = labels = None
        if values.sampler not in ("prior", "normal", "metric"):
            data = run_data.in_support(model, run_data.load_split(config, "train"))
            binarized = {"binarize": config.binarize != "none", "seed": config.seed}
            x, labels = gather(data, values.sampler_data or None, **binarized)
        return fit_sampler(values.sampler, model, x, labels, seed=config.seed, **options)

    depends = {"data": config.data, "samples": values.sampler_data, "seed": config.seed}
    return kept_sampler(
        values.run, values.sampler, model, fit, fitted_to=depends, say=print, **options
    )


def reconstruct(arguments: list[str], program: str) -> int:
    """reconstruct data with a trained model"""
    parser = run_parser(program, reconstruct.__doc__, OUT)
    add_samples(parser, 40)
    values = parse(parser, arguments)
    from vae_fast import pictures, tasks

    restored, (x, _, y, source, *_) = model_and_samples(values)
    again = tasks.reconstruct(restored.model, x, y)
    out = out_path(values, "reconstructions.png")
    write(
        out,
        lambda path: pictures.draw_reconstructions(path, x, again, caption(restored, source)),
        again,
        again,
    )
    return 0
