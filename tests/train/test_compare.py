import pytest
import torch

import vae_fast
from vae_fast.train import Trainer
from vae_fast.train.compare import COMPILED, IN_MEMORY, TUTORIAL, Comparison, compare

native = pytest.mark.skipif(
    vae_fast.info()["native cpu"] != "yes", reason="native kernels are not built"
)


@native
@pytest.mark.filterwarnings("error::UserWarning")  # such as a recording disturbed by other steps
@pytest.mark.parametrize(
    ("model", "names"),
    [
        ("vae", [TUTORIAL, IN_MEMORY, "vae_fast (native steps)"]),
        ("iwae", [IN_MEMORY, "vae_fast (recorded steps)"]),
    ],
)
def test_contenders_train_alike_and_the_run_is_unchanged(config, clothes, model, names):
    config.epochs, config.model = 1, model
    trainer = Trainer(config, train_data=clothes[0], val_data=clothes[1])
    trainer.fit()
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    noise = torch.get_rng_state()
    found = compare(trainer, rounds=2, steps=12, compiled=False)
    assert list(found.samples_per_second) == list(found.loss) == names
    for name in names:
        assert found.samples_per_second[name] > 0
        assert found.loss[name] == pytest.approx(found.loss[names[-1]], rel=0.02)
    assert torch.equal(noise, torch.get_rng_state())
    assert 0 < found.cores < 2 * torch.get_num_threads() + 1
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, before[name])
    assert vae_fast.get_backend() == "auto"
    assert trainer.config.runner == trainer.step.runner.name


def test_words():
    names = (TUTORIAL, IN_MEMORY, "vae_fast (native steps)")
    found = Comparison(
        dict(zip(names, (750.0, 1500.0, 3000.0), strict=True)),
        dict(zip(names, (1.75, 1.5, 1.25), strict=True)),
        40,
        7,
    )
    text = str(found)
    assert "images in memory       1,500 samples/s   1.50 nats" in text
    assert (
        "vae_fast (native steps): 4.00 times the tutorial's loop, "
        "2.00 times plain PyTorch, images in memory"
    ) in text
    for cores, told in ((None, False), (1.7, False), (0.31, True)):
        found.cores = cores
        assert ("Others were using this machine: the loops had 0.31 CPU" in str(found)) == told


@native
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_torch_compile_takes_part(config, clothes):
    config.epochs = 1
    trainer = Trainer(config, train_data=clothes[0], val_data=clothes[1])
    found = compare(trainer, rounds=1, steps=12)
    names = [TUTORIAL, IN_MEMORY, COMPILED, "vae_fast (native steps)"]
    assert list(found.loss) == names and not found.absent
    assert found.loss[COMPILED] == pytest.approx(found.loss[names[-1]], rel=0.02)


@native
def test_a_failing_compiler_is_reported_with_its_reason(config, clothes, monkeypatch):
    def no_compiler(function):
        def call(*_):
            raise RuntimeError("No working C++ compiler found\nand more")

        return call

    monkeypatch.setattr(torch, "compile", no_compiler)
    trainer = Trainer(config, train_data=clothes[0], val_data=clothes[1])
    found = compare(trainer, rounds=1, steps=3)
    assert COMPILED not in found.loss
    reason = "left out, torch.compile does not work here: No working C++ compiler found"
    assert f"  {COMPILED}: {reason}\n" in str(found)
