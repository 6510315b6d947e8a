"""Arrays as data: shapes, dtypes, shared memory, and refused arrays."""

import zipfile

import numpy as np
import pytest
import torch

from vae_fast.data import Batches, as_data, from_array, in_support, pack

from .test_datasets import Items


def test_uint8_images_are_neither_copied_nor_scaled():
    array = np.arange(5 * 4 * 3, dtype=np.uint8).reshape(5, 4, 3)
    data = as_data(array)
    assert data.images.shape == (5, 1, 4, 3) and data.shape == (1, 4, 3)
    assert data.dtype == torch.uint8 and len(data) == 5 and data.labels is None
    assert data.images.data_ptr() == array.ctypes.data
    np.testing.assert_array_equal(data.images[:, 0].numpy(), array)


def test_vectors_and_channels_keep_their_shape():
    assert as_data(np.zeros((7, 12), np.float32)).images.shape == (7, 12)
    assert as_data(np.zeros((7, 3, 8, 9), np.uint8)).shape == (3, 8, 9)
    assert as_data(torch.zeros(7, 2, 8, 9, dtype=torch.bool)).dtype == torch.bool


def test_numpy_channels_last_is_transposed_and_torch_is_not():
    array = np.random.RandomState(0).randint(0, 256, (4, 6, 5, 3), dtype=np.uint8)
    data = as_data(array)
    assert data.shape == (3, 6, 5)
    np.testing.assert_array_equal(data.images.numpy(), array.transpose(0, 3, 1, 2))
    assert as_data(torch.from_numpy(array)).shape == (6, 5, 3)
    assert as_data(np.zeros((4, 512, 4, 4), np.float32)).shape == (512, 4, 4)  # a feature map
    assert as_data(np.zeros((4, 3, 8, 3), np.uint8)).shape == (3, 8, 3)


def test_awkward_memory_is_read_rightly():
    base = np.arange(6 * 4 * 4, dtype=np.uint8).reshape(6, 4, 4)
    np.testing.assert_array_equal(as_data(base[::-1]).images[:, 0].numpy(), base[::-1])
    np.testing.assert_array_equal(as_data(base[::2]).images[:, 0].numpy(), base[::2])
    big_endian = (base / 255).astype(">f4")
    np.testing.assert_array_equal(as_data(big_endian).images[:, 0].numpy(), big_endian)
    read_only = base.copy()
    read_only.flags.writeable = False
    np.testing.assert_array_equal(as_data(read_only).images[:, 0].numpy(), base)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_float_dtype_is_taken_and_checked(dtype):
    images = torch.linspace(0, 1, 3 * 4 * 4).view(3, 4, 4).to(dtype)
    assert torch.equal(as_data(images).images[:, 0], images)
    for bad in (1.5, -0.5):
        wrong = images.clone()
        wrong[2, 1, 1] = bad
        with pytest.raises(
            ValueError, match=r"must lie in \[0, 1\].*: (scale|they look like).*bounded=False"
        ) as caught:
            as_data(wrong)
        assert f"{bad:g}" in str(caught.value)
        assert torch.equal(as_data(wrong, bounded=False).images[:, 0], wrong)
    for bad in (float("nan"), float("inf"), -float("inf")):
        wrong = images.clone()
        wrong[1, 2, 3] = bad
        for bounded in (True, False):
            with pytest.raises(ValueError, match="NaN or infinity"):
                as_data(wrong, bounded=bounded)


def test_labels_become_int64_and_are_checked():
    images = np.zeros((3, 4, 4), np.uint8)
    data = as_data((images, np.array([2, 0, 1], np.uint8)))
    assert data.labels.dtype == torch.int64 and data.labels.tolist() == [2, 0, 1]
    with pytest.raises(ValueError, match=r"3 images need labels of shape \(3,\).*\(2,\)"):
        as_data((images, np.array([1, 2])))
    with pytest.raises(TypeError, match="labels must be integers.*float64"):
        from_array(images, np.zeros(3))


@pytest.mark.parametrize(
    ("source", "error", "words"),
    [
        (np.zeros((3, 4, 4), np.int64), TypeError, ["uint8", "int64", "convert them"]),
        (np.zeros((3, 4, 4), np.uint16), TypeError, ["uint8", "uint16"]),
        (np.zeros((3, 4, 4), np.complex64), TypeError, ["array of numbers", "complex64"]),
        (np.array([None, None]), TypeError, ["array of numbers", "object", "np.stack"]),
        (np.array(["a"]), TypeError, ["array of numbers"]),
        (np.zeros(5, np.uint8), ValueError, ["(N, C, H, W)", "(5,)"]),
        (np.zeros((2, 3, 4, 5, 6), np.uint8), ValueError, ["(N, C, H, W)", "(2, 3, 4, 5, 6)"]),
        (np.zeros((0, 4, 4), np.uint8), ValueError, ["nothing in it", "(0, 1, 4, 4)"]),
        (torch.zeros(2, 3, 4).to_sparse(), ValueError, ["sparse matrix (N, D)", "3 axes"]),
        ([[1, 2]], TypeError, ["a name, a path", "list"]),
        (None, TypeError, ["a name, a path", "NoneType"]),
        ({"images": 1}, TypeError, ["dict"]),
    ],
)
def test_data_that_do_not_fit_have_clear_errors(source, error, words):
    with pytest.raises(error) as caught:
        as_data(source)
    for word in words:
        assert word in str(caught.value)


def test_slices_are_views():
    data = as_data((np.arange(64, dtype=np.uint8).reshape(4, 4, 4), np.arange(4)))
    part = data.slice(1, 3)
    assert len(part) == 2 and part.labels.tolist() == [1, 2]
    assert part.images.data_ptr() == data.images[1:].data_ptr()


@pytest.mark.parametrize("bounded", [True, False])
def test_a_source_knows_its_range(bounded):
    images = torch.linspace(0, 1, 48).view(3, 4, 4)
    assert as_data(images, bounded=bounded).range == (0.0, 1.0)
    assert as_data((images * 255).to(torch.uint8)).range == as_data(images > 0.5).range == (0, 1)
    wide = as_data(images * 5 - 2, bounded=False)
    assert wide.range == (-2.0, 3.0)
    for scale, shift, words in (
        (255, 0, "if they stand for 0..255, divide"),
        (2, -1, r"\(x \+ 1\) / 2"),
    ):
        with pytest.raises(ValueError, match=rf"in \[0, 1\].*these lie in \[.*{words}.*gaussian"):
            in_support(as_data(images * scale + shift, bounded=False), unit=True)
    in_support(wide, unit=False)


def test_uint8_of_zeros_and_ones_is_refused_with_both_ways_out():
    masks = np.zeros((600, 4, 4), np.uint8)
    masks[321, 2, 2] = 1  # found wherever it is
    for bad in (masks, torch.from_numpy(masks)):
        with pytest.raises(ValueError, match=r"largest value is 1.*astype\(bool\).*255"):
            as_data(bad)
        with pytest.raises(ValueError, match="largest value is 1"):
            in_support(as_data(bad, bounded=False), unit=False)
    assert as_data(masks.astype(bool)).images.sum() == as_data(masks * 255).images.sum() / 255 == 1
    masks[123, 0, 0] = 2
    assert as_data(masks).images.max() == 2
    assert as_data(np.zeros((3, 4, 4), np.uint8)).images.max() == 0


def test_every_byte_of_a_bool_but_0_is_true(tmp_path):
    bytes_ = np.random.RandomState(0).randint(0, 256, (20, 3, 4), dtype=np.uint8) & 0xF1
    header = {"descr": "|b1", "fortran_order": False, "shape": bytes_.shape}
    with open(tmp_path / "b.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        file.write(bytes_.tobytes())
    with zipfile.ZipFile(tmp_path / "b.npz", "w") as archive:
        archive.write(tmp_path / "b.npy", "images.npy")
    items = [torch.from_numpy(row).view(torch.bool) for row in bytes_]
    pack(tmp_path / "b.npy", tmp_path / "shards", workers=0, shuffle=False)
    for source in (
        bytes_.view(bool), torch.from_numpy(bytes_).view(torch.bool), tmp_path / "b.npy",
        tmp_path / "b.npz", tmp_path / "shards", Items(items),
    ):  # fmt: skip
        images = next(iter(Batches(as_data(source), 20, shuffle=False))).images
        assert images.dtype == torch.bool
        np.testing.assert_array_equal(images.view(torch.uint8)[:, 0].numpy(), bytes_ != 0)


def test_unusable_parts_are_errors():
    images = np.arange(48, dtype=np.uint8).reshape(3, 4, 4)
    with pytest.raises(ValueError, match="6 of its values are masked.*filled"):
        as_data(np.ma.masked_less(images, 6))
    assert len(as_data(np.ma.array(images))) == 3  # a mask that hides nothing
    with pytest.raises(ValueError, match="labels: 1 of its values are masked"):
        as_data((images, np.ma.masked_equal([0, 1, 2], 1)))
    with pytest.raises(ValueError, match="a label is above 2"):
        as_data((images, np.array([0, 1, 2**64 - 1], np.uint64)))
    with pytest.raises(TypeError, match="a meta tensor has no values"):
        as_data(torch.zeros(3, 4, 4, device="meta"))
    named = as_data((images, np.array(["b", "a", "b"])))
    assert named.labels.tolist() == [1, 0, 1] and named.classes == ("a", "b")


def test_floats_of_any_range_are_a_real_likelihoods(tmp_path):
    """They are no bytes, so a largest value of about 1 is not suspicious."""
    for largest in (1.0, 1.5):
        images = np.linspace(-largest, largest, 4 * 9, dtype=np.float32).reshape(4, 3, 3)
        np.save(tmp_path / "images.npy", images)
        for source in (images, torch.from_numpy(images), tmp_path / "images.npy"):
            data = as_data(source, bounded=False)
            assert in_support(data, unit=False) is data
            with pytest.raises(ValueError, match="must lie in"):
                in_support(data, unit=True)
