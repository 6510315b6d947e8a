"""A folder of image files as a torch Dataset."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from vae_fast.data.datasets import eight_bits

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".pgm", ".ppm", ".tif", ".tiff", ".webp")


class ImageFolder(Dataset):
    """All image files in a folder and those below it, in the order of their paths.

    Where all of them lie in subfolders, the subfolders directly below `root` are the classes, in
    the order of their names. Files are decoded with Pillow when they are asked for.

    Args:
        root: the folder.
        size: None takes images as they are, and they must then be of one size; an int resizes the
            shorter side to it and cuts out the square in the middle.
        mode: Pillow's "L" for grey or "RGB" for colour; None takes the first image's for all.

    Raises:
        FileNotFoundError: no such folder, or no image files in it.
        ValueError: an unknown mode, or a file that can't be decoded, which is named.
    """

    def __init__(
        self, root: str | os.PathLike[str], *, size: int | None = None, mode: str | None = None
    ):
        self.root = Path(root)
        if not self.root.is_dir():
            raise FileNotFoundError(f"{root} is not a folder")
        if mode not in (None, "L", "RGB"):
            raise ValueError(f"mode must be L, RGB or None, and is {mode!r}")
        if size is not None and size < 1:
            raise ValueError(f"size must be at least 1, and is {size}")
        found = (p for p in self.root.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
        self.paths = sorted(found)
        if not self.paths:
            raise FileNotFoundError(
                f"{root} holds neither shards (an index.json) nor image files ({' '.join(SUFFIXES)})"
            )
        below = [path.relative_to(self.root).parts for path in self.paths]
        sorted_in = all(len(parts) > 1 for parts in below)
        self.classes = sorted({parts[0] for parts in below}) if sorted_in else []
        numbers = {name: number for number, name in enumerate(self.classes)}
        self.labels = [numbers[parts[0]] for parts in below] if sorted_in else None
        self.size, self.mode = size, mode
        if mode is None:
            self.mode = "L" if self._open(0).mode in ("L", "1", "LA") else "RGB"

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Any:
        """A PIL image, or (image, class) where there are classes."""
        image = self._open(index)
        return image if self.labels is None else (image, self.labels[index])

    def _open(self, index: int) -> Any:
        try:
            from PIL import Image, ImageOps
        except ImportError as error:
            raise ImportError("image files are decoded with Pillow: pip install pillow") from error
        path = self.paths[index]
        try:
            with Image.open(path) as file:
                image = eight_bits(ImageOps.exif_transpose(file))
                image = image.convert(self.mode) if self.mode else image.copy()
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise ValueError(f"{path} can't be decoded: {error}") from error
        if self.size is not None and self.mode:
            image = ImageOps.fit(image, (self.size, self.size), Image.Resampling.BOX)
        return image
