"""torchvision's data sets: which transforms are served from memory, and that the bits are torch's."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader as TorchLoader
from torch.utils.data import Subset

from tests.loader.test_loader import both, same
from vae_fast import DataLoader

try:
    import torchvision.datasets as sets
    from torchvision import transforms
    from torchvision.transforms import v2
except (ImportError, RuntimeError, OSError) as error:
    pytest.skip(
        f"torchvision does not import here: {type(error).__name__}", allow_module_level=True
    )

HALF, SIDE = 0.5, 12


def made(name, transform, count=40):
    """A torchvision data set with data of ours: its constructor looks for files."""
    cls = getattr(sets, name)
    dataset, random = cls.__new__(cls), np.random.default_rng(1)
    dataset.transform, dataset.target_transform = transform, None
    shape = {"CIFAR10": (SIDE, SIDE, 3), "SVHN": (3, SIDE, SIDE)}.get(name, (SIDE, SIDE + 1))
    data = random.integers(0, 256, (count, *shape), dtype=np.uint8)
    labels = random.integers(0, 10, count)
    dataset.data = data if len(shape) == 3 else torch.from_numpy(data)
    if name == "SVHN":
        dataset.labels = labels
    else:
        dataset.targets = labels.tolist() if name == "CIFAR10" else torch.from_numpy(labels)
    return dataset


def flat(x, size=-1, *, shift: float = 0.0):
    y = x.view(size)
    return y - shift


def scaled(factor):
    return lambda x: x * factor


SERVED = {
    "ToTensor": lambda: transforms.ToTensor(),
    "flat": lambda: transforms.Compose(
        [transforms.ToTensor(), transforms.Lambda(lambda x: x.view(-1))]
    ),
    "torch.flatten": lambda: transforms.Compose(
        [transforms.ToTensor(), transforms.Lambda(lambda x: torch.flatten(x, start_dim=1))]
    ),
    "a function": lambda: transforms.Compose([transforms.ToTensor(), transforms.Lambda(flat)]),
    "normalised": lambda: transforms.Compose(
        [transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))]
    ),
    "binarised": lambda: transforms.Compose(
        [transforms.ToTensor(), transforms.Lambda(lambda x: (x > HALF).float().reshape(-1))]
    ),
    "doubles": lambda: transforms.Compose(
        [transforms.PILToTensor(), transforms.ConvertImageDtype(torch.float64)]
    ),
    "a closure": lambda: transforms.Compose(
        [transforms.ToTensor(), transforms.Lambda(scaled(2.0)), transforms.Lambda(scaled(-0.3))]
    ),
    "v2": lambda: v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]),
    "v2, normalised": lambda: v2.Compose(
        [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5], [0.25])]
    ),
}


@pytest.mark.parametrize("transform", SERVED)
@pytest.mark.parametrize("name", ["MNIST", "FashionMNIST", "CIFAR10", "SVHN"])
def test_served_to_the_bit(name, transform):
    dataset = made(name, SERVED[transform]())
    loader = both(dataset, batch_size=7, shuffle=True)
    assert loader.served == f"from memory: {name}'s images"
    part = Subset(dataset, range(3, 30, 2))
    assert both(part, batch_size=4, num_workers=1, shuffle=True).served.startswith("from memory")


STATE = [torch.tensor(0.5)]
RANDOM = np.random.default_rng(3)


class Shift:
    def __call__(self, x):
        return x + 1


# What may look at other pixels, draw, branch or change by itself, however rarely it shows.
TORCHS = {
    "no transform to tensors": lambda: transforms.Lambda(lambda image: torch.ones(2)),
    "rare": lambda: transforms.RandomErasing(p=1e-3),
    "flip": lambda: transforms.RandomHorizontalFlip(),
    "crop": lambda: transforms.CenterCrop(SIDE),
    "mean": lambda: transforms.Lambda(lambda x: x - x.mean()),
    "branch": lambda: transforms.Lambda(lambda x: x if x.sum() > -1 else -x),
    "branch without a sum": lambda: transforms.Lambda(lambda x: x + 1 if x.view(-1) is None else x),
    "pixel": lambda: transforms.Lambda(lambda x: x * (x[0, 0, 0] <= 1)),
    "noise": lambda: transforms.Lambda(lambda x: x + 0 * torch.randn_like(x)),
    "NumPy's noise": lambda: transforms.Lambda(lambda x: x + 0 * RANDOM.random()),
    "bernoulli": lambda: transforms.Lambda(lambda x: x.bernoulli()),
    "state": lambda: transforms.Lambda(lambda x: x * STATE[0]),
    "object": lambda: transforms.Lambda(Shift()),
    "transposed": lambda: transforms.Lambda(lambda x: x.permute(0, 2, 1).reshape(-1)),
    "repeated": lambda: transforms.Lambda(lambda x: x.repeat(2, 1, 1)),
    "outer": lambda: transforms.Lambda(lambda x: x.view(1, -1) * x.view(-1, 1)),
    "exp": lambda: transforms.Lambda(lambda x: x.exp()),
}


@pytest.mark.parametrize("second", TORCHS)
def test_left_to_torch(second):
    part = TORCHS[second]()
    first = [] if second == "no transform to tensors" else [transforms.ToTensor()]
    dataset = made("MNIST", transforms.Compose([*first, part]))
    loader = both(dataset, batch_size=7)
    assert loader.served.startswith("by torch"), loader.served


def test_labels_that_are_transformed_and_data_that_are_none():
    dataset = made("MNIST", transforms.ToTensor())
    dataset.target_transform = lambda label: -label
    assert "target_transform" in both(dataset, batch_size=7).served
    dataset = made("MNIST", transforms.ToTensor())
    dataset.data = dataset.data.float()
    assert "uint8" in DataLoader(dataset).served


def test_a_changed_default_dtype():
    dataset = made("MNIST", transforms.ToTensor())
    loader = DataLoader(dataset, batch_size=20)
    same(list(loader), list(TorchLoader(dataset, batch_size=20)))
    torch.set_default_dtype(torch.float64)
    try:
        same(list(loader), list(TorchLoader(dataset, batch_size=20)))
    finally:
        torch.set_default_dtype(torch.float32)


def test_changes_are_followed_at_the_next_batch():
    dataset = made("FashionMNIST", None)
    normalize = transforms.Normalize([0.5], [0.25])

    def restore():
        dataset.transform = transforms.Compose([transforms.ToTensor(), normalize])
        fresh = made("FashionMNIST", None)
        dataset.data, dataset.targets = fresh.data, fresh.targets
        normalize.mean = [0.5]

    def change(epoch):
        global HALF
        HALF = 0.5
        if epoch == 1:
            dataset.data[:4] = 255
        elif epoch == 2:
            normalize.mean = [0.1]
        elif epoch == 3:
            dataset.transform.transforms.append(transforms.Lambda(lambda x: x.flatten()))
        elif epoch == 4:
            dataset.transform = transforms.Compose([transforms.ToTensor(), lambda x: x.mean()])
        elif epoch == 5:
            dataset.transform = SERVED["binarised"]()
        elif epoch == 6:
            HALF = 0.2
        elif epoch == 7:
            dataset.data = dataset.data.flip(0)
            dataset.targets = dataset.targets.flip(0)
        elif epoch == 8:
            dataset.targets = dataset.targets + 1
            dataset.transform = transforms.RandomApply([transforms.ToTensor()], p=1.0)

    loader = both(dataset, 9, change, restore, batch_size=9, shuffle=True)
    assert "RandomApply" in loader.served or "ToTensor" in loader.served
    restore()
    batches = iter(DataLoader(dataset, batch_size=20))
    next(batches)
    dataset.transform = transforms.Compose([transforms.ToTensor(), transforms.RandomErasing(p=1.0)])
    torch.manual_seed(5)
    found = next(batches)
    expected = iter(TorchLoader(Subset(dataset, range(20, 40)), batch_size=20))
    torch.manual_seed(5)
    same(found, next(expected))


def test_a_class_that_was_patched_since(monkeypatch):
    dataset = made("MNIST", transforms.ToTensor())
    loader = DataLoader(dataset, batch_size=20)
    list(loader)
    monkeypatch.setattr(transforms.ToTensor, "__call__", lambda self, x: torch.ones(1))
    same(list(loader), list(TorchLoader(dataset, batch_size=20)))
    monkeypatch.setattr(sets.MNIST, "__getitem__", lambda self, index: index)
    same(list(loader), list(TorchLoader(dataset, batch_size=20)))
