"""Sparse matrices as data, from SciPy, torch, AnnData and files of scipy.sparse.save_npz."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vae_fast.data.arrays import ArrayData, as_labels, as_tensor, check_bounded
from vae_fast.data.npy import check_memory
from vae_fast.data.sparse_rows import SparseRows


def is_sparse(source: Any) -> bool:
    """Whether it is a sparse matrix of SciPy's or torch's."""
    if isinstance(source, Tensor):
        return source.layout in (
            torch.sparse_coo, torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr,
            torch.sparse_bsc,
        )  # fmt: skip
    return type(source).__module__.startswith("scipy.sparse") and hasattr(source, "tocsr")


def from_sparse(
    matrix: Any,
    labels: Any = None,
    *,
    name: str = "sparse matrix",
    provenance: str = "a sparse matrix",
    bounded: bool = True,
) -> ArrayData:
    """A sparse matrix (N, D) as data with dense batches; the matrix stays sparse.

    Args:
        matrix: of SciPy or torch, or ``SparseRows``.
        labels, bounded: as in ``from_array``.

    Raises ValueError and TypeError as ``sparse_rows`` and ``from_array`` do.
    """
    rows = matrix if isinstance(matrix, SparseRows) else sparse_rows(matrix, name)
    labels, classes = as_labels(labels, len(rows), name)
    data = ArrayData(rows, labels, name, provenance, range=rows.range(), classes=classes)
    if bounded:
        check_bounded(data)
    return data


def sparse_rows(source: Any, name: str) -> SparseRows:
    """A sparse matrix as rows of float32; other layouts are converted to CSR.

    float32 values in CSR are not copied. Duplicate entries are added.

    Raises:
        ValueError: it is no matrix, empty, has NaN, infinity or integers beyond 2^24, or is invalid
            CSR.
        TypeError: the values are no real numbers.
    """
    if isinstance(source, Tensor):
        if source.dim() != 2:
            raise ValueError(f"{name}: a sparse matrix (N, D) is needed, not {source.dim()} axes")
        source = source.detach()
        if source.layout == torch.sparse_coo:
            source = source.coalesce()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Sparse CSR", category=UserWarning)
            source = source.to_sparse_csr()
        parts = (source.crow_indices(), source.col_indices(), source.values())
        return from_csr(*parts, tuple(source.shape), name)
    if source.ndim != 2:
        raise ValueError(f"{name}: a sparse matrix (N, D) is needed, not {source.ndim} axes")
    given, source = source, source.tocsr()
    if not source.has_canonical_format:
        source = source.copy() if source is given else source
        source.sum_duplicates()
    parts = (source.indptr, source.indices, source.data)
    return from_csr(
        as_tensor(parts[0], name), as_tensor(parts[1], name), as_tensor(parts[2], name),
        source.shape, name,
    )  # fmt: skip


def from_csr(
    pointers: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, ...], name: str
) -> SparseRows:
    """The rows from CSR's three arrays. The arrays are checked here, because reading by them has no
    further check."""
    if len(shape) != 2 or min(shape) < 1:
        raise ValueError(f"{name}: there is nothing in it; its shape is {tuple(shape)}")
    count, width = (int(side) for side in shape)
    kinds = (pointers.dtype, columns.dtype)
    if any(kind not in (torch.int32, torch.int64) for kind in kinds):
        raise TypeError(f"{name}: indices of a sparse matrix must be integers, and are {kinds}")
    pointers = pointers.to(torch.int64)
    whole = (
        pointers.shape == (count + 1,)
        and columns.shape == values.shape == (len(values),)
        and int(pointers[0]) == 0
        and int(pointers[-1]) == len(values)
        and bool((pointers.diff() >= 0).all())
        and (not len(columns) or (0 <= int(columns.min()) and int(columns.max()) < width))
    )
    if not whole:
        raise ValueError(
            f"{name} is not a whole sparse matrix of {count} rows and {width} columns: its row "
            "pointers or column indices don't fit; write it anew"
        )
    if values.dtype.is_complex:
        raise TypeError(f"{name}: a matrix of numbers is needed, and its values are {values.dtype}")
    whole = not values.dtype.is_floating_point and len(values) > 0
    if whole and max(abs(int(v)) for v in torch.aminmax(values.long())) > 2**24:
        raise ValueError(
            f"{name}: {values.dtype} beyond 2^24, which float32 does not hold: scale it"
        )
    if values.dtype != torch.float32:
        check_memory(len(values) * 4)
        values = values.to(torch.float32)
    if len(values) and not bool(torch.isfinite(values).all()):
        raise ValueError(f"{name}: the data has NaN or infinity in it; remove those samples")
    return SparseRows(pointers[:-1], pointers[1:], columns, values, width)


def from_npz(arrays: dict[str, np.ndarray], name: str) -> SparseRows:
    """The rows of a file that scipy.sparse.save_npz wrote, from its arrays.

    Raises:
        ValueError: the layout is not CSR, and SciPy, which could convert it, is not installed.
    """
    layout = np.asarray(arrays["format"]).item()
    layout = layout.decode() if isinstance(layout, bytes) else str(layout)
    shape = tuple(int(side) for side in arrays["shape"])
    if layout == "csr":
        starts, columns, values = (
            as_tensor(arrays[key], name) for key in ("indptr", "indices", "data")
        )
        rows = from_csr(starts, columns, values, shape, name)
        return rows if _is_canonical(rows) else sparse_rows(_csr(arrays, shape), name)
    try:
        from scipy import sparse
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            f"{name} is a sparse matrix in the layout {layout}, which SciPy is needed to bring to "
            "CSR: pip install scipy, or save it as matrix.tocsr()"
        ) from None
    if layout == "coo":
        at = (arrays["row"], arrays["col"])
        return sparse_rows(sparse.coo_matrix((arrays["data"], at), shape), name)
    if layout == "csc":
        of_columns = (arrays["data"], arrays["indices"], arrays["indptr"])
        return sparse_rows(sparse.csc_matrix(of_columns, shape), name)
    raise ValueError(f"{name} is a sparse matrix in the layout {layout}: save it as matrix.tocsr()")


def _csr(arrays: dict[str, np.ndarray], shape: tuple[int, ...]) -> Any:
    from scipy import sparse

    return sparse.csr_matrix((arrays["data"], arrays["indices"], arrays["indptr"]), shape)


def _is_canonical(rows: SparseRows) -> bool:
    """Whether no row has a column twice, which sorted columns show."""
    steps = rows.columns.diff() > 0
    ends = rows.ends[:-1]
    ends = ends[(ends > 0) & (ends < len(rows.columns))]
    steps[ends - 1] = True  # from a row's last to the next row's first
    return bool(steps.all())
