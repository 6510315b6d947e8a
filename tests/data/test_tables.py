"""Tables in files: columns become features, the label column labels, and gaps are refused."""

import numpy as np
import pytest
import torch

from vae_fast.cli import main
from vae_fast.data import as_data, load

pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed: pip install pyarrow")

from pyarrow import parquet

NUMBERS = {
    "amount": np.array([0.5, -3.25, 8.0, 1e-3]),
    "hour": np.array([0, 23, 12, 7]),
    "night": np.array([True, False, False, True]),
}
EXPECTED = np.stack([v.astype(np.float32) for v in NUMBERS.values()], 1)


def write(path, columns):
    table = pa.table(columns)
    if path.suffix == ".csv":
        from pyarrow import csv

        csv.write_csv(table, path)
    else:
        parquet.write_table(table, path)
    return path


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_columns_are_features(tmp_path, suffix):
    path = write(tmp_path / f"t{suffix}", NUMBERS | {"label": ["sound", "fraud", "sound", "sound"]})
    data = as_data(path, bounded=False)
    assert data.images.dtype == torch.float32
    assert np.array_equal(data.images.numpy(), EXPECTED)
    assert data.labels.tolist() == [1, 0, 1, 1]
    assert list(data.classes) == ["fraud", "sound"]
    assert "3 columns" in data.provenance
    assert as_data(path, bounded=False, labels=False).labels is None
    with pytest.raises(ValueError, match=r"\[0, 1\]"):  # as a Bernoulli likelihood asks
        as_data(path)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_whole_numbers_are_counts(tmp_path, suffix):
    path = write(tmp_path / f"t{suffix}", {"a": [0, 3, 1], "b": [2**20, 0, 5]})
    data = as_data(path, bounded=False)
    assert data.images.tolist() == [[0, 2**20], [3, 0], [1, 5]]
    assert data.labels is None


def test_tables_without_numbers(tmp_path):
    for columns, error, message in (
        ({"a": [1.0, None], "b": [1, 2]}, ValueError, "no value in some rows of a"),
        ({"a": [1.0, float("nan")]}, ValueError, "NaN"),
        ({"a": [1, 2], "name": ["x", "y"]}, TypeError, r"not numbers are name \(string\)"),
        ({"label": [1, 2]}, TypeError, "beside one called label; none has"),
    ):
        path = write(tmp_path / "t.parquet", columns)
        with pytest.raises(error, match=message):
            as_data(path, bounded=False)
    path.write_bytes(b"PAR1 and no more")
    with pytest.raises(ValueError, match="t.parquet is not a whole .parquet file"):
        as_data(path)
    with pytest.raises(FileNotFoundError, match=r"none.csv does not exist"):
        as_data(tmp_path / "none.csv")


def test_a_run_on_a_table(tmp_path):
    draw = np.random.default_rng(0)
    write(tmp_path / "t.csv", {f"c{i}": draw.normal(size=60) for i in range(4)})
    data = load(str(tmp_path / "t.csv"), split="val", bounded=False)
    assert data.images.shape == (6, 4)
    run = str(tmp_path / "run")
    assert main(["train", "--data", str(tmp_path / "t.csv"), "--epochs", "1", "--batch-size", "16",
                 "--model-args.likelihood", "gaussian", "--device", "cpu", "--out", run]) == 0  # fmt: skip
    assert main(["anomaly", run, "--n", "0"]) == 0


def test_counts_of_cells_and_genes(tmp_path):
    anndata = pytest.importorskip("anndata", reason="anndata is not installed: pip install anndata")
    sparse = pytest.importorskip("scipy.sparse")
    counts = np.random.default_rng(0).poisson(0.5, (40, 6)).astype(np.float32)
    path = tmp_path / "cells.h5ad"
    for x in (counts, sparse.csr_matrix(counts)):
        cells = anndata.AnnData(x)
        cells.obs["label"] = ["b", "a"] * 20
        cells.write_h5ad(path)
        data = as_data(path, bounded=False)
        assert np.array_equal(data.images.to_dense().numpy(), counts)
        assert data.labels.tolist() == [1, 0] * 20
    assert main(["train", "--data", str(path), "--epochs", "1", "--batch-size", "12", "--device",
                 "cpu", "--model-args.likelihood", "zero_inflated_negative_binomial",
                 "--out", str(tmp_path / "run")]) == 0  # fmt: skip
    path.write_bytes(b"none")
    with pytest.raises(ValueError, match="cells.h5ad is not a whole .h5ad file"):
        as_data(path)
