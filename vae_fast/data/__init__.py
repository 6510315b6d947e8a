"""Data: sources by name, arrays, files and torch Datasets, and uint8 mini-batches of them.

`load` gives a split of a data set, and `as_data` wraps your own data. `Batches` serves either to a
training loop. `pack` writes them to shards, for data larger than memory. Importing this needs torch
and NumPy only.
"""

from vae_fast.data.arrays import ArrayData, from_array
from vae_fast.data.augment import build_augment
from vae_fast.data.batches import Batch, Batches
from vae_fast.data.binarize import binarized_once
from vae_fast.data.catalog import NAMES, SPLITS
from vae_fast.data.datasets import DatasetData, from_dataset
from vae_fast.data.errors import DataUnavailableError
from vae_fast.data.few_labels import keep_labels
from vae_fast.data.folders import ImageFolder
from vae_fast.data.idx import read_idx
from vae_fast.data.pack import pack
from vae_fast.data.shards import ShardData, open_shards
from vae_fast.data.sources import as_data, holds_images, in_support, load, of_counts
from vae_fast.data.sparse_rows import SparseRows
from vae_fast.data.sprites import Sprites
from vae_fast.data.streams import StreamData
from vae_fast.data_options import DataOptions

__all__ = [
    "NAMES",
    "SPLITS",
    "ArrayData",
    "Batch",
    "Batches",
    "DataOptions",
    "DataUnavailableError",
    "DatasetData",
    "ImageFolder",
    "ShardData",
    "SparseRows",
    "Sprites",
    "StreamData",
    "as_data",
    "binarized_once",
    "build_augment",
    "from_array",
    "from_dataset",
    "holds_images",
    "in_support",
    "keep_labels",
    "load",
    "of_counts",
    "open_shards",
    "pack",
    "read_idx",
]
