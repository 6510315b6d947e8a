import numpy as np
import pytest
import torch

from vae_fast.train import pictures

Image = pytest.importorskip("PIL.Image")


def test_channels_become_a_picture():
    grey = pictures.to_uint8(torch.tensor([[[[0.0, 0.5, 1.0, 2.0]]]]))
    assert grey.tolist() == [[[[0] * 3, [128] * 3, [255] * 3, [255] * 3]]]
    color = torch.arange(12, dtype=torch.uint8).reshape(1, 3, 2, 2)
    assert pictures.to_uint8(color)[0, 1, 0].tolist() == [2, 6, 10]
    assert pictures.to_uint8(torch.zeros(1, 5, 2, 2)).shape == (1, 2, 2, 3)


def test_originals_stand_above_their_reconstructions(tmp_path):
    originals = torch.full((3, 1, 28, 28), 200, dtype=torch.uint8)
    pictures.draw_reconstructions(
        tmp_path / "x.png", originals, torch.full((3, 1, 28, 28), 100 / 255), "caption", columns=2
    )
    page = np.asarray(Image.open(tmp_path / "x.png"))[:, :, 0]
    column = page[:, pictures._MARGIN + 10].astype(int)
    runs = [(v, n) for v, n in _runs(column[80:]) if v in (100, 200)]
    assert runs == [(200, 84), (100, 84), (200, 84), (100, 84)]


def test_samples_fill_rows(tmp_path):
    pictures.draw_samples(tmp_path / "x.png", torch.ones(7, 3, 32, 32) * 0.5, "caption", columns=5)
    page = np.asarray(Image.open(tmp_path / "x.png"))[:, :, 0]
    assert (page[80:] == 128).sum() == 7 * 96 * 96  # below the caption


def test_curves_leave_out_what_is_not_finite(tmp_path):
    rows = [
        {"step": s, "split": split, "loss": v, "recon": v, "kl": 1.0}
        for s, split, v in [(1, "train", 9.0), (2, "train", float("nan")), (2, "val", 8.0)]
    ]
    pictures.draw_curves(tmp_path / "x.png", rows, "caption")
    assert Image.open(tmp_path / "x.png").size[0] == 1650


def _runs(values):
    edges = np.flatnonzero(np.diff(values)) + 1
    return [(int(part[0]), len(part)) for part in np.split(values, edges)]
