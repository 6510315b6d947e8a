"""Shared by commands over a trained model: flags, the model, and the samples to use."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from vae_fast.cli.flags import Usage, add_data_options, data_options, make_parser
from vae_fast.cli.interrupts import begin_work
from vae_fast.cli.output import check_out

DATA_HELP = "a name, a file or a folder; the run's validation data if not given"


class Samples(NamedTuple):
    """x (N, *input_shape), labels (N,) or None, on the model's device, and their source.

    ``files`` has a name for each sample, ``classes`` a name for each label; either may be None.

    ``given`` are the model's conditions: the labels if it uses them, else None.
    """

    x: Any
    labels: Any
    given: Any
    source: str
    files: Any
    classes: Any


def run_parser(
    program: str,
    description: str | None,
    out: str | None = None,
    suffixes: tuple[str, ...] = (".png", ".npy"),
) -> Any:
    """A parser with the flags of every command over a run.

    Args:
        out: what --out writes, if the command has this flag; ``suffixes`` are its possible
            suffixes.
    """
    parser = make_parser(program, description)
    parser.add_argument(
        "--trust",
        action="store_true",
        help="let the run's config.yaml name classes of any module, whose code is then run",
    )

    def check(values: Any) -> None:
        check_out(getattr(values, "out", None), suffixes)
        least = 0 if parser.get_defaults().get("n") == 0 else 1
        if values.get("n") is not None and values.n < least:
            raise Usage(f"--n must be at least {least}, got {values.n}")

    parser.check = check
    parser.add_argument("run", type=str, help="folder of a run")
    parser.add_argument(
        "--checkpoint",
        type=str,
        default=None,
        help="best, last or the step of a checkpoint; best, or else last, if not given",
    )
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda or cuda:N")
    if out is not None:
        parser.add_argument("--out", type=str, default=None, help=f"{out}; in the run if not given")
    return parser


def add_samples(parser: Any, n: int, what: str = "how many samples") -> None:
    """--data and --n; an ``n`` of 0 stands for all."""
    parser.add_argument("--data", type=str, default=None, help=DATA_HELP)
    add_data_options(parser, "as the run's if not given")
    everything = "" if n else "; 0 for all"
    parser.add_argument("--n", type=int, default=n, help=what + everything)


def restore(values: Any) -> Any:
    """The model of ``values.run``."""
    from vae_fast.tasks import load_model

    begin_work()
    return load_model(values.run, checkpoint_of(values), values.device, trust=values.trust)


def checkpoint_of(values: Any) -> str:
    """``values.checkpoint``; by default the best, or the last if there is no best."""
    from vae_fast.tasks.restore import best_or_last

    return values.checkpoint or best_or_last(values.run)


def out_path(values: Any, name: str) -> Path:
    """``values.out``, or the file ``name`` in the run's folder."""
    return Path(values.out) if values.out is not None else Path(values.run) / name


def model_and_samples(
    values: Any, keep_sparse: bool = False, in_order: bool = False
) -> tuple[Any, Samples]:
    """The model of ``values.run`` and ``values.n`` samples of its data.

    They are the first ones with ``in_order``, and for an array as the output. Else they stand for
    all: they are evenly spaced if the data are sorted by class.
    """
    restored = restore(values)
    options = None
    if values.data is not None:
        options = data_options(values, restored.config.data_options)
    in_order = in_order or str(values.get("out")).endswith(".npy")
    return restored, samples_of(restored, values.data, values.n, options, keep_sparse, in_order)


def samples_of(
    restored: Any,
    data: str | None,
    n: int,
    options: Any = None,
    keep_sparse: bool = False,
    in_order: bool = True,
) -> Samples:
    """``n`` samples (all for 0) of ``data``, or of the run's validation data: see above.

    ``keep_sparse`` keeps a sparse matrix sparse, for tasks that process x in batches.

    Labels use the numbering of the run's data, matched by class names if both have names.
    """
    from vae_fast.data import holds_images
    from vae_fast.data.representative import representative_rows
    from vae_fast.evaluate.run import gather
    from vae_fast.models.interface import Classifies, uses_labels
    from vae_fast.train import run_data
    from vae_fast.train.config import data_of

    source = data or data_of(restored.config)
    if data is None:
        found = run_data.load_split(restored.config, "val")
    else:
        found = run_data.load_other(restored.config, source, options)
    shape, expected = tuple(found.shape), tuple(restored.model.input_shape)
    if shape != expected:
        hint = ""
        if holds_images(source) and len(expected) == 3:
            mode = {1: "L", 3: "RGB"}.get(expected[0], "?")
            hint = f": give --data.size {expected[1]} --data.mode {mode}"
        raise ValueError(f"{source} has samples of shape {shape}, the model takes {expected}{hint}")
    found = run_data.in_support(restored.model, found)
    device = next(restored.model.parameters()).device
    config = restored.config
    binarize = config.binarize != "none"
    rows = None if in_order else representative_rows(found, n or None)
    x, labels = gather(
        found, n or None, binarize=binarize, seed=config.seed, keep_sparse=keep_sparse, rows=rows
    )
    classes = run_data.class_names(config)
    labels = run_data.match_class_order(labels, found.classes, classes)
    labels = run_data.labels_for(restored.model, config.model, labels, str(source))
    x, labels = x.to(device), None if labels is None else labels.to(device)
    wants = uses_labels(restored.model)
    if wants and labels is None and not isinstance(restored.model, Classifies):
        raise ValueError(
            f"{restored.config.model} is conditioned on labels, and {source} has none: give labelled data"
        )
    files = None if found.files is None else list(found.files)
    if files is not None:
        files = files[: len(x)] if rows is None else [files[row] for row in rows.tolist()]
    return Samples(x, labels, labels if wants else None, source, files, classes or found.classes)


def caption(restored: Any, source: str | None = None, *more: str) -> str:
    """Model, data, step and further notes, for a picture."""
    where = f"{restored.config.model} on {source or restored.config.data}"
    return " · ".join([where, f"step {restored.step}", *more])
