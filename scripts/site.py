"""Hooks of mkdocs: pages and pictures that lie outside docs/ are part of the site, links included.

A page's links are those of the repository. README.md is the site's first page, CONTRIBUTING.md one of
its pages, and whatever else a page links to or shows (a report, a picture) is brought in under
repository/.
"""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
PLACES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md"}
_LINK = re.compile(r"(\]\()([^)\s#]*)((?:#[^)\s]*)?\))")
_FENCE = re.compile(r"^(```.*?^```)", flags=re.MULTILINE | re.DOTALL)


def place_of(path: str) -> str:
    """The path in the site of a file of the repository."""
    if path in PLACES:
        return PLACES[path]
    return path.removeprefix("docs/") if path.startswith("docs/") else f"repository/{path}"


def source_of(place: str) -> str:
    """The file of the repository that a page of the site is made from."""
    for path, other in PLACES.items():
        if place == other:
            return path
    repository = place.removeprefix("repository/")
    return repository if repository != place else f"docs/{place}"


def linked(text: str, source: str) -> list[str]:
    """The files of the repository that a page links to, by their paths."""
    found = []
    for part in _FENCE.split(text)[::2]:
        for _, target, _ in _LINK.findall(part):
            path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
            if target and ":" not in target and (ROOT / path).is_file():
                found.append(path)
    return found


def on_files(files, config):
    left = ["README.md", "CONTRIBUTING.md"]
    left += [source_of(f.src_uri) for f in files.documentation_pages()]
    seen = set()
    while left:
        source = left.pop()
        if source in seen:
            continue
        seen.add(source)
        if place_of(source) not in files.src_uris:
            files.append(File.generated(config, place_of(source), abs_src_path=str(ROOT / source)))
        if source.endswith(".md"):
            left += linked((ROOT / source).read_text(encoding="utf-8"), source)
    return files


def on_page_markdown(markdown, page, config, files):
    source = source_of(page.file.src_uri)
    here = posixpath.dirname(page.file.src_uri)

    def turned(match: re.Match) -> str:
        before, target, after = match.groups()
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        if not target or ":" in target or not (ROOT / path).exists():
            return match.group()
        return before + os.path.relpath(place_of(path), here or ".") + after

    parts = _FENCE.split(markdown)
    parts[::2] = [_LINK.sub(turned, part) for part in parts[::2]]
    return "".join(parts)
