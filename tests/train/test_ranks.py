"""Two gloo processes do what one does on the joined batch: with DDP, and with FSDP2."""

import pytest
import torch
from safetensors.torch import load_file

from tests.train import ranks
from vae_fast.train import checkpoint, shard_files
from vae_fast.train.checkpoint import CheckpointError
from vae_fast.train.distributed import ALONE, World
from vae_fast.train.sharded import shard_state

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    path = tmp_path_factory.mktemp("ranks") / "two.safetensors"
    processes = ranks.start(2, "-m", "tests.train.ranks", path)
    assert [p.wait() for p in processes] == [0, 0]
    return path


@pytest.fixture(scope="module")
def two(out):
    return load_file(out)


@pytest.fixture(scope="module")
def one():
    torch.set_num_threads(1)
    return ranks.everything(ALONE, "ddp")


@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_gradients_weights_and_metrics_are_those_of_the_joined_batch(one, two, how):
    """Seven samples over two ranks: uneven shares, and still one mean."""
    names = [name for name in one if name.startswith(("plain", "blocks"))]
    assert len([name for name in names if "gradient" in name]) >= 2 * 3 * 4
    for name in names:
        rtol, atol = (1e-4, 1e-5) if "gradient" in name else (1e-5, 2e-5)
        torch.testing.assert_close(two[f"{how} {name}"], one[name], rtol=rtol, atol=atol, msg=name)
    assert one["plain samples"] == 21 and one["plain norm"] > 0.5  # clipped
    assert not torch.equal(one["plain averaged loss"].double(), one["plain loss"])


@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_bf16_follows(one, two, how):
    for name in ("bf16 loss", "bf16 norm"):
        assert two[f"{how} {name}"].item() == pytest.approx(one[name].item(), rel=0.02)


@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_free_bits_hold_the_joined_batch(one, two, how):
    names = [name for name in one if name.startswith("floored")]
    for name in names:
        torch.testing.assert_close(two[f"{how} {name}"], one[name], rtol=1e-4, atol=1e-6, msg=name)
    assert len(names) >= 5 and any(one[name].abs().max() > 0 for name in names[:-1])


@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_latent_statistics_are_those_of_all_samples(one, two, how):
    for name in ("active_units", "kl_per_dimension"):
        torch.testing.assert_close(two[f"{how} {name}"], one[name], rtol=0, atol=1e-4)
    assert 0 < one["kl_per_dimension"].min()


def test_noise_differs_between_ranks(two):
    first, second = two["noise"]
    assert not torch.isclose(first, second).any()


# --- a checkpoint of two ranks, in one process ----------------------------------------------------


def test_a_sharded_checkpoint_is_read_whole_and_has_no_pickle(out, two):
    folder = out.with_suffix("") / "00000003"
    files = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    assert len(files) == 5 and sum("shards/" in name for name in files) == 2
    assert all(name.endswith((".safetensors", ".json")) for name in files)
    found = checkpoint.load(folder)
    assert found.state["rank"] == 0
    for name, value in found.weights.items():
        assert torch.equal(value, two[f"saved weight {name}"])
    for name, value in found.state["step"]["average"].items():
        assert torch.equal(value, two[f"saved average {name}"])
    moments = found.state["step"]["updates"][0]["optimizer"]["state"]
    for number, entry in moments.items():
        assert torch.equal(entry["exp_avg"], two[f"saved moment {number}"])
    assert len(moments) >= 4


def test_a_damaged_shard_is_named(out, tmp_path):
    import shutil

    folder = tmp_path / "00000003"
    shutil.copytree(out.with_suffix("") / "00000003", folder)
    shard = sorted((folder / "shards").iterdir())[1]
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{shard.name} is truncated or damaged"):
        checkpoint.load(folder)
    shard.unlink()
    with pytest.raises(CheckpointError, match=f"not whole: it has no shards/{shard.name}"):
        checkpoint.load(folder)


def test_only_tensors_are_unpacked_and_nothing_is_unpickled(out, monkeypatch):
    """DCP's readers unpickle in two places: none of them is reached."""
    import pickle

    def refuse(*_, **__):
        raise AssertionError("a pickle is loaded")

    monkeypatch.setattr(torch, "load", refuse)
    monkeypatch.setattr(pickle, "load", refuse)
    monkeypatch.setattr(pickle, "Unpickler", refuse)
    assert shard_files.read(out.with_suffix("") / "00000003" / "shards")
    monkeypatch.undo()


def test_state_of_a_whole_optimizer_is_left_alone_without_shards():
    state = {"state": {0: {"m": torch.ones(2)}}, "param_groups": []}
    assert shard_state(state, [torch.zeros(2)])["state"][0]["m"] is state["state"][0]["m"]
    assert World(1).size == 1
