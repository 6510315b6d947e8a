"""Make vae_fast/data/fashion10k.npz, the embedded data set, from Fashion-MNIST's training set.

    python scripts/make_fashion10k.py [--source FOLDER] [--out FILE]

FOLDER holds train-images-idx3-ubyte.gz and train-labels-idx1-ubyte.gz (Debian's package
dataset-fashion-mnist puts them in /usr/share/datasets/fashion-mnist). For each of the ten classes,
1,000 training and 200 validation images are drawn without replacement with a fixed seed; each part
then keeps the order of the source. The test set is not touched, so that results measured on it mean
what they mean elsewhere.

The arrays are the same wherever this runs (RandomState's stream is frozen by NumPy's policy); the
compressed bytes are the same for the same zlib. The checksum printed at the end is the one that
vae_fast/data/embedded.py verifies on every load.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import zipfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from vae_fast.data.embedded import checksum
from vae_fast.data.idx import read_idx

SEED = 20171  # any number; never change it: it names these 12,000 images
TRAIN_PER_CLASS, VAL_PER_CLASS = 1000, 200


def choose(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the training and validation images in the source, ascending, disjoint."""
    rng = np.random.RandomState(SEED)
    train, val = [], []
    for value in range(10):
        picked = rng.permutation(np.flatnonzero(labels == value))
        train.append(picked[:TRAIN_PER_CLASS])
        val.append(picked[TRAIN_PER_CLASS : TRAIN_PER_CLASS + VAL_PER_CLASS])
    return np.sort(np.concatenate(train)), np.sort(np.concatenate(val))


def write_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Like np.savez_compressed at the highest level, but without the machine or the date."""
    beside = path.with_name(path.name + ".part")
    with zipfile.ZipFile(beside, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as file:
        for name, array in arrays.items():
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, array, allow_pickle=False)
            entry = zipfile.ZipInfo(name + ".npy", date_time=(1980, 1, 1, 0, 0, 0))
            entry.create_system, entry.external_attr = 3, 0o644 << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            file.writestr(entry, buffer.getvalue(), compresslevel=9)
    os.replace(beside, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--out", type=Path, default=ROOT / "vae_fast" / "data" / "fashion10k.npz")
    args = parser.parse_args()

    images = read_idx(args.source / "train-images-idx3-ubyte.gz")
    labels = read_idx(args.source / "train-labels-idx1-ubyte.gz")
    train, val = choose(labels)
    arrays = {}
    for name, rows in (("train", train), ("val", val)):
        arrays[f"{name}_images"] = images[rows]
        arrays[f"{name}_labels"] = labels[rows]
        # The position of each image in the source, so that anyone can check it.
        arrays[f"{name}_source_index"] = rows.astype(np.uint16)
    write_npz(args.out, arrays)
    print(f"{args.out}: {args.out.stat().st_size} bytes, sha256 of the arrays {checksum(arrays)}")


if __name__ == "__main__":
    main()
