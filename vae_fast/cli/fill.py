"""vae-fast inpaint, translate and denoise: missing or noisy data restored."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from vae_fast.cli.flags import Usage, parse, whole_numbers
from vae_fast.cli.output import need_images, write
from vae_fast.cli.runs import add_samples, caption, model_and_samples, out_path, run_parser

OUT = ".png picture or .npy array"
HALVES = ("left", "right", "top", "bottom")


def inpaint(arguments: list[str], program: str) -> int:
    """fill in missing pixels or values, and show how uncertain they are"""
    parser = run_parser(program, inpaint.__doc__, OUT)
    add_samples(parser, 10)
    parser.add_argument(
        "--missing",
        type=str,
        default="right",
        help="left, right, top or bottom half; a part such as 0.5, at random; or an .npy mask, "
        "true where a value is missing",
    )
    parser.add_argument("--steps", type=int, default=20, help="of each chain")
    parser.add_argument("--draws", type=int, default=10, help="chains, whose mean is shown")
    parser.add_argument("--seed", type=int, default=0, help="seed of the chains")

    def check(values: Any) -> None:
        _part(values.missing)

    values = parse(parser, arguments, check, whole_numbers("steps", "draws"))
    import torch

    from vae_fast import tasks
    from vae_fast.tasks.pictures import draw_strips

    # A mask's rows are those of the data.
    in_order = values.missing.endswith(".npy")
    restored, (x, _, y, source, *_) = model_and_samples(values, in_order=in_order)
    torch.manual_seed(values.seed)
    missing = _mask(values.missing, x).to(x.device)
    found = tasks.impute(restored.model, x, ~missing, y, steps=values.steps, draws=values.draws)
    out = out_path(values, "inpainting.png")
    whole = restored.model.values(x)
    seen = whole.masked_fill(missing, 0.5)
    strips = [whole, seen, found.mean, (2.0 * found.std).clamp_max(1.0)]
    note = "whole, seen, filled in, and twice the draws' deviation"
    write(
        out,
        lambda path: draw_strips(path, strips, caption(restored, source, note), "Inpainting"),
        found.mean,
        x,
    )
    return 0


def _mask(what: str, x: Any) -> Any:
    """bool, true where a value of x is missing, of x's shape or broadcast to it."""
    import numpy as np
    import torch

    from vae_fast.files import check_regular

    if what.endswith(".npy"):
        from vae_fast.data.npy import map_npy

        check_regular(Path(what))
        given = map_npy(Path(what))
        if given.dtype != np.bool_:
            raise ValueError(
                f"{what} must be bool, true where a value is missing; it is {given.dtype}"
            )
        try:
            np.broadcast_to(given, x.shape)
        except ValueError:
            raise ValueError(
                f"{what} has shape {given.shape}, which does not broadcast to the samples' "
                f"{tuple(x.shape)}"
            ) from None
        # A byte other than 0 and 1 is true as well.
        return torch.from_numpy(np.array(given).view(np.uint8) != 0)
    if what in HALVES:
        need_images(x)
        mask = torch.zeros(1, *x.shape[1:], dtype=torch.bool)
        along = mask.transpose(2, 3) if what in ("left", "right") else mask
        half = (along.shape[2] + 1) // 2
        along[:, :, half:] = True
        return ~mask if what in ("left", "top") else mask
    part = _part(what)
    assert part is not None  # parse has looked
    return torch.rand(x.shape) < part


def _part(what: str) -> float | None:
    """The fraction of values that --missing asks for; None if it is a half or a mask."""
    if what in HALVES or what.endswith(".npy"):
        return None
    try:
        part = float(what)
    except ValueError:
        part = -1.0
    if not 0.0 < part < 1.0:
        raise Usage(
            f"--missing takes {', '.join(HALVES)}, a part between 0 and 1, or an .npy mask; "
            f"got {what}"
        )
    return part


def translate(arguments: list[str], program: str) -> int:
    """draw images with the same half, or the same edges, as given samples"""
    parser = run_parser(program, translate.__doc__, OUT)
    add_samples(parser, 10)
    parser.add_argument("--draws", type=int, default=3, help="of each")
    parser.add_argument("--seed", type=int, default=0, help="seed of the draws")
    values = parse(parser, arguments, whole_numbers("draws"))
    import torch

    from vae_fast import tasks
    from vae_fast.models.interface import conditioning_of
    from vae_fast.tasks.pictures import draw_strips

    restored, (x, _, _, source, *_) = model_and_samples(values)
    model = restored.model
    if getattr(conditioning_of(model), "derive", None) is None:
        raise ValueError(
            f"{restored.config.model} of {values.run} derives no condition from images: translate "
            "is for a cvae trained with condition left-half or edges"
        )
    (y,) = model.condition_from(x, None)
    seeds = range(values.seed, values.seed + values.draws)
    drawn = [tasks.generate(model, len(x), y, seed=seed) for seed in seeds]
    strips = [part.cpu() for part in (model.values(x), y)] + drawn
    note = f"the image, what the model is given, and {values.draws} draws"
    write(
        out_path(values, "translation.png"),
        lambda path: draw_strips(path, strips, caption(restored, source, note), "Translation"),
        torch.stack(drawn),
    )
    return 0


def denoise(arguments: list[str], program: str) -> int:
    """remove noise from samples by reconstructing them"""
    parser = run_parser(program, denoise.__doc__, OUT)
    add_samples(parser, 10)
    parser.add_argument(
        "--noise",
        type=float,
        default=0.3,
        help="deviation of the noise added first, relative to each column if they are standardized; 0: none",
    )
    parser.add_argument("--steps", type=int, default=1, help="reconstructions of reconstructions")
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise")

    def check(values: Any) -> None:
        if not 0 <= values.noise < math.inf:
            raise Usage(f"--noise is a standard deviation, at least 0, got {values.noise}")

    values = parse(parser, arguments, check, whole_numbers("steps"))
    import torch

    from vae_fast import tasks
    from vae_fast.tasks.pictures import draw_strips

    restored, (x, _, y, source, *_) = model_and_samples(values)
    torch.manual_seed(values.seed)
    likelihood = restored.model.likelihood
    clean = noisy = restored.model.values(x)
    if values.noise > 0:
        noisy = clean + values.noise * likelihood.spread * torch.randn_like(clean)
        if likelihood.target in ("unit", "level", "category"):
            noisy = noisy.clamp(0.0, 1.0)
        elif likelihood.target == "count":
            noisy = noisy.round().clamp_min(0.0)
    again = tasks.denoise(restored.model, noisy, y, steps=values.steps)
    out = out_path(values, "denoised.png")
    strips = [clean, noisy, again] if values.noise > 0 else [clean, again]
    note = "before, noisy, after" if values.noise > 0 else "before, after"
    write(
        out,
        lambda path: draw_strips(path, strips, caption(restored, source, note), "Denoising"),
        again,
        x,
    )
    return 0
