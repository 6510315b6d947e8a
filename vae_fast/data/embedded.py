"""fashion10k: the data set that travels in the package.

10,000 training and 2,000 validation images of Fashion-MNIST's *training* set, 28x28 uint8, each
class equally often, made by scripts/make_fashion10k.py. Fashion-MNIST is Zalando SE's, under the
MIT licence; its notice is in fashion10k.LICENSE.txt, beside the data.
Source: Xiao, Rasul and Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine
Learning Algorithms", arXiv:1708.07747.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from vae_fast.data.files import read_npz

FASHION10K = Path(__file__).with_name("fashion10k.npz")
# A plain .npz, though lzma would save 14%: np.load reads it anywhere, in a sixth of the time.
SHA256 = "6254f3e79406d4721d74e6393b1358f38d38b0c99d421133cb72f2fbd10a6a75"
CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
_FIELDS = ("images", "labels", "source_index")


def checksum(arrays: dict[str, np.ndarray]) -> str:
    """SHA-256 over the arrays' names, types, shapes and values, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name} {array.dtype.str} {array.shape};".encode())
        digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()


def read_fashion10k(path: Path = FASHION10K) -> dict[str, np.ndarray]:
    """All arrays of the file, verified: {train,val}_{images,labels,source_index}.

    images are (N, 28, 28) uint8, labels (N,) uint8 and source_index (N,) uint16, the image's place
    in Fashion-MNIST's training set.

    Raises:
        FileNotFoundError: the file isn't in the package.
        ValueError: its contents are not those that the package was released with.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: it belongs to the package, so install vae-fast again, or, in a "
            "clone, run python scripts/make_fashion10k.py"
        )
    try:
        arrays = read_npz(path, [f"{part}_{f}" for part in ("train", "val") for f in _FIELDS])
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}); install vae-fast again") from error
    found = checksum(arrays)
    if found != SHA256:
        raise ValueError(
            f"{path} is damaged: the SHA-256 of its arrays is {found}, and {SHA256} was expected; "
            "install vae-fast again"
        )
    return arrays
