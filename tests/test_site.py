"""The site's navigation has every page and its reference every public name, without building it.

`make docs` and scripts/check_docs.sh build it, and check links and anchors.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = (
    "data", "distributions", "evaluate", "hub", "models", "nn", "patches", "tasks", "train",
)  # fmt: skip

pytestmark = pytest.mark.skipif(
    not (ROOT / "mkdocs.yml").is_file(), reason="these tests run in the source tree"
)


def navigation() -> list[str]:
    text = (ROOT / "mkdocs.yml").read_text()
    return re.findall(r"^ +- (\S+\.md)$", text[text.index("\nnav:") :], flags=re.MULTILINE)


def test_every_page_is_in_the_navigation():
    pages = {str(p.relative_to(ROOT / "docs")) for p in (ROOT / "docs").rglob("*.md")}
    found = navigation()
    assert len(found) == len(set(found))
    own = {page for page in found if not page.startswith("repository/")}
    assert own == pages | {"index.md", "contributing.md"}
    for page in set(found) - own:
        assert (ROOT / page.removeprefix("repository/")).is_file(), page


def in_reference() -> tuple[list[str], set[str]]:
    """The names that mkdocstrings documents, and those that a page names in `code`."""
    text = "\n".join(p.read_text() for p in sorted((ROOT / "docs/reference").glob("*.md")))
    return re.findall(r"^::: (\S+)$", text, flags=re.MULTILINE), set(re.findall(r"`(\S+)`", text))


def found_at(path: str):
    module, _, name = path.rpartition(".")
    if module == "vae_fast.lightning" and not importlib.util.find_spec("lightning"):
        return None
    try:
        return getattr(importlib.import_module(module), name)
    except (AttributeError, ModuleNotFoundError):
        return importlib.import_module(path)


def test_every_public_name_is_in_the_reference():
    documented, named = in_reference()
    assert len(documented) == len(set(documented))
    objects = [found_at(path) for path in documented]  # whatever is there exists
    wanted = {"vae_fast": importlib.import_module("vae_fast").__all__}
    wanted |= {
        f"vae_fast.{module}": importlib.import_module(f"vae_fast.{module}").__all__
        for module in MODULES
    }
    lacking = [
        f"{module}.{name}"
        for module, names in wanted.items()
        for name in names
        if f"{module}.{name}" not in documented
        and f"{module}.{name}" not in named
        and not any(thing is getattr(importlib.import_module(module), name) for thing in objects)
    ]
    assert lacking == ["vae_fast.distributions"]  # a module, whose name is there


def test_documented_names_have_docstrings():
    """A docstring, for what has a place for one."""
    for path in in_reference()[0]:
        thing = found_at(path)
        if callable(thing):
            assert thing.__doc__, path
