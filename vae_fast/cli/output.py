"""The output of commands: tables on the terminal, pictures and arrays in files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from vae_fast.cli.flags import Usage


def print_table(facts: dict[str, Any]) -> None:
    width = max(map(len, facts))
    for key, value in facts.items():
        print(f"{key:{width}s}  {f'{value:.4f}' if isinstance(value, float) else value}")


def check_out(out: str | None, suffixes: tuple[str, ...]) -> None:
    """Raise Usage, before any work, if the command cannot write a file with this suffix."""
    kinds = {".png": "a picture", ".npy": "an array", ".npz": "arrays", ".txt": "text"}
    if out is not None and Path(out).suffix not in suffixes:
        known = " or ".join(f"{suffix} ({kinds[suffix]})" for suffix in suffixes)
        raise Usage(f"--out must end in {known}, got {out}")


def write(out: Path, draw: Callable[[Path], Any], array: Any, images: Any = None) -> None:
    """Write a picture, or the array if the name ends in .npy, and print the path.

    Args:
        draw: writes the picture to a path.
        array: the tensor that goes into the .npy file.
        images: samples (N, ...) that the picture shows; ValueError unless they are images.
    """
    if out.suffix == ".npy":
        write_array(out, array)
        return
    if images is not None:
        need_images(images)
    write_file(out, draw)


def write_array(out: Path, array: Any) -> None:
    """Write a tensor as float32 to a .npy file, or a dict of tensors and numbers to an .npz file."""
    import numpy as np

    def plain(value: Any) -> Any:
        return value.float().cpu().numpy() if hasattr(value, "cpu") else np.float64(value)

    def save(path: Path) -> None:
        with open(path, "wb") as file:
            if isinstance(array, dict):
                np.savez(file, **{name: plain(value) for name, value in array.items()})
            else:
                np.save(file, plain(array), allow_pickle=False)

    write_file(out, save)


def write_rows(out: Path, files: Any, labels: Any, classes: Any) -> None:
    """Write file, label and class of each sample as a row of a CSV file."""
    import csv

    columns: dict[str, Any] = {}
    if files is not None:
        columns["file"] = files
    if labels is not None:
        columns["label"] = labels.tolist()
        if classes is not None:
            columns["class"] = [
                classes[n] if 0 <= n < len(classes) else "" for n in columns["label"]
            ]

    def save(path: Path) -> None:
        # surrogateescape: a file's name need not be UTF-8.
        with open(path, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            rows = csv.writer(file)
            rows.writerow(columns)
            rows.writerows(zip(*columns.values(), strict=True))

    write_file(out, save)


def write_text(out: Path, tokens: Any) -> None:
    """Write sequences (N, T) of character codes as N lines; unprintable characters become ?."""
    if tokens.is_floating_point() or tokens.dim() != 2:
        raise ValueError(
            f"--out {out.name} needs sequences of characters; samples are {tokens.dtype} of shape "
            f"{tuple(tokens.shape[1:])}"
        )
    lines = ["".join(map(chr, line)).replace("\n", "\\n") for line in tokens.tolist()]
    shown = "\n".join("".join(c if c.isprintable() else "?" for c in line) for line in lines)
    write_file(out, lambda path: path.write_text(shown + "\n"))


def write_file(out: str | Path, save: Callable[[Path], Any]) -> None:
    """Let ``save`` write a temporary file that becomes ``out`` when it is whole; print the path."""
    from vae_fast.files import atomic_write

    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(out) as beside:
        save(beside)
    print(out)


def need_images(samples: Any) -> None:
    """Raise ValueError unless samples (N, ...) are images."""
    if samples.dim() != 4:
        raise ValueError(
            f"samples of shape {tuple(samples.shape[1:])} are no images: write them with --out X.npy"
        )
