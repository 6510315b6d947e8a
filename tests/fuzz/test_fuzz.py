"""The short form of ``make fuzz``, and that the fuzzer sees what is wrong."""

import pytest
import torch

import vae_fast
from tests.conftest import NATIVE
from tests.fuzz import calls, check, files

SEED = 5  # Fixed, so that a failure comes from a change of the code. `make fuzz` draws a new one.


def test_every_public_name_has_a_generator():
    assert not calls.without_generator(), (
        "write a generator of its arguments in tests/fuzz/calls.py for each of vae_fast.__all__"
    )


def test_calls_against_float64():
    found = check.run(SEED, 2000)
    assert not found, "\n\n".join(map(str, found[:5]))


def test_damaged_files(capsys, recwarn):
    pytest.importorskip("safetensors")
    pytest.importorskip("jsonargparse")
    found = files.run(SEED, 240)
    assert not found, "\n\n".join(map(str, found[:5]))


FAULTS = {
    "reparameterize": lambda z: z + 0.01,
    "gaussian_kl": lambda kl: kl * 1.001,
    "gather_batch": lambda rows: rows.roll(1, 0),
    "bernoulli_nll": lambda nll: nll.float().bfloat16(),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found_and_reported_as_code_to_paste(name, monkeypatch):
    right = getattr(vae_fast, name)

    def faulty(*arguments, **options):
        return FAULTS[name](right(*arguments, **options))

    monkeypatch.setattr(vae_fast, name, faulty)
    seed = next(s for s in range(60) if _fails(name, s))
    with pytest.raises(check.Failure, match=f"python -m tests.fuzz {name} {seed}\nvae_fast.{name}"):
        check.check(name, seed)
    monkeypatch.undo()
    check.check(name, seed)


def _fails(name, seed):
    try:
        check.check(name, seed)
    except check.Failure:
        return True
    return False


def test_a_wrong_gradient_is_found(monkeypatch):
    right = vae_fast.gaussian_kl

    def faulty(mu, *others, **options):
        return right(mu * 2 - mu.detach(), *others, **options)

    monkeypatch.setattr(vae_fast, "gaussian_kl", faulty)
    assert sum(_fails("gaussian_kl", seed) for seed in range(20)) > 12


@pytest.mark.skipif(not NATIVE, reason="the kernels are not built")
def test_an_ignored_layout_is_found(monkeypatch):
    right = vae_fast.gaussian_kl

    def faulty(mu, logvar, *others, **options):
        flat = mu.as_strided(mu.shape, torch.empty(mu.shape).stride())
        return right(flat, logvar, *others, **options)

    monkeypatch.setattr(vae_fast, "gaussian_kl", faulty)
    assert any(_fails("gaussian_kl", seed) for seed in range(60))


def test_a_reader_that_trips_is_found(monkeypatch):
    def trips(path):
        raise KeyError(str(path))

    monkeypatch.setitem(files.READERS, "file.npy", (files._npy, trips))
    with pytest.raises(check.Failure, match="KeyError.*\nimages.npy damaged; again: python -m"):
        files.check("file.npy", 1)
