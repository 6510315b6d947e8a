"""Stand-ins for torchvision, so that every way it can fail is tested wherever this runs."""

import sys
import types

import pytest


class _Missing:
    """An import hook under which torchvision does not exist."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torchvision":
            raise ModuleNotFoundError("No module named 'torchvision'", name="torchvision")


@pytest.fixture
def no_torchvision(monkeypatch):
    _forget(monkeypatch)
    monkeypatch.setattr(sys, "meta_path", [_Missing(), *sys.meta_path])


@pytest.fixture
def fake_torchvision(monkeypatch):
    """torchvision with an empty `datasets`, to be filled by the test."""
    _forget(monkeypatch)
    package, datasets = types.ModuleType("torchvision"), types.ModuleType("torchvision.datasets")
    package.datasets = datasets
    monkeypatch.setitem(sys.modules, "torchvision", package)
    monkeypatch.setitem(sys.modules, "torchvision.datasets", datasets)
    return datasets


def _forget(monkeypatch):
    for name in [n for n in sys.modules if n.partition(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
