"""Tables in files: CSV and Parquet by pyarrow, counts of cells and genes (.h5ad) by anndata.

A row is a sample and a column a feature. A column called label or labels holds the labels.
"""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vae_fast.data.arrays import ArrayData, from_array
from vae_fast.data.message_words import shown
from vae_fast.data.npy import check_memory
from vae_fast.data.ranges import check_digits
from vae_fast.data.sparse import from_sparse, is_sparse

SUFFIXES = (".csv", ".parquet", ".h5ad")
LABELS = ("label", "labels")


def read_table(path: Path, *, bounded: bool = True, labels: bool = True) -> ArrayData:
    """The data in a .csv, .parquet or .h5ad file, in memory, as (N, D).

    If all columns hold integers, they stay integers, which are counts; otherwise all become
    float32. From an .h5ad file this reads X, which stays sparse if it is, and the label column of
    obs.

    Args:
        labels: False leaves the label column out.

    Raises:
        FileNotFoundError: there is no such file.
        ModuleNotFoundError: pyarrow or anndata is not installed.
        ValueError, TypeError: a column has text or gaps, no column has numbers, or values do not
            fit (`from_array`).
    """
    if not path.is_file():
        raise FileNotFoundError(f"{shown(path)} does not exist, or is not a file")
    if path.suffix.lower() == ".h5ad":
        return _read_cells(path, bounded=bounded, labels=labels)
    values, found, columns = _read_columns(path)
    data = from_array(
        values,
        found if labels else None,
        name=shown(path.name),
        provenance=f"{shown(path.resolve())}, {values.shape[1]} columns, loaded",
        bounded=bounded,
    )
    return replace(data, columns=columns)


def _need(module: str, path: Path) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.split(".")[0]
        raise ModuleNotFoundError(
            f"reading {shown(path)} needs {package}, which is not installed: pip install {package}",
            name=error.name,
        ) from None


def _read_columns(path: Path) -> tuple[np.ndarray, np.ndarray | None, tuple[str, ...]]:
    arrow = _need("pyarrow", path)
    try:
        if path.suffix.lower() == ".csv":
            table = _need("pyarrow.csv", path).read_csv(path)
        else:
            table = _need("pyarrow.parquet", path).read_table(path)
    except (arrow.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{shown(path)} is not a whole {path.suffix} file: {reason}") from error
    names = table.column_names
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ValueError(f"{shown(path)} has two columns called {shown(min(twice))}")
    gaps = [name for name in names if table[name].null_count]
    if gaps:
        raise ValueError(
            f"{shown(path)} has no value in some rows of {_listed(gaps)}: fill them, or leave the "
            "rows or the columns out"
        )
    features = [name for name in names if name not in LABELS]
    types = arrow.types

    def is_number(name: str) -> bool:
        kind = table.schema.field(name).type
        return types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)

    others = [name for name in features if not is_number(name)]
    if others or not features:
        kinds = ", ".join(f"{shown(n)} ({table.schema.field(n).type})" for n in others[:5])
        raise TypeError(
            f"{shown(path)} must have columns of numbers, beside one called label; "
            + (f"not numbers are {kinds}: leave them out, or encode them" if others else "none has")
        )
    whole = not any(types.is_floating(table.schema.field(name).type) for name in features)
    dtype = np.dtype(np.int64 if whole else np.float32)
    check_memory(table.num_rows * len(features) * dtype.itemsize)
    values = np.empty((table.num_rows, len(features)), dtype)
    for column, name in enumerate(features):
        whole_digits = table[name].to_numpy()
        if not whole and len(whole_digits):
            wide = torch.as_tensor(whole_digits.astype(np.float64))[None]
            check_digits(wide.mean(1), wide.std(1, correction=0), shown(path.name), [shown(name)])
        values[:, column] = whole_digits
    given = [name for name in names if name in LABELS]
    found = np.array(table[given[0]].to_pylist()) if given else None
    return values, found, tuple(map(shown, features))


def _read_cells(path: Path, *, bounded: bool, labels: bool) -> ArrayData:
    anndata = _need("anndata", path)
    try:
        cells = anndata.read_h5ad(path)
    except (OSError, KeyError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{shown(path)} is not a whole .h5ad file: {reason}") from error
    provenance = f"{shown(path.resolve())}, {cells.n_vars} columns, loaded"
    name = shown(path.name)
    return from_cells(cells, bounded=bounded, labels=labels, name=name, provenance=provenance)


def from_cells(
    cells: Any,
    *,
    bounded: bool = True,
    labels: bool = True,
    name: str = "AnnData",
    provenance: str = "an AnnData",
) -> ArrayData:
    """X of an AnnData, sparse or dense, and the label column of obs.

    Raises ValueError or TypeError if there is no X, a label is missing, or values do not fit.
    """
    if cells.X is None:
        raise ValueError(
            f"{name} has no X, the matrix of cells and genes: set X, for example to one of its layers"
        )
    x = cells.X
    if hasattr(x, "to_memory"):  # of a file that is read piece by piece
        x = x.to_memory()
    given = [key for key in LABELS if labels and key in cells.obs]
    found = None
    if given:
        column = cells.obs[given[0]]
        if column.isna().any():
            raise ValueError(f"{name} has cells without a {given[0]}: leave them out")
        found = np.asarray(column)
        found = found if found.dtype.kind in "iu" else found.astype(str)
    how: dict[str, Any] = {"name": name, "provenance": provenance, "bounded": bounded}
    if is_sparse(x):
        return from_sparse(x, found, **how)
    check_memory(cells.n_obs * cells.n_vars * 4)
    return from_array(np.asarray(x).astype(np.float32, copy=False), found, **how)


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(map(shown, names[:3])) + more
