"""Commands about the latent space: encode, latent-map, traverse, interpolate, attribute."""

from __future__ import annotations

from typing import Any

from vae_fast.cli.flags import Usage, one_of, parse, whole_numbers
from vae_fast.cli.output import write, write_array, write_file, write_rows
from vae_fast.cli.runs import (
    add_samples,
    caption,
    model_and_samples,
    out_path,
    run_parser,
)

OUT = ".png picture or .npy array"


def encode(arguments: list[str], program: str) -> int:
    """write the features of samples, the posterior's means, to a file"""
    about = (
        ".npy array (N, latent_dim), or .npz with --statistics; files' names and labels in a .csv "
        "beside it"
    )
    parser = run_parser(program, encode.__doc__, about, (".npy", ".npz"))
    parser.add_argument(
        "--statistics",
        action="store_true",
        help="write an .npz of each posterior's mean and std, of the latents' scaling_factor "
        "(1 / their standard deviation, for diffusion on them), channel_mean and channel_std",
    )
    add_samples(parser, 0)
    values = parse(parser, arguments, _fits_statistics)
    from vae_fast import tasks

    restored, (x, labels, y, _, files, classes) = model_and_samples(
        values, keep_sparse=True, in_order=True
    )
    if values.statistics:
        found = tasks.statistics(restored.model, x, y)
        print(f"scaling factor {found.scaling_factor:.5g}")
        out = out_path(values, "latents.npz")
        array: Any = found._asdict()
    else:
        out = out_path(values, "features.npy")
        array = tasks.encode(restored.model, x, y)
    write_array(out, array)
    if files is not None or labels is not None:
        write_rows(out.with_suffix(".csv"), files, labels, classes)
    return 0


def _fits_statistics(values: Any) -> None:
    suffix = ".npz" if values.statistics else ".npy"
    if values.out is not None and not values.out.endswith(suffix):
        raise Usage(
            f"--out must end in {suffix} {'with' if values.statistics else 'without'} --statistics, "
            f"got {values.out}"
        )


def latent_map(arguments: list[str], program: str) -> int:
    """draw the features of samples in the plane, coloured by label"""
    parser = run_parser(program, latent_map.__doc__, ".png picture", (".png",))
    add_samples(parser, 2000)
    values = parse(parser, arguments)
    from vae_fast import tasks
    from vae_fast.tasks.pictures import draw_latent_map

    restored, (x, labels, y, source, _, classes) = model_and_samples(values, keep_sparse=True)
    codes = tasks.encode(restored.model, x, y)
    write_file(
        out_path(values, "latent_map.png"),
        lambda path: draw_latent_map(
            path, codes, labels, names=classes, caption=caption(restored, source)
        ),
    )
    return 0


def traverse(arguments: list[str], program: str) -> int:
    """walk along latent dimensions from one sample's features, a row each"""
    parser = run_parser(program, traverse.__doc__, OUT)
    add_samples(parser, 1000, "how many samples to find the dimensions by")
    parser.add_argument("--index", type=int, default=0, help="the sample to start from")
    parser.add_argument(
        "--dimensions",
        type=int,
        default=10,
        help="how many rows: the dimensions whose features vary most over the samples",
    )
    parser.add_argument("--steps", type=int, default=9, help="columns")
    parser.add_argument(
        "--range", type=float, default=3.0, help="columns go from -RANGE to RANGE deviations"
    )
    values = parse(parser, arguments, whole_numbers("dimensions", "steps"))
    import torch

    from vae_fast import tasks
    from vae_fast.models.interface import is_probabilistic
    from vae_fast.tasks.pictures import draw_grid

    restored, (x, _, y, source, *_) = model_and_samples(values, in_order=True)
    if not 0 <= values.index < len(x):
        raise ValueError(
            f"--index {values.index} is not among the {len(x)} samples (0 is the first)"
        )
    codes = tasks.encode(restored.model, x, y)
    spread = codes.std(0, correction=0)
    chosen = spread.argsort(descending=True)[: values.dimensions].tolist()
    # The prior's standard deviation is 1; that of an autoencoder's codes is estimated.
    scale = 1.0 if is_probabilistic(restored.model) else float(spread.mean())
    steps = (torch.linspace(-values.range, values.range, values.steps) * scale).tolist()
    given = None if y is None else y[values.index : values.index + 1]
    walks = tasks.traverse(
        restored.model, codes[values.index], dimensions=chosen, values=steps, y=given
    )
    out = out_path(values, "traversal.png")
    note = f"rows: dimensions {', '.join(map(str, chosen))}"
    write(
        out,
        lambda path: draw_grid(path, walks, caption(restored, source, note), "Traversal"),
        walks,
        walks[0],
    )
    return 0


def interpolate(arguments: list[str], program: str) -> int:
    """walk between pairs of samples through their features, a row each"""
    parser = run_parser(program, interpolate.__doc__, OUT)
    add_samples(parser, 8, "how many pairs: samples 0 and 1, 2 and 3, ...")
    parser.add_argument("--steps", type=int, default=10, help="columns, both ends included")
    parser.add_argument("--path", type=str, default="spherical", help="spherical or linear")
    values = parse(parser, arguments, whole_numbers("steps"), one_of("path", "spherical", "linear"))
    values.n *= 2
    from vae_fast import tasks
    from vae_fast.tasks.pictures import draw_grid

    restored, (x, _, y, source, *_) = model_and_samples(values)
    if len(x) < 2:
        raise ValueError(f"{source} has {len(x)} sample, and a pair needs two")
    pairs = len(x) // 2 * 2
    start, end = x[0:pairs:2], x[1:pairs:2]
    given = None if y is None else y[0:pairs:2]
    walks = tasks.interpolate(
        restored.model, start, end, given, steps=values.steps, path=values.path
    )
    out = out_path(values, "interpolation.png")
    write(
        out,
        lambda path: draw_grid(
            path, walks, caption(restored, source, values.path), "Interpolation"
        ),
        walks,
        walks[0],
    )
    return 0


def attribute(arguments: list[str], program: str) -> int:
    """find a label's direction in latent space, and add it to other samples, a row each"""
    parser = run_parser(program, attribute.__doc__, OUT)
    parser.add_argument("label", type=str, help="the class whose direction it is: name or number")
    add_samples(parser, 1000, "how many samples to find the direction by")
    parser.add_argument("--rows", type=int, default=8, help="how many samples to change")
    parser.add_argument("--steps", type=int, default=7, help="columns, from strength 0 to STRENGTH")
    parser.add_argument("--strength", type=float, default=1.5, help="of the last column")
    values = parse(parser, arguments, whole_numbers("rows", "steps"))
    import torch

    from vae_fast import tasks
    from vae_fast.tasks.pictures import draw_grid
    from vae_fast.train.run_data import label_of

    restored, (x, labels, y, source, _, classes) = model_and_samples(values)
    if labels is None:
        raise ValueError(f"{source} has no labels, and the direction needs them")
    label = label_of(values.label, classes)
    has = labels == label
    vector = tasks.attribute_vector(tasks.encode(restored.model, x, y), has)
    others = x[~has][: values.rows]
    given = None if y is None else y[~has][: values.rows]
    strengths = torch.linspace(0.0, values.strength, values.steps).tolist()
    walks = torch.stack(
        [tasks.apply_attribute(restored.model, others, vector, s, given) for s in strengths], 1
    )
    out = out_path(values, f"attribute_{label}.png")
    note = f"towards label {values.label}, strength 0 to {values.strength:g}"
    write(
        out,
        lambda path: draw_grid(path, walks, caption(restored, source, note), "Attribute"),
        walks,
        walks[0],
    )
    return 0
