"""A folder of image files."""

import os
import struct
import zlib

import numpy as np
import pytest
import torch

from vae_fast.data import Batches, DataOptions, ImageFolder, as_data, load
from vae_fast.data.datasets import image_tensor

Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
PIXELS = np.random.RandomState(4).randint(0, 256, (6, 10, 12, 3), dtype=np.uint8)


def write(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def test_subfolders_are_classes_in_order_of_name(tmp_path):
    for i, name in enumerate(["b/2.png", "b/1.PNG", "a/x/3.bmp", "c/4.png"]):
        write(tmp_path / name, PIXELS[i])
    (tmp_path / "b" / "notes.txt").write_text("not an image")
    data = as_data(tmp_path)
    batch = next(iter(Batches(data, 4, shuffle=False)))
    expected = PIXELS[[2, 1, 0, 3]].transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(batch.images.numpy(), expected)
    assert batch.labels.tolist() == [0, 1, 1, 2]
    assert ImageFolder(tmp_path).classes == ["a", "b", "c"]


def test_files_in_the_folder_itself_have_no_classes(tmp_path):
    write(tmp_path / "1.png", PIXELS[0, :, :, 0])
    data = as_data(tmp_path)
    assert data.shape == (1, 10, 12) and not data.labelled
    write(tmp_path / "2.png", PIXELS[1])  # colour wins
    data = as_data(tmp_path)
    assert data.shape == (3, 10, 12) and data.files == ["1.png", "2.png"]
    np.testing.assert_array_equal(data[1][0].numpy(), PIXELS[1].transpose(2, 0, 1))
    grey = as_data(tmp_path, options=DataOptions(mode="L"))
    np.testing.assert_array_equal(grey[0][0][0].numpy(), PIXELS[0, :, :, 0])


def test_size_resizes_all_images(tmp_path):
    write(tmp_path / "1.png", np.kron(PIXELS[0, :8, :8], np.ones((2, 2, 1), np.uint8)))
    write(tmp_path / "2.png", PIXELS[1])
    with pytest.raises(
        ValueError, match=r"2 sizes: 1 of 16x16 and 1 of 12x10 \(2.png\).*data.size"
    ):
        as_data(tmp_path)
    data = as_data(tmp_path, options=DataOptions(size=8))
    assert data.shape == (3, 8, 8)
    assert torch.equal(data[0][0], torch.from_numpy(PIXELS[0, :8, :8]).permute(2, 0, 1))
    assert data[1][0].shape == (3, 8, 8)


def test_long_reading_is_logged(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("vae_fast.data.logged_progress.FIRST", 0.0)
    for i in range(3):
        write(tmp_path / "photos" / f"{i}.png", PIXELS[i])
    with caplog.at_level("INFO", logger="vae_fast.data"):
        ImageFolder(tmp_path / "photos")
    assert "photos: 1 of 3 image headers read" in caplog.text and "3 of 3" not in caplog.text


def test_unreadable_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        ImageFolder(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="nor image files"):
        ImageFolder(tmp_path)
    write(tmp_path / "1.png", PIXELS[0])
    whole = (tmp_path / "1.png").read_bytes()
    (tmp_path / "2.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "3.png").write_text("not a picture")
    with pytest.warns(
        UserWarning, match=r"2 images used; not used: 1 damaged file \(3.png: its cont"
    ):
        data = as_data(tmp_path)
    with pytest.raises(ValueError, match=r"2\.png can't be decoded: .*; .*--data.damaged skip"):
        data[1]
    with pytest.warns(
        UserWarning, match=r"1 image used; not used: 2 damaged files \(2.png: image.*; also 3.png\)"
    ):
        data = as_data(tmp_path, options=DataOptions(damaged="skip"))
    assert data.files == ["1.png"]
    assert [path.name for path in data.dataset.damaged] == ["2.png", "3.png"]
    with pytest.raises(ValueError, match="damaged must be error or skip, and is 'drop'"):
        ImageFolder(tmp_path, damaged="drop")
    with pytest.raises(ValueError, match="mode must be L, RGB or None, and is 'CMYK'"):
        ImageFolder(tmp_path, mode="CMYK")
    with pytest.raises(ValueError, match="size must be at least 1"):
        ImageFolder(tmp_path, size=0)


@pytest.mark.parametrize(("bits", "shift"), [(8, 0), (10, 2), (12, 4), (16, 8)])
def test_sixteen_bits_are_scaled_by_the_bits_that_are_used(tmp_path, bits, shift):
    values = np.random.RandomState(0).randint(0, 1 << bits, (3, 5, 4)).astype(np.uint16)
    values[1, 0, 0] = (1 << bits) - 1  # one file's largest is of all
    for i, pixels in enumerate(values):
        Image.fromarray(pixels).save(tmp_path / f"{i}.{('png', 'tif', 'png')[i]}")
    data = as_data(tmp_path)
    expected = torch.from_numpy((values >> shift).astype(np.uint8)).unsqueeze(1)
    assert torch.equal(torch.stack([data[i][0] for i in range(3)]), expected)


def test_more_than_eight_bits_of_an_unknown_range_are_refused(tmp_path):
    for pixels in (np.zeros((2, 2), np.float32), np.zeros((2, 2), np.uint16)):
        with pytest.raises(ValueError, match="one: it has more than 8 bits a pixel"):
            image_tensor(Image.fromarray(pixels), "one")
    Image.fromarray(np.zeros((2, 2), np.float32)).save(tmp_path / "1.tif")
    with pytest.raises(ValueError, match="floating-point pixels, whose range is not known"):
        as_data(tmp_path)


def png(pixels, colour_type):
    """A PNG of 16 bits a channel, which Pillow doesn't write."""
    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def test_sixteen_bits_of_colour_are_taken_only_where_pillow_keeps_them(tmp_path):
    pixels = np.random.RandomState(0).randint(0, 4096, (5, 4, 3))
    (tmp_path / "1.png").write_bytes(png(pixels, 2))
    with pytest.raises(ValueError, match="16 bits a channel, of which the images here use 12"):
        as_data(tmp_path)
    (tmp_path / "1.png").write_bytes(png(pixels << 4, 2))
    expected = (pixels >> 4).astype(np.uint8).transpose(2, 0, 1)
    np.testing.assert_array_equal(as_data(tmp_path)[0][0].numpy(), expected)


def test_transparency_shows_the_background(tmp_path):
    rgba = np.dstack([PIXELS[0], np.full((10, 12), 255, np.uint8)])
    rgba[:5, :, 3] = 0  # what lies behind is not to be learnt
    rgba[5, :, 3] = 51
    write(tmp_path / "a.png", rgba)
    grey = np.dstack([PIXELS[1, :, :, 0], rgba[:, :, 3]])
    Image.fromarray(grey).save(tmp_path / "b.png")
    palette = Image.fromarray(np.full((10, 12), 1, np.uint8)).convert("P")
    palette.putpalette([9, 8, 7, 200, 100, 50])
    palette.save(tmp_path / "c.png", transparency=1)
    for background, colour in (("white", (255,) * 3), ("#204060", (32, 64, 96))):
        data = as_data(tmp_path, options=DataOptions(background=background))
        a, b, c = (data[i][0].permute(1, 2, 0).numpy() for i in range(3))
        for image in (a, b):
            assert (image[:5] == colour).all()
        np.testing.assert_array_equal(a[6:], PIXELS[0, 6:])
        mixed = np.round(0.2 * PIXELS[0, 5] + 0.8 * np.array(colour))
        assert abs(a[5].astype(int) - mixed).max() <= 1
        np.testing.assert_array_equal(b[6:], np.repeat(PIXELS[1, 6:, :, :1], 3, 2))
        assert (c == colour).all()
    (tmp_path / "a.png").unlink(), (tmp_path / "c.png").unlink()
    assert as_data(tmp_path).shape == (1, 10, 12)  # grey over white is grey
    assert as_data(tmp_path, options=DataOptions(background="red")).shape == (3, 10, 12)
    with pytest.raises(ValueError, match="background 'reddish' is not a colour"):
        as_data(tmp_path, options=DataOptions(background="reddish"))


def test_only_images_are_opened_and_unused_files_are_counted(tmp_path):
    for i, name in enumerate(["cat/1.png", "cat/2.png", "dog/1.png"]):
        write(tmp_path / name, PIXELS[i])
    for folder in (".git", "__MACOSX", "cat/.ipynb_checkpoints", "dog/@eaDir"):
        write(tmp_path / folder / "1.png", PIXELS[3])
    (tmp_path / "dog" / "._1.png").write_text("of a Mac")
    (tmp_path / "dog" / "Thumbs.db").write_text("of Windows")
    (tmp_path / "empty").mkdir()
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n"
    (tmp_path / "dog" / "2.eps").write_bytes(eps)
    (tmp_path / "dog" / "3.png").write_bytes(eps)  # Pillow, by its content, would run Ghostscript
    (tmp_path / "dog" / "4.heic").write_bytes(b"x")
    os.mkfifo(tmp_path / "dog" / "5.png")
    (tmp_path / "dog" / "6.png").symlink_to(tmp_path / "gone.png")
    (tmp_path / "dog" / "up").symlink_to(tmp_path)
    first = Image.fromarray(PIXELS[0])
    first.save(tmp_path / "dog" / "7.tif", save_all=True, append_images=[first, first])
    with pytest.warns(UserWarning) as caught:
        folder = ImageFolder(tmp_path)
    assert folder.files == ["cat/1.png", "cat/2.png", "dog/1.png", "dog/7.tif"]
    assert folder.classes == ["cat", "dog"] and folder.labels == [0, 0, 1, 1]
    (warning,) = caught
    message = str(warning.message)
    for words in [
        "4 images used; not used: ", "1 .eps file", "1 .heic file", "1 broken link",
        "1 device or pipe", "4 hidden or tool folders", "1 link to a folder", "1 damaged file (dog/3",
        "all but the first page of 1 file",
    ]:  # fmt: skip
        assert words in message
    assert "\n" not in message
    (tmp_path / "preview.png").write_bytes((tmp_path / "cat" / "1.png").read_bytes())
    with pytest.warns(UserWarning, match=r"no classes, as 1 image \(preview.png\) lies beside"):
        assert not as_data(tmp_path).labelled


def test_folders_of_splits_are_splits(tmp_path):
    for i, name in enumerate(["b/1", "b/2", "a/1", "a/2"]):
        write(tmp_path / "train" / f"{name}.png", PIXELS[i])
    write(tmp_path / "Valid" / "b" / "9.png", PIXELS[4])
    train, val = load(tmp_path, split="train"), load(tmp_path, split="val")
    assert train.files == ["train/a/1.png", "train/a/2.png", "train/b/1.png", "train/b/2.png"]
    assert train.classes == val.classes == ("a", "b")
    assert (val.files, val[0][1]) == (["Valid/b/9.png"], 1)
    assert len(load(tmp_path, split="train+val")) == 5 and len(as_data(tmp_path)) == 4
    with pytest.raises(ValueError, match="has no folder for test: it has train, Valid"):
        load(tmp_path, split="test")
    (tmp_path / "Valid").rename(tmp_path / "test")  # then part of train is held out
    parts = [load(tmp_path, split=s).files for s in ("train", "val", "test")]
    assert [len(part) for part in parts] == [2, 2, 1] and parts[2] == ["test/b/9.png"]
    assert sorted(name.split("/")[1] for name in parts[1]) == ["a", "b"]
    write(tmp_path / "unlabelled" / "1.png", PIXELS[5])
    with pytest.raises(ValueError, match="folders of splits test, train beside unlabelled"):
        as_data(tmp_path)
    write(tmp_path / "classes" / "train" / "1.png", PIXELS[0])
    write(tmp_path / "classes" / "bus" / "1.png", PIXELS[0])
    assert ImageFolder(tmp_path / "classes").classes == ["bus", "train"]
    write(tmp_path / "s" / "train" / "a" / "1.png", PIXELS[0])
    write(tmp_path / "s" / "val" / "z" / "1.png", PIXELS[0])
    with pytest.raises(ValueError, match="val has the class z, which .*train lacks"):
        load(tmp_path / "s", split="val")


def test_class_folders_give_a_part_of_every_class(tmp_path):
    for name, count in (("a", 20), ("b", 10), ("c", 3)):
        for i in range(count):
            write(tmp_path / name / f"{i}.png", PIXELS[0])
    train, val = load(tmp_path, split="train"), load(tmp_path, split="val")
    assert [name[0] for name in val.files] == ["a", "a", "b", "c"]
    assert sorted(train.files + val.files) == as_data(tmp_path).files
    assert load(tmp_path, split="val").files == val.files
    other = load(tmp_path, split="val", options=DataOptions(split_seed=1, held_out=0.5))
    assert [sum(name[0] == c for name in other.files) for c in "abc"] == [10, 5, 1]
    write(tmp_path / "a" / "0a.png", PIXELS[0])  # a run keeps what it held out
    kept = load(tmp_path, split="val", kept=val.files)
    assert kept.files == val.files
    (tmp_path / val.files[0]).unlink()
    with pytest.raises(ValueError, match=f"lacks 1 of the 4 samples .* such as {val.files[0]}"):
        load(tmp_path, split="train", kept=val.files)


def test_a_single_image_and_unprintable_names(tmp_path):
    write(tmp_path / "photo.JPEG", PIXELS[0])
    one = as_data(str(tmp_path / "photo.JPEG"), options=DataOptions(size=5))
    assert len(one) == 1 and one.shape == (3, 5, 5) and one.files == ["photo.JPEG"]
    odd = tmp_path / "odd\nname"
    write(odd / "x\n.png", PIXELS[0])
    os.rename(odd / "x\n.png", os.fsencode(odd) + b"/\xff.png")
    data = as_data(odd)
    assert os.fsencode(data.files[0]) == b"\xff.png" and data[0][0].shape == (3, 10, 12)
    (odd / os.fsdecode(b"\xff.png")).write_bytes(b"")
    with pytest.raises(ValueError, match=r"odd\\nname/\\udcff.png can't be decoded") as caught:
        as_data(odd)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("mode", ["1", "P", "CMYK", "LAB", "HSV", "YCbCr", "PA"])
def test_every_mode_that_files_may_have(tmp_path, mode):
    image = Image.fromarray(PIXELS[0]).convert("P" if mode == "PA" else mode)
    suffix = "jpg" if mode == "CMYK" else "tif" if mode in ("LAB", "YCbCr") else "png"
    if mode in ("HSV", "PA"):
        image = image.convert("RGB" if mode == "HSV" else "RGBA")
    image.save(tmp_path / f"1.{suffix}")
    data = as_data(tmp_path)
    with Image.open(tmp_path / f"1.{suffix}") as file:
        wanted = np.array(file.convert("L" if mode == "1" else "RGB"))
    found = data[0][0].permute(1, 2, 0).numpy().reshape(wanted.shape)
    np.testing.assert_array_equal(found, wanted)
    assert data.dtype == torch.uint8
