"""Damaged files for every reader: each gives its data, or one error of a kind that names the file."""

from __future__ import annotations

import functools
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.fuzz.check import Failure
from tests.fuzz.draw import Draw
from vae_fast.data import as_data, pack, read_idx

SECONDS = 2.0  # CPU seconds: an impossible size must be refused, not tried
# What a reader may raise; the command line prints these as one sentence.
ERRORS = (ValueError, TypeError, OSError)


def _images(count: int = 12) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 4, 4), dtype=np.uint8)


# --- whole files, and who reads them -------------------------------------------------------------


def _npy(folder: Path) -> None:
    np.save(folder / "images.npy", _images())


def _npz(folder: Path) -> None:
    np.savez_compressed(folder / "images.npz", images=_images(), labels=np.arange(12) % 3)


def _idx(folder: Path) -> None:
    head = b"\0\0\x08\x03" + b"".join(n.to_bytes(4, "big") for n in (12, 4, 4))
    (folder / "images-idx3-ubyte").write_bytes(head + _images().tobytes())


def _shards(folder: Path) -> None:
    pack((_images(), np.arange(12) % 3), folder / "shards", shard_bytes=80, workers=0)


def _pictures(folder: Path) -> None:
    from PIL import Image

    for i, image in enumerate(_images(4)):
        (folder / "pictures" / f"class{i % 2}").mkdir(parents=True, exist_ok=True)
        suffix = (".png", ".bmp", ".gif", ".png")[i]
        Image.fromarray(image).save(folder / "pictures" / f"class{i % 2}" / f"{i}{suffix}")


def _run(folder: Path) -> None:
    from vae_fast.train import TrainConfig, Trainer

    config = TrainConfig(
        epochs=1, batch_size=6, device="cpu", tensorboard="off", out=str(folder / "run"),
        model_args={"latent_dim": 2, "network_options": {"hidden": [3]}},
    )  # fmt: skip
    images = torch.from_numpy(_images()[:, None])
    with _no_pictures():
        Trainer(config, train_data=images, val_data=images[:6]).fit()


def _no_pictures() -> Any:
    from unittest.mock import patch

    return patch("vae_fast.train.trainer.draw_pictures", lambda *_: [])


def _whole(path: str) -> Callable[[Path], Any]:
    def read(folder: Path) -> Any:
        data = as_data(folder / path)
        return [data[i] for i in range(len(data))] if hasattr(data, "__getitem__") else len(data)

    return read


def _model(folder: Path) -> Any:
    from vae_fast.tasks import load_model

    return load_model(folder / "run", device="cpu").model.sample(2)


def _record(folder: Path) -> Any:
    from vae_fast.train import RunFolder

    run = RunFolder(folder / "run")
    return run.config(), run.metrics()


def _newest(folder: Path) -> Any:
    from vae_fast.train import checkpoint

    return checkpoint.load_newest(folder / "run" / "checkpoints")


READERS: dict[str, tuple[Callable[[Path], None], Callable[[Path], Any]]] = {
    "file.npy": (_npy, _whole("images.npy")),
    "file.npz": (_npz, _whole("images.npz")),
    "file.idx": (_idx, lambda folder: read_idx(folder / "images-idx3-ubyte")),
    "file.shards": (_shards, _whole("shards")),
    "file.pictures": (_pictures, _whole("pictures")),
    "file.model": (_run, _model),
    "file.record": (_run, _record),
    "file.newest": (_run, _newest),
}


@functools.cache
def _made(make: Callable[[Path], None]) -> Path:
    """A folder with whole files, made once in a process; the process's end removes it."""
    folder = tempfile.TemporaryDirectory(prefix="vae-fast-fuzz-")
    _kept.append(folder)
    make(Path(folder.name))
    return Path(folder.name)


_kept: list[tempfile.TemporaryDirectory] = []


# --- damage --------------------------------------------------------------------------------------


def damage(draw: Draw, contents: bytes) -> bytes:
    """Bits turned, a piece lost, doubled, or replaced by what readers stumble over."""
    kind = draw.one_of(("bits", "cut", "lost", "doubled", "word", "digits", "empty", "noise"))
    place = draw.random.randrange(len(contents) + 1)
    if draw.chance(0.5):
        place = min(place, draw.random.randrange(200))  # most of what matters stands in front
    length = draw.random.randint(1, 40)
    if kind == "bits":
        damaged = bytearray(contents)
        for _ in range(draw.one_of((1, 3, 20))):
            if damaged:
                damaged[min(place, len(damaged) - 1)] ^= 1 << draw.random.randrange(8)
            place = draw.random.randrange(len(damaged) + 1)
        return bytes(damaged)
    if kind == "cut":
        return contents[:place]
    if kind == "lost":
        return contents[:place] + contents[place + length :]
    if kind == "doubled":
        return contents[:place] + contents[place : place + length] * 2 + contents[place + length :]
    if kind == "word":
        word = draw.one_of((b"\xff" * 8, b"\0" * 8, b"NaN", b"null", b"[" * 40, b'"', b"\n", b"-1"))
        return contents[:place] + word + contents[place + len(word) :]
    if kind == "digits":  # a number of the file becomes one that can't be
        digits = [i for i, byte in enumerate(contents[:4000]) if 48 <= byte < 58]
        if digits:
            at = draw.one_of(digits)
            number = draw.one_of((b"99999999999999", b"-7", b"1e308", b"true", b"{}"))
            return contents[:at] + number + contents[at + 1 :]
    return b"" if kind == "empty" else draw.random.randbytes(length)


def check(name: str, seed: int) -> None:
    """Damage one file of the reader ``name`` and read; raises Failure where that goes wrong."""
    draw, (make, read) = Draw(f"{name} {seed}"), READERS[name]
    with tempfile.TemporaryDirectory(prefix="vae-fast-fuzz-") as scratch:
        folder = Path(scratch, "files")
        shutil.copytree(_made(make), folder, symlinks=True)
        files = sorted(p for p in folder.rglob("*") if p.is_file() and not p.is_symlink())
        file = draw.one_of(files)
        file.write_bytes(damage(draw, file.read_bytes()))
        said, began = "", time.process_time()
        try:
            read(folder)
        except ERRORS as error:
            names = [scratch, "model_args", *(part.name for part in files)]  # or the field at fault
            if not any(name in str(error) for name in names):
                said = f"the error names no file: {type(error).__name__}: {error}"
            elif "\n" in str(error).strip():
                said = f"the error is more than a line: {error}"
        except Exception as error:  # noqa: BLE001
            said = f"{type(error).__name__}: {error}"
        if not said and time.process_time() - began > SECONDS:
            said = f"it took {time.process_time() - began:.1f} s of the processor"
        if said:
            place = file.relative_to(folder)
            raise Failure(f"{said}\n{place} damaged; again: python -m tests.fuzz {name} {seed}")


def run(seed: int, count: int) -> list[Failure]:
    found, names = [], sorted(READERS)
    for i in range(count):
        try:
            check(names[i % len(names)], seed * 1_000_003 + i // len(names))
        except Failure as failure:
            found.append(failure)
    return found
