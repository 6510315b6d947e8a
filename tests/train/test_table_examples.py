"""The examples on tables and counts find what was put into their data."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "examples"


def example(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_anomalies_of_a_table(tmp_path):
    pytest.importorskip("pyarrow", reason="pyarrow is not installed: pip install pyarrow")
    found = example("fraud").main(tmp_path, count=10_000, epochs=25)
    assert found["all anomalies"] > 0.93
    assert min(found.values()) == found["farthest column, for comparison"] < 0.85
    assert (tmp_path / "scores.png").stat().st_size > 5000
    assert "standardize: 'on'" in (tmp_path / "run" / "config.yaml").read_text()


@pytest.mark.slow
def test_cell_types_under_batch_effects(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)  # principal components, wherever it runs
    found = example("counts").main(tmp_path, count=2000, epochs=40)
    told, blind = (found[f"{name}: clusters and cell types"] for name in ("cvae", "vae"))
    assert told > 0.9 and told > blind + 0.1
    assert abs(found["cvae: clusters and batches"]) < 0.02 < found["vae: clusters and batches"]
    assert (tmp_path / "latent.png").stat().st_size > 20_000


def test_partitions_are_compared_right():
    rand_index = example("counts").rand_index
    one = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2])
    assert rand_index(one, (one + 1) % 3) == pytest.approx(1.0)
    # Hubert and Arabie's formula by hand: 2 pairs together in both, 7 in each, of 28.
    other = torch.tensor([0, 0, 1, 1, 2, 2, 2, 0])
    assert rand_index(one, other) == pytest.approx((2 - 7 * 7 / 28) / (7 - 7 * 7 / 28))


@pytest.mark.slow
def test_the_latent_picture_by_umap():
    """Groups far apart in ten dimensions stay groups in the plane."""
    pytest.importorskip("umap", reason="umap-learn is not installed: pip install umap-learn")
    kind = torch.arange(150) % 3
    codes = torch.randn(150, 10) + 8 * torch.nn.functional.one_hot(kind, 10)
    counts = example("counts")
    at, how = counts.plane(codes)
    assert how == "UMAP" and at.shape == (150, 2)
    assert counts.rand_index(counts.clusters(torch.from_numpy(at), 3), kind) == pytest.approx(1.0)
