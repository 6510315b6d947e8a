"""vae-fast compress and vae-fast decompress: samples as rounded features, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vae_fast.cli.compressed_file import read_compressed
from vae_fast.cli.flags import parse
from vae_fast.cli.output import write, write_file
from vae_fast.cli.runs import (
    add_samples,
    caption,
    model_and_samples,
    out_path,
    restore,
    run_parser,
)


def compress(arguments: list[str], program: str) -> int:
    """write samples as features rounded to a grid, and count their bits"""
    parser = run_parser(program, compress.__doc__, ".npz of symbols, step and labels", (".npz",))
    add_samples(parser, 0)
    parser.add_argument("--step", type=float, default=0.25, help="of the grid: finer costs bits")
    values = parse(parser, arguments)
    import numpy as np

    from vae_fast import tasks
    from vae_fast.tasks.likelihood import reconstruction_error

    restored, (x, _, y, source, *_) = model_and_samples(values, in_order=True)
    packed = tasks.compress(restored.model, x, y, step=values.step)
    again = tasks.decompress(restored.model, packed, y)
    arrays: dict[str, Any] = {
        "symbols": packed.symbols.cpu().numpy(),
        "step": np.float64(packed.step),
    }
    if y is not None:
        arrays["labels"] = y.cpu().numpy()

    def save(path: Any) -> None:
        with open(path, "wb") as file:
            np.savez_compressed(file, **arrays)

    write_file(out_path(values, "compressed.npz"), save)
    raw = x[0].numel() * (1 if x.element_size() == 1 else 4)
    bits = float(packed.bits.mean())
    as_input = restored.model.as_input
    error = float((restored.model.network_input(x) - as_input(again, x.dtype)).square().mean())
    exact = float(reconstruction_error(restored.model, x, y).mean())
    print(
        f"{len(x)} samples of {source}: {bits:.1f} bits each under the prior, of {8 * raw} "
        f"(1 to {8 * raw / bits:.0f})"
    )
    print(f"Mean squared error {error:.5f}, of which rounding makes {error - exact:.5f}")
    return 0


def decompress(arguments: list[str], program: str) -> int:
    """make samples from what compress wrote"""
    parser = run_parser(program, decompress.__doc__, ".npy array or .png picture")
    parser.add_argument("file", type=str, help="the .npz that compress wrote")
    values = parse(parser, arguments)
    import torch

    from vae_fast import pictures, tasks
    from vae_fast.models.interface import uses_labels

    restored = restore(values)
    device = next(restored.model.parameters()).device
    read = read_compressed(Path(values.file), restored.model.latent_dim)
    wants = uses_labels(restored.model)
    if wants and read.labels is None:
        raise ValueError(
            f"{values.file} has no labels, and {restored.config.model} is conditioned on labels: it "
            "was compressed with another model; give that model's run"
        )
    y = torch.from_numpy(read.labels).long().to(device) if wants else None
    symbols = torch.from_numpy(read.symbols).to(device)
    packed = tasks.Compressed(symbols, read.step, torch.empty(0))
    again = tasks.decompress(restored.model, packed, y)
    out = out_path(values, "decompressed.npy")
    write(
        out, lambda path: pictures.draw_samples(path, again[:100], caption(restored)), again, again
    )
    return 0
