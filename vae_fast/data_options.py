"""How image files and folders are read, and how much of one's own data is held out."""

from __future__ import annotations

from dataclasses import dataclass

MODES = ("L", "RGB")


@dataclass(frozen=True)
class DataOptions:
    """How files become samples, and which are held out for validation.

    Args:
        size: of image files: the shorter side is resized to it, and the square in the middle is cut
            out; images stay as they are, and must be of one size, when not given.
        mode: of image files: L (grey) or RGB; RGB if any of them has colour when not given.
        background: the colour behind transparent pixels: a name or #rrggbb.
        held_out: the part of one's own data that is held out for validation, of every class alike.
        split_seed: which samples are held out.
    """

    size: int | None = None
    mode: str | None = None
    background: str = "white"
    held_out: float = 0.1
    split_seed: int = 0

    def check(self) -> None:
        """Raise ValueError or TypeError for the first value that can't be."""
        if self.mode is not None and self.mode not in MODES:
            raise ValueError(f"mode must be L, RGB or None, and is {self.mode!r}")
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
            raise ValueError(f"held_out is a part between 0 and 1, and is {self.held_out}")
