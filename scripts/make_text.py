"""Make windows of characters, with the kind of text they are from as the label.

    python scripts/make_text.py OUT.npz [--length 64] [--stride 16]

From the texts of this repository: 0 the licence, 1 the documentation, 2 the Python code. ``images`` is
(N, length) uint8, the characters' codes, below 128 (others become a space), in a random order that is
the same every time; ``labels`` the kinds. The documentation and the code are cut to as many windows
as keep the three kinds within a factor of four.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
KINDS = {
    "licence": ["LICENSE"],
    "documentation": ["README.md", "CONTRIBUTING.md", "docs/*.md"],
    "code": ["vae_fast/models/*.py", "vae_fast/tasks/*.py"],
}
PART = 4  # a kind has at most this many times the windows of the rarest kind


def characters(patterns: list[str]) -> np.ndarray:
    """The files' text as codes below 128. Repeated blanks are kept."""
    paths = sorted(path for pattern in patterns for path in ROOT.glob(pattern))
    codes = np.frombuffer("\n".join(path.read_text() for path in paths).encode("utf-8"), np.uint8)
    return np.where(codes < 128, codes, ord(" ")).astype(np.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--stride", type=int, default=16)
    given = parser.parse_args()
    rng = np.random.default_rng(0)
    found = []
    for patterns in KINDS.values():
        view = np.lib.stride_tricks.sliding_window_view(characters(patterns), given.length)
        found.append(rng.permutation(view[:: given.stride]))
    most = PART * min(map(len, found))
    found = [windows[:most] for windows in found]
    labels = np.concatenate([np.full(len(windows), kind) for kind, windows in enumerate(found)])
    order = rng.permutation(len(labels))
    given.out.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(given.out, images=np.concatenate(found)[order], labels=labels[order])
    counts = ", ".join(f"{len(w)} of {kind}" for kind, w in zip(KINDS, found, strict=True))
    print(f"{len(labels)} windows of {given.length} characters in {given.out}: {counts}")


if __name__ == "__main__":
    main()
