"""File names and counts, as messages show them."""

from __future__ import annotations

import os


def shown(name: str | os.PathLike[str]) -> str:
    """A file's name on one line: characters that cannot be printed or are not UTF-8 are escaped."""
    text = os.fspath(name)
    escaped = (c.encode("unicode_escape", "surrogatepass").decode() for c in text)
    return "".join(c if c.isprintable() else e for c, e in zip(text, escaped, strict=True))


def counted(count: int, what: str) -> str:
    """'1 broken link', '2,000 broken links': a number and its noun, in the plural if needed."""
    if count == 1:
        return f"1 {what}"
    words = what.split()
    place = next(i for i, w in enumerate(words) if w in ("file", "image", "folder", "link", "pipe"))
    return f"{count:,} " + " ".join([*words[:place], words[place] + "s", *words[place + 1 :]])
