#!/usr/bin/env python3
"""Compare a release's version with the package's and the changelog's: check_version.py 0.2.0

No part of the package is imported, so this needs Python alone.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def problems(wanted: str) -> list[str]:
    """Sentences that say what to fix before the version can be released."""
    found = []
    package = (ROOT / "vae_fast" / "__init__.py").read_text(encoding="utf-8")
    version = re.search(r'^__version__ = "(.+)"$', package, flags=re.MULTILINE)
    if version is None or version[1] != wanted:
        has = version[1] if version else "no version"
        found.append(
            f"vae_fast/__init__.py has {has}, but the release is {wanted}: set __version__"
        )
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    dated = rf"^## {re.escape(wanted)} \(\d{{4}}-\d\d-\d\d\)$"
    if not re.search(dated, changelog, flags=re.MULTILINE):
        found.append(f"CHANGELOG.md has no entry `## {wanted} (YYYY-MM-DD)`: name and date it")
    return found


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: check_version.py VERSION")
    if found := problems(sys.argv[1]):
        sys.exit("\n".join(found))
    print(f"{sys.argv[1]} is the package's and the changelog's version")
