"""A folder of image files."""

import numpy as np
import pytest
import torch

from vae_fast.data import Batches, ImageFolder, as_data
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
    write(tmp_path / "2.png", PIXELS[1])  # the first one's grey goes for all
    data = as_data(tmp_path)
    assert data.shape == (1, 10, 12) and not data.labelled
    np.testing.assert_array_equal(data[0][0][0].numpy(), PIXELS[0, :, :, 0])
    assert as_data(ImageFolder(tmp_path, mode="RGB")).shape == (3, 10, 12)


def test_size_makes_all_alike(tmp_path):
    write(tmp_path / "1.png", np.kron(PIXELS[0, :8, :8], np.ones((2, 2, 1), np.uint8)))
    write(tmp_path / "2.png", PIXELS[1])
    with pytest.raises(ValueError, match=r"item 1 .*\(3, 10, 12\).*item 0 .*\(3, 16, 16\).*resize"):
        list(Batches(as_data(tmp_path), 2, shuffle=False))
    data = as_data(ImageFolder(tmp_path, size=8))
    assert data.shape == (3, 8, 8)
    assert torch.equal(data[0][0], torch.from_numpy(PIXELS[0, :8, :8]).permute(2, 0, 1))
    assert data[1][0].shape == (3, 8, 8)


def test_what_cannot_be_read_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        ImageFolder(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="nor image files"):
        ImageFolder(tmp_path)
    write(tmp_path / "1.png", PIXELS[0])
    whole = (tmp_path / "1.png").read_bytes()
    (tmp_path / "2.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "3.png").write_text("not a picture")
    data = as_data(tmp_path)
    for i in (1, 2):
        with pytest.raises(ValueError, match=rf"{i + 1}\.png can't be decoded"):
            data[i]
    with pytest.raises(ValueError, match="mode must be L, RGB or None, and is 'CMYK'"):
        ImageFolder(tmp_path, mode="CMYK")
    with pytest.raises(ValueError, match="size must be at least 1"):
        ImageFolder(tmp_path, size=0)


def test_sixteen_bits_become_their_upper_eight(tmp_path):
    values = np.random.RandomState(0).randint(0, 1 << 16, (3, 5, 4)).astype(np.uint16)
    for i, pixels in enumerate(values):
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    data = as_data(tmp_path)
    expected = torch.from_numpy((values >> 8).astype(np.uint8)).unsqueeze(1)
    assert torch.equal(torch.stack([data[i][0] for i in range(3)]), expected)
    image = image_tensor(Image.open(tmp_path / "1.png"), "one")
    assert image[0].tolist() == expected[1, 0].tolist()


def test_thirty_two_bits_are_refused():
    with pytest.raises(ValueError, match="one: it has 32 bits a pixel"):
        image_tensor(Image.fromarray(np.zeros((2, 2), np.float32)), "one")
