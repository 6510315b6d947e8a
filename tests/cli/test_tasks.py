"""Commands over a trained model write the results of the tasks."""

import numpy as np
import pytest
import torch

from vae_fast import tasks
from vae_fast.cli import COMMANDS, main
from vae_fast.train import TrainConfig, Trainer

SHAPE = (1, 8, 8)


def run(*arguments):
    return main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with two small runs, of a VAE and of a CVAE, and data.npz with labels."""
    pytest.importorskip("safetensors")
    pytest.importorskip("yaml")
    path = tmp_path_factory.mktemp("runs")
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    images = (rng.random((60, 8, 8)) * 100 + 70 * labels[:, None, None]).astype(np.uint8)
    np.savez(path / "data.npz", images=images, labels=labels)
    labels = {"hidden": 8, "condition_options": {"num_classes": 3}}
    half = {"hidden": 8, "condition": "left-half", "condition_options": {"features": 4}}
    for name, more in (("vae", {}), ("cvae", labels), ("half", half)):
        model = "vae" if name == "vae" else "cvae"
        config = TrainConfig(
            model=model, data=str(path / "data.npz"), epochs=1, batch_size=20, device="cpu",
            out=str(path / name), tensorboard="off",
            model_args={"latent_dim": 3, "network_options": {"hidden": [8]}, **more},
        )  # fmt: skip
        trainer = Trainer(config)
        trainer.draw = lambda *_, **__: []
        trainer.fit()
    return path


@pytest.fixture
def model(folder):
    return tasks.load_model(folder / "vae", device="cpu").model


@pytest.fixture
def data(folder):
    arrays = np.load(folder / "data.npz")
    return torch.from_numpy(arrays["images"])[:, None], torch.from_numpy(arrays["labels"])


def test_encode_writes_the_features_of_all(folder, model, data, capsys):
    assert run("encode", folder / "vae", "--data", folder / "data.npz") == 0
    found = np.load(folder / "vae" / "features.npy")
    assert found.shape == (60, 3)
    torch.testing.assert_close(torch.from_numpy(found), tasks.encode(model, data[0]))
    assert str(folder / "vae" / "features.npy") in capsys.readouterr().out
    assert run("encode", folder / "vae", "--out", folder / "val.npy") == 0  # the last tenth
    np.testing.assert_array_equal(np.load(folder / "val.npy"), found[54:])


@pytest.mark.parametrize("wrong", [-1, 3])
def test_labels_that_a_conditional_model_never_saw_are_refused(folder, capsys, tmp_path, wrong):
    """-1 means no condition, which a cvae did not see in training, so every number would be
    wrong."""
    with np.load(folder / "data.npz") as arrays:
        images, labels = arrays["images"], arrays["labels"].copy()
    labels[7] = wrong
    np.savez(tmp_path / "other.npz", images=images, labels=labels)
    for command in ("evaluate", "encode", "reconstruct"):
        assert run(command, folder / "cvae", "--data", tmp_path / "other.npz") == 1
        said = capsys.readouterr().err
        assert f"other.npz has the label {wrong}, and cvae with num_classes=3 takes 0 to 2" in said
        assert "give labels as the training data had them" in said
    assert run("sample", folder / "cvae", "--label", wrong) == 1
    assert f"--label has the label {wrong}" in capsys.readouterr().err


def test_anomaly_scores_and_their_histogram(folder, model, data, capsys):
    out = folder / "scores.npy"
    arguments = ["--score", "reconstruction", "--quantile", 0.5, "--out", out]
    assert run("anomaly", folder / "vae", "--data", folder / "data.npz", *arguments) == 0
    expected = tasks.anomaly_scores(model, data[0], score="reconstruction")
    torch.testing.assert_close(torch.from_numpy(np.load(out)), expected)
    threshold = tasks.anomaly_threshold(expected[54:], 0.5)
    said = capsys.readouterr().out
    above = int((expected > threshold).sum())
    assert f"Threshold {threshold:.2f} nats: {above} of 60 samples are above it" in said
    assert is_picture(folder / "scores.png")


def test_walks(folder, model, data):
    x = data[0]
    common = ["--data", folder / "data.npz", "--out", folder / "walk.npy"]
    assert (
        run("interpolate", folder / "vae", "--n", 2, "--steps", 4, "--path", "linear", *common) == 0
    )
    expected = tasks.interpolate(model, x[[0, 2]], x[[1, 3]], steps=4, path="linear")
    torch.testing.assert_close(torch.from_numpy(np.load(folder / "walk.npy")), expected)
    assert run("traverse", folder / "vae", "--index", 5, "--dimensions", 2, "--steps", 3,
               "--range", 2, *common) == 0  # fmt: skip
    codes = tasks.encode(model, x)
    order = codes.std(0, correction=0).argsort(descending=True)[:2].tolist()
    expected = tasks.traverse(model, codes[5], dimensions=order, values=[-2.0, 0.0, 2.0])
    torch.testing.assert_close(torch.from_numpy(np.load(folder / "walk.npy")), expected)
    assert (
        run("attribute", folder / "vae", 2, "--rows", 4, "--steps", 3, "--strength", 2, *common)
        == 0
    )
    vector = tasks.attribute_vector(codes, data[1] == 2)
    others = x[data[1] != 2][:4]
    expected = torch.stack(
        [tasks.apply_attribute(model, others, vector, s) for s in (0, 1.0, 2)], 1
    )
    torch.testing.assert_close(torch.from_numpy(np.load(folder / "walk.npy")), expected)


def test_inpaint_keeps_known_values(folder, data):
    x = data[0][:4].float() / 255
    out = folder / "filled.npy"
    common = ["--data", folder / "data.npz", "--n", 4, "--steps", 2, "--draws", 3, "--out", out]
    for where, missing in (("left", np.s_[..., :4]), ("top", np.s_[..., :4, :]),
                           ("right", np.s_[..., 4:]), ("bottom", np.s_[..., 4:, :])):  # fmt: skip
        assert run("inpaint", folder / "vae", "--missing", where, *common) == 0
        same = torch.from_numpy(np.load(out)) == x
        assert not same[missing].any() and int(same.sum()) == x.numel() // 2, where
    assert run("inpaint", folder / "vae", "--missing", 0.25, *common) == 0
    same = (torch.from_numpy(np.load(out)) == x).float().mean()
    assert 0.6 < same < 0.9
    mask = np.zeros((1, 8, 8), bool)
    mask[0, 3] = True
    np.save(folder / "mask.npy", mask)
    assert run("inpaint", folder / "vae", "--missing", folder / "mask.npy", *common) == 0
    same = torch.from_numpy(np.load(out)) == x
    assert same[..., [0, 1, 2, 4, 5, 6, 7], :].all() and not same[..., 3, :].any()


def test_denoise(folder, model, data):
    out = folder / "clean.npy"
    common = ["--data", folder / "data.npz", "--n", 5, "--steps", 2, "--out", out]
    assert run("denoise", folder / "vae", "--noise", 0, *common) == 0
    expected = tasks.denoise(model, data[0][:5].float() / 255, steps=2)
    torch.testing.assert_close(torch.from_numpy(np.load(out)), expected)
    assert run("denoise", folder / "vae", "--noise", 0.5, *common) == 0
    assert not np.allclose(np.load(out), expected, atol=1e-4)


def test_translate_draws_from_the_derived_condition(folder, data):
    out = folder / "translated.npy"
    assert run("translate", folder / "half", "--data", folder / "data.npz", "--n", 3,
               "--draws", 2, "--seed", 5, "--out", out) == 0  # fmt: skip
    model = tasks.load_model(folder / "half", device="cpu").model
    x = data[0][:3].clone()
    x[..., 4:] = 0
    expected = torch.stack([tasks.generate(model, 3, x, seed=seed) for seed in (5, 6)])
    torch.testing.assert_close(torch.from_numpy(np.load(out)), expected)


@pytest.mark.parametrize("name", ["vae", "cvae"])
def test_compress_and_back(folder, data, capsys, name):
    model = tasks.load_model(folder / name, device="cpu").model
    y = data[1] if name == "cvae" else None
    file, out = folder / f"{name}.npz", folder / f"{name}.npy"
    common = ["--data", folder / "data.npz", "--out", file]
    assert run("compress", folder / name, "--step", 0.5, *common) == 0
    packed = tasks.compress(model, data[0], y, step=0.5)
    assert f"60 samples of {folder / 'data.npz'}: {packed.bits.mean():.1f} bits each" in (
        capsys.readouterr().out
    )
    np.testing.assert_array_equal(np.load(file)["symbols"], packed.symbols.numpy())
    assert run("decompress", folder / name, file, "--out", out) == 0
    expected = tasks.decompress(model, packed, y)
    torch.testing.assert_close(torch.from_numpy(np.load(out)), expected)


def test_samples_of_one_label(folder):
    out = folder / "drawn.npy"
    assert run("sample", folder / "cvae", "--n", 5, "--label", 2, "--seed", 3, "--out", out) == 0
    model = tasks.load_model(folder / "cvae", device="cpu").model
    expected = tasks.generate(model, 5, torch.full((5,), 2), seed=3)
    torch.testing.assert_close(torch.from_numpy(np.load(out)), expected)


def is_picture(path):
    image = pytest.importorskip("PIL.Image")
    return np.asarray(image.open(path).convert("L")).std() > 5


@pytest.mark.parametrize(
    ("command", "picture"),
    [
        (["latent-map"], "latent_map.png"),
        (["traverse"], "traversal.png"),
        (["interpolate", "--n", "2"], "interpolation.png"),
        (["attribute", "1"], "attribute_1.png"),
        (["inpaint", "--steps", "1", "--draws", "2"], "inpainting.png"),
        (["denoise"], "denoised.png"),
    ],
)
@pytest.mark.parametrize("name", ["vae", "cvae"])
def test_pictures_are_in_the_run_folder(folder, command, picture, name):
    pytest.importorskip("matplotlib")
    verb, *rest = command
    assert run(verb, folder / name, *rest, "--data", folder / "data.npz") == 0
    assert is_picture(folder / name / picture)


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (
            ["encode", "vae", "--out", "codes.csv"],
            2,
            "--out must end in .npy (an array) or .npz (arrays), got codes",
        ),
        (["latent-map", "vae", "--out", "x.npy"], 2, "--out must end in .png (a picture)"),
        (["anomaly", "vae", "--score", "odd"], 1, "score must be one of elbo, nll, reconstruction"),
        (["inpaint", "vae", "--missing", "middle"], 2, "--missing takes left, right, top, bottom"),
        (["denoise", "vae", "--noise", "-1"], 2, "--noise is a standard deviation"),
        (["traverse", "vae", "--index", "99"], 1, "--index 99 is not among the 6 samples"),
        (["traverse", "vae", "--steps", "0"], 2, "--steps must be at least 1"),
        (["sample", "vae", "--label", "1"], 1, "--label needs a model with labels"),
        (["attribute", "vae", "7"], 1, "samples with it and samples without"),
        (["decompress", "vae", "data.npz"], 1, "was not written by vae-fast compress"),
        (["translate", "vae"], 1, "derives no condition from images"),
        (["compress", "vae", "--step", "0"], 1, "step must be positive"),
    ],
)
def test_mistakes(folder, monkeypatch, capsys, arguments, status, message):
    monkeypatch.chdir(folder)
    assert run(*arguments) == status
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def test_every_command_has_help(capsys):
    assert run("--help") == 0
    overview = capsys.readouterr().out
    for name, command in COMMANDS.items():
        assert f"  {name} " in overview and command.__doc__ in overview
        if name == "info":
            continue
        with pytest.raises(SystemExit) as leaving:
            run(name, "--help")
        shown = capsys.readouterr().out
        assert leaving.value.code == 0 and "_" not in "".join(
            word for word in shown.split() if word.startswith("--")
        )
        lines = shown.splitlines()
        assert max(map(len, lines)) <= 100 and len(lines) <= 40, name
        assert "type: " not in shown and "null" not in shown and "SUPPRESS" not in shown, name
