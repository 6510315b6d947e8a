"""Sparse matrices: batches are dense and right, and the matrix itself never is."""

import numpy as np
import pytest
import torch

from tests.fresh import python
from vae_fast.data import Batches, as_data, in_support, keep_labels, load, of_counts
from vae_fast.data.sparse_rows import SparseRows

sparse = pytest.importorskip("scipy.sparse", reason="SciPy is not installed: pip install scipy")


def matrix(rows=50, columns=7, density=0.3, seed=0):
    """Dense counts, with a row and a column that are empty, and its CSR."""
    draw = np.random.default_rng(seed)
    dense = draw.poisson(3.0, (rows, columns)) * (draw.random((rows, columns)) < density)
    dense[5] = dense[-1] = 0
    dense[:, 2] = 0
    return dense.astype(np.float32), sparse.csr_matrix(dense.astype(np.float32))


@pytest.mark.parametrize(
    "made",
    [
        lambda m: m,
        sparse.csr_array,
        lambda m: m.tocsc(),
        lambda m: m.tocoo(),
        lambda m: m.tolil(),
        lambda m: m.astype(np.int64),
        lambda m: m.astype(np.float64),
        lambda m: m.astype(np.uint8),
        lambda m: torch.from_numpy(m.toarray()).to_sparse(),
        lambda m: torch.from_numpy(m.toarray()).to_sparse_csr(),
        lambda m: torch.from_numpy(m.toarray()).to_sparse_csc(),
    ],
)
def test_layouts_and_dtypes(made):
    dense, csr = matrix()
    data = as_data(made(csr), bounded=False)
    assert isinstance(data.images, SparseRows) and data.dtype == torch.float32
    assert len(data) == 50 and data.shape == (7,) and data.range == (0.0, dense.max())
    rows = torch.tensor([5, 0, 49, 5, 31])
    assert np.array_equal(data.gather(rows)[0].numpy(), dense[rows.numpy()])
    assert np.array_equal(torch.cat([*data.images.split(8)]).numpy(), dense)
    assert data.gather(rows[:0])[0].shape == (0, 7)


def test_batches_splits_and_labels_are_those_of_the_dense_matrix():
    dense, csr = matrix()
    labels = np.arange(50) % 3
    for labels_given in (labels, np.array(["b", "a", "c"])[labels]):
        ours, theirs = (as_data((x, labels_given), bounded=False) for x in (csr, dense))
        assert ours.classes == theirs.classes
        for split in ("train", "val"):
            parts = [load(data, split=split, bounded=False) for data in (ours, theirs)]
            assert isinstance(parts[0].images, SparseRows)
            assert parts[0].images.values.data_ptr() == ours.images.values.data_ptr()  # shared
            for one, other in zip(
                *(Batches(p, 8, shuffle=True, seed=3) for p in parts), strict=True
            ):
                assert torch.equal(one.images, other.images)
                assert torch.equal(one.labels, other.labels)
    by_class = as_data((csr, np.sort(labels)), bounded=False)
    with pytest.warns(UserWarning, match="sorted by class"):
        val = load(by_class, split="val", bounded=False)
    assert isinstance(val.images, SparseRows)
    assert np.array_equal(val.gather(torch.arange(len(val)))[0].numpy(), dense[val.rows.numpy()])
    few = keep_labels(as_data((csr, labels), bounded=False), 6, repeat=3)
    assert len(few) == 62 and (few.labels[:50] >= 0).sum() == 6
    assert torch.equal(few.gather(torch.tensor([61]))[0], few.gather(few_row(few))[0])


def few_row(few):
    return (few.labels[:50] >= 0).nonzero()[-1]


def test_a_part_of_a_matrix_is_sent_with_its_own_values_alone():
    dense, csr = matrix()
    part = as_data(csr, bounded=False).images[torch.tensor([7, 3, 5, 7])]
    own = part._compact()
    assert len(own.values) == np.count_nonzero(dense[[7, 3, 5, 7]])
    assert np.array_equal(own.to_dense().numpy(), dense[[7, 3, 5, 7]])


def test_entries_that_are_stored_twice_are_added_up():
    values, columns, pointers = np.array([1.0, 2.0, 4.0]), np.array([1, 1, 0]), np.array([0, 2, 3])
    twice = sparse.csr_matrix((values, columns, pointers), (2, 3))
    data = as_data(twice, bounded=False)
    assert data.gather(torch.arange(2))[0].tolist() == [[0, 3, 0], [4, 0, 0]]
    assert twice.nnz == 3  # the caller's matrix is as it was


def test_files(tmp_path):
    dense, csr = matrix()
    for made in (csr, csr.tocsc(), csr.tocoo(), sparse.csr_array(csr.astype(np.int64))):
        sparse.save_npz(tmp_path / "m.npz", made)
        data = as_data(tmp_path / "m.npz", bounded=False)
        assert isinstance(data.images, SparseRows) and data.name == "m.npz"
        assert np.array_equal(data.images.to_dense().numpy(), dense)
    np.savez(tmp_path / "m.npz", format=b"csr", shape=(2, 3), data=[1.0, 2.0, 4.0],
             indices=[1, 1, 0], indptr=[0, 2, 3])  # fmt: skip
    twice = as_data(tmp_path / "m.npz", bounded=False)
    assert twice.images.to_dense().tolist() == [[0, 3, 0], [4, 0, 0]]
    for wrong in ({"indices": [1, 3, 0]}, {"indptr": [0, 4, 3]}, {"indptr": [0, 3]},
                  {"indices": [1, -1, 0]}, {"indptr": [1, 2, 3]}, {"data": [1.0]}):  # fmt: skip
        parts = {"data": [1.0, 2.0, 4.0], "indices": [1, 2, 0], "indptr": [0, 2, 3]} | wrong
        np.savez(tmp_path / "w.npz", format=b"csr", shape=(2, 3), **parts)
        with pytest.raises(ValueError, match="w.npz is not a whole sparse matrix of 2 rows and 3"):
            as_data(tmp_path / "w.npz", bounded=False)


def test_data_that_do_not_fit_are_errors():
    _, csr = matrix()
    for value, message in ((np.nan, "NaN or infinity"), (np.inf, "NaN or infinity")):
        wrong = csr.copy()
        wrong.data[3] = value
        with pytest.raises(ValueError, match=message):
            as_data(wrong, bounded=False)
    large = csr.astype(np.int64)
    large.data[0] = 2**24 + 1
    with pytest.raises(ValueError, match=r"beyond 2\^24"):
        as_data(large, bounded=False)
    with pytest.raises(ValueError, match=r"beyond 2\^24"):  # as in a dense array
        as_data(np.full((2, 3), 2**24 + 1), bounded=False)
    assert as_data(np.full((2, 3), 2**24), bounded=False).range[1] == 2**24
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        as_data(csr)
    with pytest.raises(ValueError, match="nothing in it"):
        as_data(sparse.csr_matrix((0, 4)), bounded=False)
    with pytest.raises(TypeError, match="complex"):
        as_data(csr.astype(np.complex64), bounded=False)
    with pytest.raises(ValueError, match="labels of shape"):
        as_data((csr, np.arange(3)), bounded=False)
    assert in_support(as_data(csr > 0, bounded=False), unit=True).range == (0.0, 1.0)
    assert of_counts(as_data(csr, bounded=False))
    csr.data[0] = 0.5
    with pytest.raises(ValueError, match="have fractions"):
        of_counts(as_data(csr, bounded=False))


def test_an_anndata(tmp_path):
    anndata = pytest.importorskip("anndata", reason="anndata is not installed: pip install anndata")
    dense, csr = matrix()
    for number, x in enumerate((csr, csr.tocsc(), dense)):
        cells = anndata.AnnData(x)
        cells.obs["label"] = ["b", "a"] * 25
        path = tmp_path / f"{number}.h5ad"
        cells.write_h5ad(path)
        for source in (cells, path, anndata.read_h5ad(path, backed="r")):
            data = as_data(source, bounded=False)
            assert isinstance(data.images, SparseRows) == (x is not dense)
            every = data.gather(torch.arange(50))[0]
            assert np.array_equal(every.numpy(), dense) and data.labels[:2].tolist() == [1, 0]
            assert as_data(source, bounded=False, labels=False).labels is None


BIG = """
import numpy as np, resource, scipy.sparse as sparse, sys, torch
from vae_fast.data import load
from vae_fast.train import TrainConfig, Trainer
import vae_fast.train.trainer as engine

engine.draw_pictures = lambda *_: []
rows, columns, each = 40_000, 10_000, 20                      # dense: 1.6 GB; sparse: 10 MB
draw = np.random.default_rng(0)
at = np.sort(draw.integers(0, columns // each, (rows, each)) + np.arange(each) * (columns // each))
x = sparse.csr_matrix((np.ones(rows * each, np.float32), at.astype(np.int32).ravel(),
                       np.arange(0, rows * each + 1, each)), (rows, columns))
labels = draw.integers(0, 3, rows)
train, val = (load((x, np.sort(labels)), split=s, bounded=False) for s in ("train", "val"))
config = TrainConfig(model_args={"latent_dim": 2, "network_options": {"hidden": [8]},
                                 "likelihood": "poisson"},
                     batch_size=128, epochs=1, max_steps=3, device="cpu", out=sys.argv[1],
                     tensorboard="off", matmul="mkl", runner="eager")
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before = peak()
trainer = Trainer(config, train_data=train, val_data=val.select(torch.arange(500)))
trainer.fit()
print("peak", peak() - before)
"""


@pytest.mark.slow
def test_a_large_matrix_is_never_dense(tmp_path):
    done = python("import warnings; warnings.simplefilter('ignore')\n" + BIG, str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split("peak")[1]) < 300, done.stdout  # MB; dense it is 1,600


@pytest.mark.slow
def test_a_model_goes_through_it_in_batches(tmp_path, monkeypatch):
    """encode and anomaly, by the command line, never ask for all of it."""
    from vae_fast.cli import main

    monkeypatch.setattr("vae_fast.train.trainer.draw_pictures", lambda *_: [])
    dense, csr = matrix(900)
    sparse.save_npz(tmp_path / "m.npz", csr)
    np.save(tmp_path / "m.npy", dense)
    run = str(tmp_path / "run")
    assert main(["train", "--data", str(tmp_path / "m.npz"), "--epochs", "1", "--device", "cpu",
                 "--model-args.likelihood", "negative_binomial", "--tensorboard", "off", "--matmul",
                 "mkl", "--out", run]) == 0  # fmt: skip
    asked = []
    select = SparseRows.index_select

    def watched(self, dim, rows):
        asked.append(len(rows))
        return select(self, dim, rows)

    monkeypatch.setattr(SparseRows, "index_select", watched)
    codes = []
    for name in ("m.npz", "m.npy"):
        for command, out in (("encode", "f.npy"), ("anomaly", "s.npy")):
            assert main([command, run, "--data", str(tmp_path / name), "--out", str(tmp_path / out)]) == 0  # fmt: skip
        codes.append(np.load(tmp_path / "f.npy"))
    assert np.array_equal(*codes) and len(codes[0]) == 900
    assert max(asked) == 256
