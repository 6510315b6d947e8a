"""Image files, decoded by Pillow: accepted formats, and conversion of pixels.

By default Pillow opens some 40 formats by their content and passes some (EPS) to system programs.
Here it gets a list of formats that it decodes itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "PPM", "TIFF", "WEBP")
SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".gif",
    ".pgm", ".ppm", ".pbm", ".pnm", ".tif", ".tiff", ".webp",
)  # fmt: skip
_GREY = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N")
_TURNED = (5, 6, 7, 8)  # the EXIF orientations that swap width and height


class Header(NamedTuple):
    """An image file's header; no pixels are decoded.

    Attributes:
        size: (width, height), upright.
        grey: whether it has no colour.
        transparent: whether it may have transparent pixels.
        bits: of a channel, 8 or 16.
        pages: 1, or 2 if there are several.
    """

    size: tuple[int, int]
    grey: bool
    transparent: bool
    bits: int
    pages: int


def pillow() -> Any:
    """PIL.Image, or ImportError that says what to install."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("image files are decoded with Pillow: pip install pillow") from error
    return Image


def read_header(path: Path, pixels: bool = False) -> Header:
    """Raises ValueError if the file is not one of FORMATS or its header is damaged, or with
    ``pixels`` its pixels, which are then decoded and dropped."""
    with opened(path) as image:
        # A phone's JPEG may have a depth map as its second page, which is not wanted.
        pages = 2 if image.format != "MPO" and getattr(image, "is_animated", False) else 1
        width, height = image.size
        size = (height, width) if _orientation(image) in _TURNED else (width, height)
        header = Header(size, is_grey(image), is_transparent(image), bits_of(image), pages)
        if pixels:
            image.load()
        return header


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """The opened image, not decoded. Any error, here or within the block, becomes a ValueError."""
    image_module = pillow()
    try:
        with image_module.open(path, formats=FORMATS) as image:
            yield image
    # Pillow raises errors of every kind, struct.error and SyntaxError among them.
    except Exception as error:
        raise ValueError(_open_error(path, error)) from error


def _open_error(path: Path, error: Exception) -> str:
    name = type(error).__name__
    if name == "UnidentifiedImageError":
        return f"its content is none of {', '.join(FORMATS)}"
    return str(error).replace(str(path), path.name) or name


def _orientation(image: Any) -> int:
    # For a PNG, getexif would decode the pixels to look for metadata behind them.
    known = image.format != "PNG" or "exif" in image.info
    return image.getexif().get(0x0112, 1) if known else 1


def is_grey(image: Any) -> bool:
    """Whether an image, or its palette if it has one, has no colour."""
    if image.mode in ("P", "PA") and image.palette is not None:
        colours = np.array(image.getpalette() or [], dtype=np.uint8).reshape(-1, 3)
        return bool((colours == colours[:, :1]).all())
    return image.mode in _GREY or "'LA;16" in _raw(image)


def is_transparent(image: Any) -> bool:
    return image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in getattr(
        image, "info", ()
    )


def bits_of(image: Any) -> int:
    """Bits per channel: 8 or 16. ValueError for 32 bits, whose range is not known."""
    if image.mode == "F":
        raise ValueError("it has floating-point pixels, whose range is not known; give an array")
    if image.mode in _GREY and image.mode.startswith("I"):
        return 16
    return 16 if ";16" in _raw(image) else 8


def _raw(image: Any) -> str:
    """How a file stores its pixels. Pillow opens 16-bit colour as 8 bits, and only this shows
    it."""
    return repr(getattr(image, "tile", ""))


def values_16(image: Any) -> np.ndarray:
    """The pixels of a 16-bit grey image, (H, W) uint16; ValueError if they have more bits."""
    values = np.asarray(image)
    if values.size and (int(values.min()) < 0 or int(values.max()) > 0xFFFF):
        raise ValueError(
            f"its pixels go from {values.min()} to {values.max()}, beyond 16 bits: convert it to 8 "
            "bits, or give an array"
        )
    return values.astype(np.uint16)  # in this machine's order of bytes


def largest_16(path: Path) -> int:
    """The largest value in a 16-bit image; for colour, of which Pillow keeps the upper 8 bits, of
    those."""
    with opened(path) as image:
        if image.mode.startswith("I"):
            return int(values_16(image).max())
        return int(np.asarray(image).max()) << 8


def decoded(path: Path, mode: str, background: str, shift: int) -> Any:
    """The image upright, without transparency and in ``mode``, L or RGB.

    Args:
        shift: of a grey image of 16 bits, how far its values are shifted to fit 8.

    Raises:
        ValueError: the file is damaged.
    """
    from PIL import Image, ImageOps

    with opened(path) as file:
        image = ImageOps.exif_transpose(file)
        if image.mode.startswith("I"):
            values = np.minimum(values_16(image) >> shift, 255)
            image = Image.fromarray(values.astype(np.uint8))
        return flat(image, background).convert(mode)


def flat(image: Any, background: str = "white") -> Any:
    """The image over a background if it has transparency; else the image itself."""
    if not is_transparent(image):
        return image
    Image = pillow()
    above = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", above.size, background), above).convert("RGB")


def is_grey_colour(background: str) -> bool:
    """Whether a colour is grey; ValueError if Pillow doesn't know it."""
    from PIL import ImageColor

    try:
        red, green, blue = cast("tuple[int, int, int]", ImageColor.getcolor(background, "RGB"))
    except ValueError:
        raise ValueError(
            f"background {background!r} is not a colour: give a name such as white, or #rrggbb"
        ) from None
    return red == green == blue
