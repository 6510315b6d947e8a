"""Data: sources by name, arrays, files and torch Datasets, and uint8 mini-batches of them.

`load` gives a split of a data set, `as_data` wraps one's own, `Batches` serves either to a training
loop; `pack` writes any of them to shards, for data larger than memory. Importing this needs torch and NumPy only.
"""

from .arrays import ArrayData, from_array
from .batches import Batch, Batches
from .catalog import NAMES, SPLITS
from .datasets import DatasetData, from_dataset
from .errors import DataUnavailableError
from .folders import ImageFolder
from .idx import read_idx
from .pack import pack
from .shards import ShardData, open_shards
from .sources import as_data, load
from .sprites import Sprites

__all__ = [
    "NAMES",
    "SPLITS",
    "ArrayData",
    "Batch",
    "Batches",
    "DataUnavailableError",
    "DatasetData",
    "ImageFolder",
    "ShardData",
    "Sprites",
    "as_data",
    "from_array",
    "from_dataset",
    "load",
    "open_shards",
    "pack",
    "read_idx",
]
