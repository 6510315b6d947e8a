"""A folder of image files, or one image file, as a torch Dataset."""

from __future__ import annotations

import copy
import os
import stat
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from vae_fast.data.images import (
    SUFFIXES,
    Header,
    decoded,
    is_grey_colour,
    largest_16,
    pillow,
    read_header,
)
from vae_fast.data.logged_progress import LoggedProgress
from vae_fast.data.message_words import counted, shown
from vae_fast.data_options import DataOptions

# Folders that programs leave behind. Names that begin with a dot are skipped as well.
TOOL_FOLDERS = {
    "__MACOSX", "__pycache__", "@eaDir", "#recycle", "@Recycle", "$RECYCLE.BIN",
    "System Volume Information", "lost+found",
}  # fmt: skip
TOOL_FILES = {"thumbs.db", "desktop.ini", "ehthumbs.db"}
SPLIT_FOLDERS = {"train": "train", "training": "train", "val": "val", "valid": "val",
                 "validation": "val", "test": "test", "testing": "test"}  # fmt: skip
# Not images, and not mistaken for images: notes, lists, licences.
_QUIET = {".txt", ".md", ".csv", ".json", ".xml", ".yaml", ".yml", ".html", ".tsv", ".log", ""}

Parts = tuple[str, ...]


class ImageFolder(Dataset[Any]):
    """All image files in a folder and its subfolders, in the order of their paths; or one file.

    If all files are in subfolders, the subfolders directly below `root` are the classes, in the
    order of their names. If the subfolders are called train, val (valid, validation) and test, they
    are the splits, and the folders in them are the classes. This object is then the first existing
    split, and `part` gives the others. Hidden folders and folders of tools (.git, __MACOSX, @eaDir)
    are skipped. One warning line counts other files that are not used.

    All headers are read at the start, so sizes, colours and files that are not images are known
    early. If that takes long, the logger vae_fast.data logs the progress. Pillow decodes pixels on
    access: turned upright, the first page only, transparent pixels over `background`. Grey pixels
    of 16 bits are shifted to 8 bits, by as much as the largest value in the folder needs. Formats:
    PNG, JPEG, BMP, GIF, PPM, TIFF, WebP, by suffix and by content.

    Attributes:
        files: each file's path below `root`.
        classes: the classes' names; empty without classes.
        labels: each file's class, or None.
        splits: the existing split folders, such as {"train": "train", "val": "valid"}.

    Args:
        root: the folder, or a file.
        size: None keeps images as they are; all must then have one size. An int resizes the shorter
            side to it and crops the square in the middle.
        mode: Pillow's "L" for grey or "RGB" for colour; None is RGB if any image has colour.
        background: the colour behind transparent pixels, a name or #rrggbb.
        damaged: "skip" decodes every file once at the start and leaves out those that fail; with
            "error" such a file is an error when it is read.

    Raises:
        FileNotFoundError: no such folder, or no image files in it.
        ValueError: an unknown mode, images of several sizes, a file that can't be decoded.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        size: int | None = None,
        mode: str | None = None,
        background: str = "white",
        damaged: str = "error",
    ):
        DataOptions(size=size, mode=mode, background=background, damaged=damaged).check()
        self.root = Path(root)
        self.size, self.background = size, background
        found, skipped = _find(self.root)
        headers, unusable = _headers(self.root, found, pixels=damaged == "skip")
        self._found = [parts for parts in found if parts in headers]
        self.damaged = {_path(self.root, parts): reason for parts, reason in unusable.items()}
        if not self._found:
            first, reason = next(iter(unusable.items()))
            raise ValueError(f"{shown(_path(self.root, first))} can't be decoded: {reason}")
        self.mode = mode or _mode(headers.values(), background)
        self._shift = _shift(self.root, headers)
        if size is None:
            _check_sizes(self.root, headers)
        loose: list[Parts] = [parts for parts in self._found if len(parts) == 1]
        self.splits = _split_folders(self.root, self._found)
        if self.splits:
            self._found = [parts for parts in self._found if len(parts) > 1]
        self._warn(skipped, unusable, loose, sum(h.pages > 1 for h in headers.values()))
        kinds = list(self.splits)
        self._choose(kinds[:1])

    def part(self, *splits: str) -> ImageFolder:
        """The images of these of `splits`, with the same classes, mode and scale."""
        other = copy.copy(self)
        other._choose(splits)
        return other

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Any:
        """A PIL image, or (image, class) where there are classes."""
        image = self._open(self.paths[index])
        return image if self.labels is None else (image, self.labels[index])

    def _open(self, path: Path) -> Any:
        try:
            image = decoded(path, self.mode, self.background, self._shift)
        except ValueError as error:
            raise ValueError(
                f"{shown(path)} can't be decoded: {error}; get it again, remove it, or leave "
                'out all such files: --data.damaged skip (in Python damaged="skip")'
            ) from error
        if self.size is not None:
            from PIL import Image, ImageOps

            image = ImageOps.fit(image, (self.size, self.size), Image.Resampling.BOX)
        return image

    def _choose(self, splits: Iterable[str]) -> None:
        """Select the files of these splits, or all files if there are no splits."""
        if not self.splits:
            chosen, depth = self._found, 0
            self.classes = _classes(self._found, 0)
        else:
            folders = {self.splits[split] for split in splits}
            chosen, depth = [parts for parts in self._found if parts[0] in folders], 1
            first = next(iter(self.splits.values()))  # train, where it is there
            self.classes = _classes([p for p in self._found if p[0] == first], 1)
            if self.classes != (own := _classes(chosen, 1)):
                self._check_classes(first, own, folders)
        self.paths = [_path(self.root, parts) for parts in chosen]
        self.files = ["/".join(parts) for parts in chosen]
        numbers = {name: number for number, name in enumerate(self.classes)}
        self.labels = [numbers[parts[depth]] for parts in chosen] if self.classes else None

    def _check_classes(self, first: str, own: list[str], folders: set[str]) -> None:
        where, other = shown(self.root / first), " and ".join(sorted(folders))
        if bool(own) != bool(self.classes):
            with_, without = (first, other) if self.classes else (other, first)
            raise ValueError(
                f"{shown(self.root)}: {with_} has class folders and {without} has images beside "
                "them or none: sort both alike"
            )
        if unknown := sorted(set(own) - set(self.classes)):
            raise ValueError(
                f"{other} has the class {shown(unknown[0])}, which {where} lacks: sort both alike"
            )

    def _warn(
        self, skipped: Counter[str], damaged: dict[Parts, str], loose: list[Parts], pages: int
    ) -> None:
        """Warn, in one line, of files that are not used."""
        words = [f"{counted(count, what)}" for what, count in sorted(skipped.items())]
        if damaged:
            (first, reason), *rest = damaged.items()
            more = "".join(f", {shown(Path(*parts))}" for parts, _ in rest[:4])
            words.append(
                f"{counted(len(damaged), 'damaged file')} ({shown(Path(*first))}: {reason}"
                + (f"; also{more[1:]}" if more else "")
                + (f" and {len(rest) - 4:,} more: ImageFolder(...).damaged)" if rest[4:] else ")")
            )
        if self.splits and loose:
            words.append(f"{counted(len(loose), 'image')} beside the folders of splits")
        if pages:
            words.append(f"all but the first page of {counted(pages, 'file')}")
        used = f"{shown(self.root)}: {counted(len(self._found), 'image')} used"
        notes = [f"not used: {', '.join(words)}"] if words else []
        if not self.splits and loose and len(loose) < len(self._found):
            notes.append(
                f"no classes, as {counted(len(loose), 'image')} ({shown(Path(*loose[0]))}) "
                f"{'lies' if len(loose) == 1 else 'lie'} beside the subfolders, which would be the "
                "classes"
            )
        if notes:
            warnings.warn("; ".join([used, *notes]), stacklevel=3)


def _path(root: Path, parts: Parts) -> Path:
    return root.joinpath(*parts) if root.is_dir() else root


def _find(root: Path) -> tuple[list[Parts], Counter[str]]:
    """The files with an image suffix, in order, and counts of all other files."""
    if root.is_file():
        return [(root.name,)], Counter()
    if not root.is_dir():
        raise FileNotFoundError(f"{shown(root)} is not a folder")
    found: list[Parts] = []
    skipped: Counter[str] = Counter()
    for parts, mode in _walk(root, skipped):
        suffix = os.path.splitext(parts[-1])[1].lower()
        if parts[-1].startswith(".") or parts[-1].lower() in TOOL_FILES:
            continue
        if mode is None or not stat.S_ISREG(mode):
            skipped["broken link" if mode is None else "device or pipe"] += 1
        elif suffix in SUFFIXES:
            found.append(parts)
        elif suffix not in _QUIET:
            skipped[f"{shown(suffix)} file"] += 1
    if not found:
        there = ", ".join(counted(count, what) for what, count in sorted(skipped.items()))
        raise FileNotFoundError(
            f"{shown(root)} holds neither shards (an index.json) nor image files "
            f"({' '.join(SUFFIXES)})" + (f"; it holds {there}" if there else "")
        )
    return sorted(found), skipped


def _walk(root: Path, skipped: Counter[str]) -> Iterator[tuple[Parts, int | None]]:
    """Every file below root, with its mode (None: a broken link). Links to folders are followed
    once, because a link may point to a parent folder."""
    seen: set[tuple[int, int]] = set()
    todo: list[tuple[Parts, Path]] = [((), root)]
    while todo:
        parts, folder = todo.pop()
        facts = folder.stat()
        if (facts.st_dev, facts.st_ino) in seen:
            skipped["link to a folder that is there already"] += 1
            continue
        seen.add((facts.st_dev, facts.st_ino))
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir():
                    if entry.name.startswith(".") or entry.name in TOOL_FOLDERS:
                        skipped["hidden or tool folder"] += 1
                    else:
                        todo.append(((*parts, entry.name), Path(entry.path)))
                    continue
                try:
                    yield (*parts, entry.name), entry.stat().st_mode
                except OSError:
                    yield (*parts, entry.name), None


def _headers(
    root: Path, found: list[Parts], pixels: bool
) -> tuple[dict[Parts, Header], dict[Parts, str]]:
    """The files' headers, and for unreadable files the reason; ``pixels``: decode them as well."""
    pillow()

    def look(parts: Parts) -> Header | str:
        try:
            return read_header(_path(root, parts), pixels)
        except (ValueError, OSError) as error:
            return str(error)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of unusual metadata and sizes
        # threads, because network drives answer late
        with ThreadPoolExecutor(8, "vae_fast-headers") as pool:
            what = "images checked" if pixels else "image headers read"
            progress, looked = LoggedProgress(shown(root), len(found), what), []
            for header in pool.map(look, found):
                looked.append(header)
                progress.show(len(looked))
    good = {p: h for p, h in zip(found, looked, strict=True) if isinstance(h, Header)}
    return good, {p: h for p, h in zip(found, looked, strict=True) if isinstance(h, str)}


def _mode(headers: Iterable[Header], background: str) -> str:
    headers = list(headers)
    grey = all(header.grey for header in headers)
    if grey and not is_grey_colour(background):
        grey = not any(header.transparent for header in headers)
    return "L" if grey else "RGB"


def _shift(root: Path, headers: dict[Parts, Header]) -> int:
    """By how many bits 16-bit values are shifted to fit 8 bits, from the largest value.

    Many such files hold 10 or 12 bits: their upper 8 bits alone would be nearly black.
    """
    deep = [parts for parts, header in headers.items() if header.bits == 16]
    largest = {True: 0, False: 0}  # of grey ones, of colour
    for parts in deep:
        grey = headers[parts].grey
        try:
            largest[grey] = max(largest[grey], largest_16(_path(root, parts)))
        except ValueError as error:
            raise ValueError(f"{shown(_path(root, parts))} can't be decoded: {error}") from error
    coloured = [parts for parts in deep if not headers[parts].grey]
    if coloured and largest[False] < 0x8000:
        raise ValueError(
            f"{shown(_path(root, coloured[0]))} has 16 bits a channel, of which the images here use "
            f"{largest[False].bit_length()} at most, and Pillow keeps the upper 8 alone: convert "
            "them to 8 bits, or give an array"
        )
    return max(0, largest[True].bit_length() - 8)


def _check_sizes(root: Path, headers: dict[Parts, Header]) -> None:
    sizes = Counter(header.size for header in headers.values())
    if len(sizes) == 1:
        return
    common, rare = sizes.most_common(1)[0], sizes.most_common()[-1]
    example = next(parts for parts, header in headers.items() if header.size == rare[0])
    raise ValueError(
        f"{shown(root)} has images of {len(sizes)} sizes: {common[1]} of "
        f"{'x'.join(map(str, common[0]))} and {rare[1]} of {'x'.join(map(str, rare[0]))} "
        f"({shown(Path(*example))}); give one, --data.size N (in Python DataOptions(size=N) or "
        "ImageFolder(..., size=N)): the square in the middle is cut out and resized to it"
    )


def _split_folders(root: Path, found: list[Parts]) -> dict[str, str]:
    """{"train": folder, ...} where the subfolders are splits, in this order: train, val, test."""
    tops = sorted({parts[0] for parts in found if len(parts) > 1})
    known = [top for top in tops if top.lower() in SPLIT_FOLDERS]
    kinds = {SPLIT_FOLDERS[top.lower()]: top for top in known}
    others = [top for top in tops if top not in known]
    if not known or (others and len(kinds) == 1):  # a class may be called train
        return {}
    if others or len(kinds) < len(known):
        raise ValueError(
            f"{shown(root)} holds the folders of splits {', '.join(known)}"
            + (f" beside {', '.join(map(shown, others[:3]))}" if others else ", two of one kind")
            + ": leave one folder for each split, or give the path of one"
        )
    return {kind: kinds[kind] for kind in ("train", "val", "test") if kind in kinds}


def _classes(found: list[Parts], depth: int) -> list[str]:
    """The names of the folders at this depth if every file is in one; else empty."""
    if not found or any(len(parts) < depth + 2 for parts in found):
        return []
    return sorted({parts[depth] for parts in found})
