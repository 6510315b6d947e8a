"""Options for reading image files and folders, and for holding out custom data."""

from __future__ import annotations

from dataclasses import dataclass

MODES = ("L", "RGB")
DAMAGED = ("error", "skip")


@dataclass(frozen=True)
class DataOptions:
    """How files become samples, and which are held out for validation.

    Args:
        size: for image files: the shorter side is resized to it, and the square in the middle is
            cropped. Without it images are not resized, and must have one size.
        mode: for image files: L (grey) or RGB; by default RGB if any of them has colour.
        background: the colour behind transparent pixels: a name or #rrggbb.
        damaged: for image files whose pixels can't be decoded: error, when such a file is read, or
            skip: every file is decoded once at the start, and those are left out, with a warning.
        held_out: the fraction of custom data that is held out for validation, the same for every
            class.
        split_seed: the seed that chooses the held-out samples.
    """

    size: int | None = None
    mode: str | None = None
    background: str = "white"
    damaged: str = "error"
    held_out: float = 0.1
    split_seed: int = 0

    def check(self) -> None:
        """Raise ValueError or TypeError for the first value that can't be."""
        if self.mode is not None and self.mode not in MODES:
            raise ValueError(f"mode must be L, RGB or None, and is {self.mode!r}")
        if self.damaged not in DAMAGED:
            raise ValueError(f"damaged must be error or skip, and is {self.damaged!r}")
        for name, least in (("size", 1), ("split_seed", 0)):
            value = getattr(self, name)
            if value is None and name == "size":
                continue
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"{name} must be an int, and is {value!r}")
            if value < least:
                raise ValueError(f"{name} must be at least {least}, and is {value}")
        if isinstance(self.held_out, bool) or not isinstance(self.held_out, (int, float)):
            raise TypeError(f"held_out must be a number, and is {self.held_out!r}")
        if not 0 < self.held_out < 1:
            raise ValueError(
                "held_out, the part of the data for validation, must be between 0 and 1, such as 0.1, "
                f"got {self.held_out}"
            )
