import contextlib
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from vae_fast import models, pictures
from vae_fast.tasks import pictures as of_tasks
from vae_fast.train import Trainer, run_pictures

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


def test_a_few_tiles_leave_no_blank_columns(tmp_path):
    images = torch.ones(3, 1, 28, 28) * 0.5
    pictures.draw_samples(tmp_path / "x.png", images, "c")
    pictures.draw_reconstructions(tmp_path / "y.png", images, images, "c")
    for name in ("x.png", "y.png"):
        width = 3 * 84 + 2 * pictures._GAP
        assert Image.open(tmp_path / name).size[0] == width + 2 * pictures._MARGIN
    pictures.draw_samples(tmp_path / "z.png", images, "a caption of many words " * 3)
    assert Image.open(tmp_path / "z.png").size[0] > 3 * 84 + 200


def test_samples_stand_in_columns_of_classes():
    for count, columns in [(12, 12), (10, 10), (1, 10), (30, 10)]:
        model = models.build("cvae", (1, 8, 8), condition_options={"num_classes": count})
        assert run_pictures.classes_of(model) == columns
    assert run_pictures.classes_of(models.build("vae", (1, 8, 8))) == 10


def test_a_short_interval_is_joined_with_the_one_before():
    even = pictures._even([(50, 8.0), (79, 6.0), (100, 4.0), (150, 3.0), (158, 9.0)])
    assert even == [(50, 8.0), (79, 6.0), (100, 4.0), (158, pytest.approx((50 * 3 + 8 * 9) / 58))]


def test_every_label_has_a_colour_of_its_own():
    for count in (3, 10, 12, 20, 60):
        assert len({of_tasks._colour(label, count) for label in range(count)}) == count


def test_the_curves_of_one_interval_show_points_at_whole_steps():
    figure = pytest.importorskip("matplotlib.figure").Figure()
    axis = figure.subplots()
    rows = [{"step": 3, "split": split, "loss": loss} for split, loss in (("train", 9), ("val", 7))]
    pictures._draw_curve(axis, rows, "loss")
    assert [line.get_marker() for line in axis.lines] == ["o", "o"]
    low, high = axis.get_xlim()
    ticks = [tick for tick in axis.get_xticks() if low <= tick <= high]
    assert low == 0 and ticks and all(tick == round(tick) for tick in ticks)
    assert axis.get_ylim()[0] < 7 - 0.2


def test_curves_omit_values_that_are_not_finite(tmp_path):
    rows = [
        {"step": s, "split": split, "loss": v, "recon": v, "kl": 1.0}
        for s, split, v in [(1, "train", 9.0), (2, "train", float("nan")), (2, "val", 8.0)]
    ]
    pictures.draw_curves(tmp_path / "x.png", rows, "caption")
    assert Image.open(tmp_path / "x.png").size[0] == 1650


ODD = "data $x_{$ naïve \udcff \n .npy"  # no mathematics, and bytes that are no text


def test_pictures_of_odd_names_are_drawn(tmp_path, monkeypatch):
    rows = [{"step": 1, "split": "val", "loss": 9.0, "recon": 8.0, "kl": 1.0}]
    images, series = torch.rand(4, 1, 8, 8), torch.rand(4, 16)
    labels, names = torch.tensor([0, 1, 0, 1]), ["$a_{$", "_b"]
    draw = {
        "curves": lambda path: pictures.draw_curves(path, rows, ODD),
        "series": lambda path: pictures.draw_series(path, [series], ["x"], ODD),
        "table": lambda path: pictures.draw_series(path, [series[:, :2]], ["x"], ODD, table=names),
        "samples": lambda path: pictures.draw_samples(path, images, ODD),
        "map": lambda path: of_tasks.draw_latent_map(
            path, series, labels, names=names, caption=ODD
        ),
        "histogram": lambda path: of_tasks.draw_score_histogram(path, series[:, 0], caption=ODD),
    }
    for name, do in draw.items():
        do(tmp_path / name)
        assert Image.open(tmp_path / name).size[0] > 300, name

    def without_freetype(size=None):
        raise ImportError("no FreeType")

    monkeypatch.setattr("PIL.ImageFont.load_default", without_freetype)
    pictures.draw_samples(tmp_path / "bitmap", images, ODD + " 数据")
    assert np.asarray(Image.open(tmp_path / "bitmap"))[: pictures._MARGIN + 40].min() < 200


def test_a_tables_rows_are_dots_over_its_columns_names(tmp_path, monkeypatch):
    """Columns have no order that a line could follow."""
    figures = []
    kept = pictures.figure_for

    @contextlib.contextmanager
    def keeping(*args, **options):
        with kept(*args, **options) as figure:
            figures.append(figure)
            yield figure

    monkeypatch.setattr(pictures, "figure_for", keeping)
    many = [f"c{i}" for i in range(9)]
    for table, style, words, label in (
        (["age", "income"], "None", ["age", "income"], ""), (many, "None", None, "column"),
        (None, "-", None, "step"),
    ):  # fmt: skip
        values = torch.rand(4, 2 if table is None else len(table))
        pictures.draw_series(tmp_path / "x.png", [values], ["x"], "caption", table=table)
        axis = figures[-1].axes[0]
        assert axis.lines[0].get_linestyle() == style and axis.get_xlabel() == label
        assert words is None or [t.get_text() for t in axis.get_xticklabels()] == words


def test_a_run_draws_its_pictures_in_any_environment(tmp_path, clothes):
    """A notebook's backend, a locale without our letters, and a user's style that needs LaTeX."""
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\nfont.family: Nothing\n")
    data = tmp_path / "naïve $x_{$.npy"
    np.save(data, clothes[0][:60].numpy())
    environment = os.environ | {
        "MPLBACKEND": "inline", "MATPLOTLIBRC": str(tmp_path), "LC_ALL": "C", "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    found = subprocess.run(
        [
            sys.executable, "-m", "vae_fast", "train", "--data", str(data), "--epochs", "1",
            "--device", "cpu", "--tensorboard", "off", "--out", str(tmp_path / "naïve run"),
            "--model-args.latent_dim", "2",
        ],
        env=environment, capture_output=True, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr.decode("utf-8", "replace")
    assert b"can't be drawn" not in found.stderr and b"Validation loss" in found.stdout
    names = {path.name for path in (tmp_path / "naïve run").glob("*.png")}
    assert names == {"reconstructions.png", "samples.png", "curves.png"}


@pytest.mark.parametrize("what", ["draw_samples", "sample"])
def test_a_picture_that_fails_costs_a_warning(config, clothes, monkeypatch, what):
    def failing(*_, **__):
        raise RuntimeError("no paint")

    module = "vae_fast.pictures" if what == "draw_samples" else "vae_fast.train.run_pictures"
    monkeypatch.setattr(f"{module}.{what}", failing)
    config.epochs, config.pictures_every = 1, 1
    trainer = Trainer(config, train_data=clothes[0][:200], val_data=clothes[1][:50])
    with pytest.warns(UserWarning, match="samples.png can't be drawn: .*no paint"):
        result = trainer.fit()
    kept = ["curves.png"] if what == "sample" else ["curves.png", "reconstructions.png"]
    assert sorted(path.name for path in result.pictures) == kept


def _runs(values):
    edges = np.flatnonzero(np.diff(values)) + 1
    return [(int(part[0]), len(part)) for part in np.split(values, edges)]
