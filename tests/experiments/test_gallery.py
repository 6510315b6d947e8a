"""The gallery's page and pictures."""

import json

import numpy as np
import pytest
import torch

from experiments import gallery, gallery_parts, pictures, showpieces
from experiments.pictures import Band
from vae_fast import models
from vae_fast.train.config import from_dict, to_dict

image_module = pytest.importorskip("PIL.Image")
pytest.importorskip("yaml")


def test_rows_are_at_their_positions():
    images = torch.zeros(3, 1, 2, 2, dtype=torch.uint8)
    images[1], images[2] = 100, 200
    page = pictures.rows_of(images, columns=2, scale=2)
    assert page.shape == (4 + 2 + 4, 4 + 2 + 4)
    assert (page[:4, :4] == 0).all() and (page[:4, 6:] == 100).all()
    assert (page[6:, :4] == 200).all() and (page[6:, 6:] == 255).all() and (page[4:6] == 255).all()


def test_a_picture_is_small_and_true(tmp_path):
    grey = torch.linspace(0, 1, 10).view(10, 1, 1, 1).expand(10, 1, 28, 28)
    path = pictures.compose(tmp_path / "a.png", [Band("one", grey), Band("two", grey.flip(0))])
    pixels = np.asarray(image_module.open(path).convert("L")).astype(int)
    assert path.stat().st_size < 20_000
    first, second = 8 + 17 + 20, 8 + 17 + 56 + 6 + 17 + 20
    for i in range(10):
        middle = 8 + 58 * i + 28
        assert abs(pixels[first, middle] - 255 * i / 9) < 12
        assert abs(pixels[second, middle] - 255 * (9 - i) / 9) < 12
    with pytest.raises(ValueError, match="at least one band"):
        pictures.compose(tmp_path / "b.png", [])


def test_every_example_is_shown_or_left_out_by_name():
    found = gallery.names(None)
    examples = {p.stem for p in gallery.EXAMPLES.glob("*.yaml")}
    assert examples - set(found) <= set(gallery.LEFT_OUT) and set(found) <= examples
    assert found[0] == "ae" and gallery.names(["vrae", "ae"]) == ["ae", "vrae"]
    with pytest.raises(ValueError, match="no.*'vea'"):
        gallery.names(["vea"])
    config = gallery.read("ae")
    assert config["model"] == "ae" and config["words"].startswith("The deterministic baseline")


@pytest.mark.parametrize("name", gallery.SHORTER)
def test_the_captions_command_trains_what_the_gallery_trains(name, monkeypatch):
    pytest.importorskip("jsonargparse")
    from vae_fast import cli, train
    from vae_fast.cli import train as command

    found = []
    monkeypatch.setattr(train, "Trainer", lambda config, **_: found.append(config))
    monkeypatch.setattr(command, "begin_work", lambda: None)
    monkeypatch.setattr(command, "_fit", lambda *_: 0)
    monkeypatch.chdir(gallery.ROOT)
    made = {"flags": gallery.flags(gallery.SHORTER[name])}
    assert cli.main(gallery.command(name, made).split()[1:]) == 0
    values = gallery.shortened(name)
    assert values.pop("words") and values != gallery.read(name)
    assert to_dict(found[0]) == to_dict(from_dict(values))


def test_two_processes_make_two_examples(tmp_path, monkeypatch):
    """Facts that another process has written while an example trained are kept."""
    facts = gallery.made(gallery.DOCS / "gallery" / "gallery.json")
    file = tmp_path / "gallery" / "gallery.json"

    def show(name, *_):
        file.write_text(json.dumps({"fashion": facts["fashion"]}))
        return facts[name]

    monkeypatch.setattr(gallery, "show", show)
    monkeypatch.setattr(gallery.gallery_parts, "make", lambda *_: None)
    assert gallery.main(out=tmp_path, only=["ae"]) == 0
    assert gallery.made(file) == {name: facts[name] for name in ("fashion", "ae")}
    assert "## ae" in (tmp_path / "gallery.md").read_text()


def test_a_page_lists_the_measurements():
    facts = {
        "words": "A model.", "model": "vae", "data": "fashion10k", "epochs": 3, "parameters": 12345,
        "seconds": 9.0, "cpu_seconds": 8.4, "measured": {"elbo": -240.123, "accuracy": 0.5},
        "pixels": "grey", "likelihood": "bernoulli (probability)", "samples": 500,
        "pictures": ["x.png"], "made": {"date": "2026-11-22", "commit": "abc", "torch": "2.13.0"},
    }  # fmt: skip
    text = gallery.page({"x": facts})
    assert "## x\n\nA model.\n\n![x.png](gallery/x.png)" in text
    assert "12,345 parameters, 3 epochs" in text and "ELBO -240.1; accuracy 50.0%" in text
    assert "(grey, bernoulli (probability))" in text
    assert "Not made yet: `examples/ae.yaml`, `examples/fashion.yaml`" in text


def test_every_registered_model_and_part_has_a_row_or_is_named_as_missing():
    shown, folder = gallery_parts.made(gallery.DOCS / "gallery"), gallery.DOCS / "gallery"
    text = (gallery.DOCS / "gallery.md").read_text()
    assert len(shown) > 30
    assert all(f"`{name}`" in text for name in set(gallery_parts.entries()) - set(shown))
    assert text.endswith(gallery_parts.table(shown))
    for name, facts in shown.items():
        assert 1_000 < (folder / facts["picture"]).stat().st_size < 20_000, name


@pytest.mark.parametrize("name", ["ae", "cvae", "inpainting_cvae", "edges_cvae", "beta_vae"])
def test_what_each_kind_of_model_shows(name):
    torch.manual_seed(0)
    config = gallery.read(name)
    args = {**config["model_args"], "network": "mlp", "network_options": {"hidden": [8]}}
    model = models.build(config["model"], (1, 28, 28), **args).eval()
    x = torch.randint(0, 256, (12, 1, 28, 28), dtype=torch.uint8)
    with torch.no_grad():
        bands = showpieces.BANDS[name](model, x, torch.arange(12) % 10)
    assert all(len(band.images) % 10 == 0 for band in bands)
    if name == "cvae":  # a column has one class, a row one z
        z = torch.randn(4, model.latent_dim, generator=torch.Generator().manual_seed(0))
        made = bands[-1].images.unflatten(0, (4, 10))
        with torch.no_grad():
            by_hand = model.likelihood.mean(model.decode(z[2:3], torch.tensor([7])))
        torch.testing.assert_close(made[2, 7], by_hand[0])
    if name == "beta_vae":  # the middle of a walk through dimension d is the code but for d
        kl = model.kl_per_dimension(x).argmax()
        z = model.features(x[2:3]).detach().clone()
        z[0, kl] = -3.0
        with torch.no_grad():
            by_hand = model.likelihood.mean(model.decode(z))
        torch.testing.assert_close(bands[-1].images[0], by_hand[0])
