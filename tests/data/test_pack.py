"""The writer of shards: its output, continuing after an interruption, refused input."""

import json
import os

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from vae_fast.data import DataOptions, as_data, in_support, load, open_shards, pack
from vae_fast.data import pack as pack_function
from vae_fast.data.shard_index import INDEX

from .test_shards import numbers_in

N = 103
IMAGES = torch.arange(N, dtype=torch.uint8).view(N, 1, 1, 1).expand(N, 1, 4, 4).contiguous()
LABELS = 1000 + torch.arange(N)
SOURCE = as_data((IMAGES, LABELS))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["array", "dataset", "mapped"])
def test_every_sample_once_with_its_label(tmp_path, workers, kind):
    np.save(tmp_path / "x.npy", IMAGES.numpy())
    source = {
        "array": SOURCE,
        "dataset": TensorDataset(IMAGES, LABELS),
        "mapped": tmp_path / "x.npy",
    }[kind]
    seen = []
    data = pack(
        source, tmp_path / "out", shard_bytes=160, workers=workers, seed=1,
        progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert len(data) == N and len(data.shards) == 11  # ten of 10 samples, one of 3
    assert data.labelled == (kind != "mapped")
    images, labels = data.gather(torch.arange(N))
    order = numbers_in(images)
    assert sorted(order) == list(range(N)) and order != list(range(N))
    assert labels is None or labels.tolist() == [1000 + n for n in order]
    assert len(seen) == 11 and seen[-1] == (N, N) and sorted(seen) == seen
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert not any(n.endswith(".part") or n == "pack.json" for n in names) and INDEX in names
    # Plain .npy, which anything reads.
    first = np.load(tmp_path / "out" / "images-00000.npy")
    assert first.dtype == np.uint8 and first[:, 0, 0, 0].tolist() == order[:10]


def test_the_files_depend_on_the_arguments_alone(tmp_path):
    for name, workers in (("a", 0), ("b", 2)):
        pack(SOURCE, tmp_path / name, shard_bytes=160, workers=workers, seed=7)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
    other = pack(SOURCE, tmp_path / "c", shard_bytes=160, workers=0, seed=8)
    assert numbers_in(other.gather(torch.arange(N))[0]) != numbers_in(
        open_shards(tmp_path / "a").gather(torch.arange(N))[0]
    )
    plain = pack(SOURCE, tmp_path / "d", shard_bytes=160, workers=0, shuffle=False)
    assert numbers_in(plain.gather(torch.arange(N))[0]) == list(range(N))


class Interrupt(Exception):
    pass


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("after", [1, 5, 11])
def test_an_interrupted_pack_continues_to_the_same_shards(tmp_path, workers, after):
    pack(SOURCE, tmp_path / "whole", shard_bytes=160, workers=0)
    calls = []

    def stop(done, total):
        calls.append(done)
        if len(calls) == after:
            raise Interrupt

    out = tmp_path / "out"
    with pytest.raises(Interrupt):
        pack(SOURCE, out, shard_bytes=160, workers=workers, progress=stop)
    assert not (out / INDEX).exists()
    with pytest.raises(FileNotFoundError, match="pack.* didn't finish"):
        open_shards(out)
    (out / "images-00010.npy.part").write_bytes(b"half")  # as a kill leaves it
    kept = {p: p.stat().st_mtime_ns for p in out.glob("*.npy")}
    assert len(kept) >= 2 * min(after, 5)
    pack(SOURCE, out, shard_bytes=160, workers=workers)
    assert all(path.stat().st_mtime_ns == then for path, then in kept.items())  # not written again
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (out / path.name).read_bytes()


def test_a_finished_pack_is_opened_and_not_written_again(tmp_path):
    first = pack(SOURCE, tmp_path, shard_bytes=160, workers=0)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    again = pack(SOURCE, tmp_path, shard_bytes=160, workers=0)
    assert again.shards == first.shards
    assert {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()} == before


def test_another_source_or_other_settings_are_refused(tmp_path):
    pack(SOURCE, tmp_path / "a", shard_bytes=160, workers=0)
    with pytest.raises(FileExistsError, match="something else: shard_samples is 10 there and 20"):
        pack(SOURCE, tmp_path / "a", shard_bytes=320, workers=0)
    with pytest.raises(FileExistsError, match="something else: looks"):
        pack((IMAGES + 1, LABELS), tmp_path / "a", shard_bytes=160, workers=0)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.tex").write_text("precious")
    with pytest.raises(FileExistsError, match=r"not empty: it holds thesis\.tex"):
        pack(SOURCE, tmp_path / "b")
    (tmp_path / "c").write_text("a file")
    with pytest.raises(FileExistsError, match="c is a file, and shards go into a folder"):
        pack(SOURCE, tmp_path / "c")
    assert (tmp_path / "c").read_text() == "a file"


def test_a_full_disk_is_known_beforehand(tmp_path, monkeypatch):
    import shutil

    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OSError, match="need 0.00 GB more, and 0.00 GB are free"):
        pack(SOURCE, tmp_path / "out")


def test_floats_of_an_8_bit_origin_become_uint8_and_others_do_not(tmp_path):
    for dtype in (torch.float32, torch.float16, torch.float64):
        floats = (IMAGES.double() / 255).to(dtype)
        data = pack(floats, tmp_path / str(dtype), shuffle=False, workers=0)
        assert data.dtype == torch.uint8
        assert torch.equal(data.gather(torch.arange(N))[0], IMAGES)
    smooth = torch.rand(5, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="multiples of 1/255.*keep_floats=True"):
        pack(smooth, tmp_path / "smooth", workers=0)
    data = pack(smooth, tmp_path / "kept", workers=0, shuffle=False, keep_floats=True)
    assert torch.equal(data.gather(torch.arange(5))[0], smooth)
    bits = smooth > 0.5
    data = pack(bits, tmp_path / "bits", workers=0, shuffle=False)
    assert data.dtype == torch.bool and torch.equal(data.gather(torch.arange(5))[0], bits)


def test_a_failing_item_fails_the_pack_in_its_own_words(tmp_path):
    items = [(IMAGES[i], i) for i in range(5)] + [(IMAGES[5, :, :2], 5)]
    for workers in (0, 2):
        with pytest.raises(ValueError, match=r"item 5 is .*\(1, 2, 4\)"):
            pack(Items(items), tmp_path / str(workers), shard_bytes=32, workers=workers)


class Items(torch.utils.data.Dataset):
    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


def test_shards_are_packed_again(tmp_path):
    first = pack(SOURCE, tmp_path / "a", shard_bytes=160, workers=0)
    again = pack(tmp_path / "a", tmp_path / "b", shard_bytes=400, workers=0, seed=9)
    images, labels = again.gather(torch.arange(N))
    assert sorted(numbers_in(images)) == list(range(N)) and len(again.shards) < len(first.shards)
    assert labels.tolist() == [1000 + n for n in numbers_in(images)]


def test_bad_arguments(tmp_path):
    for name in ("shard_bytes", "seed", "workers"):
        with pytest.raises(ValueError, match=name):
            pack_function(SOURCE, tmp_path, **{name: -1})
    with pytest.raises(TypeError, match="bfloat16 has no .npy form"):
        pack(torch.rand(4, 1, 2, 2).bfloat16(), tmp_path, keep_floats=True)


def test_sprites_through_shards_are_sprites(tmp_path):
    part = load("sprites").slice(0, 300)
    data = pack(part, tmp_path, shuffle=False, workers=0, shard_bytes=100 * 4096)
    images, labels = data.gather(torch.arange(300))
    expected = part.gather(torch.arange(300))
    assert torch.equal(images, expected[0]) and torch.equal(labels, expected[1])
    index = json.loads((tmp_path / INDEX).read_text())
    assert index["name"] == "sprites" and index["order"] == {"shuffled": False, "seed": None}


def test_a_changed_source_is_not_resumed(tmp_path):
    images = np.random.RandomState(0).randint(0, 256, (300, 4, 4), dtype=np.uint8)
    path, out = tmp_path / "images.npy", tmp_path / "out"
    np.save(path, images)
    pack(path, out, workers=0)
    assert len(pack(path, out, workers=0)) == 300
    images[5:90] = 0  # none of the few samples that it is known by
    np.save(path, images)
    os.utime(path, ns=(1, 1))
    with pytest.raises(FileExistsError, match="its files have changed since"):
        pack(path, out, workers=0)


def test_names_of_classes_and_files_are_kept_with_the_numbers(tmp_path):
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    for i in range(9):
        path = tmp_path / "in" / ("cat", "dog")[i % 2] / f"{i}\n.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.fromarray(np.full((4 + i, 5), i, np.uint8)).save(path)
    options = DataOptions(size=4)
    packed = pack(tmp_path / "in", tmp_path / "out", shard_bytes=64, workers=0, options=options)
    again = open_shards(tmp_path / "out")
    assert again.classes == packed.classes == ("cat", "dog") and len(again.shards) == 3
    images, labels = again.gather(torch.arange(9))
    for image, label, name in zip(images, labels, again.files, strict=True):
        assert name == f"{again.classes[label]}/{int(image.max())}\n.png"
    assert again.slice(3, 8).files == again.files[3:8]
    twice = pack(tmp_path / "out", tmp_path / "twice", workers=0)
    assert sorted(twice.files) == sorted(again.files) and twice.classes == again.classes
    names = tmp_path / "out" / "files-00001.json"
    names.write_text(names.read_text().replace('"', "", 1))
    with pytest.raises(ValueError, match="files-00001.json can't be read"):
        open_shards(tmp_path / "out").files  # noqa: B018


def test_the_range_of_floats_is_kept(tmp_path):
    images = torch.linspace(-2, 3, 64).view(4, 4, 4)
    packed = pack(
        as_data(images, bounded=False), tmp_path, keep_floats=True, bounded=False, workers=0
    )
    assert packed.range == open_shards(tmp_path).range == (-2.0, 3.0)
    index = json.loads((tmp_path / "index.json").read_text())
    del index["range"]  # as an older version wrote it
    (tmp_path / "index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"these lie in \[-2, 3\]"):
        in_support(open_shards(tmp_path), unit=True)
    assert in_support(open_shards(tmp_path), unit=False).range == (-2.0, 3.0)
