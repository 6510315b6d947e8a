import pytest
import torch

from vae_fast.train import OptimizerConfig, TrainConfig, Trainer
from vae_fast.train.loss_scale import INTERVAL, START, LossScale
from vae_fast.train.update import Update

CPU = torch.device("cpu")


def make(precision, **optimizer):
    parameter = torch.nn.Parameter(torch.full((4,), 1.5))
    config = TrainConfig(lr=0.1, precision=precision, optimizer=OptimizerConfig(**optimizer))
    return parameter, Update([parameter], config, CPU)


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("optimizer", [{}, {"clip_norm": 1.0}, {"name": "torch.optim:SGD"}])
def test_a_scaled_loss_makes_the_same_update(optimizer, on_device):
    plain, plain_update = make("fp32", **optimizer)
    scaled, scaled_update = make("fp16", **optimizer)
    scaled_update.guard.decides_on_device = on_device
    for _ in range(3):
        assert not plain_update(plain.square().sum())
        assert not scaled_update(scaled.square().sum())
    assert torch.allclose(plain, scaled, rtol=1e-6)  # a power of two
    norms = (plain_update.guard.read()["grad_norm"], scaled_update.guard.read()["grad_norm"])
    assert norms[0] == pytest.approx(norms[1])


def test_overflow_is_skipped_and_halves_the_scale_until_it_fits():
    parameter, update = make("fp16")
    assert not update((parameter * 1e10).sum())
    skipped = [bool(update((parameter * 1e18).sum())) for _ in range(30)]
    assert skipped[0] is True
    assert skipped[-1] is False
    halvings = skipped.count(True)
    assert update.scale.value == START / 2**halvings
    assert torch.isfinite(parameter).all()


def test_the_scale_doubles_after_many_good_steps_and_is_saved():
    scale, other = LossScale(CPU), LossScale(CPU)
    for _ in range(INTERVAL - 1):
        scale.update(torch.tensor(False))
    assert scale.value == START
    other.load_state_dict({k: v.clone() for k, v in scale.state_dict().items()})
    other.update(torch.tensor(False))
    assert other.value == 2 * START


def test_fp16_on_the_cpu_is_refused_with_a_remedy():
    with pytest.raises(ValueError, match="fp16 needs a GPU.*Use bf16, or fp32"):
        TrainConfig(precision="fp16", device="cpu").check()


def test_compiled_networks_train_as_eager_ones(config, clothes, monkeypatch):
    compiled = []
    monkeypatch.setattr(
        torch.nn.Module,
        "compile",
        lambda self: (
            compiled.append(type(self).__name__)
            or setattr(self, "_compiled_call_impl", torch.compile(self._call_impl, backend="eager"))
        ),
    )
    config.epochs = 1
    losses = []
    for compile_ in (False, True):
        config.compile, config.out = compile_, f"{config.out}{compile_}"
        trainer = Trainer(config, train_data=clothes[0][:300], val_data=clothes[1][:100])
        losses.append(trainer.fit().loss)
    assert compiled == ["MLP", "MLP"]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
