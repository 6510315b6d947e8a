"""vae_fast.lightning: what Lightning's loop makes of a model is what a loop by hand makes of it."""

import copy
import logging

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

lightning = pytest.importorskip(
    "lightning", reason="lightning is not installed: pip install lightning"
)

from vae_fast.lightning import VAEModule
from vae_fast.models import build
from vae_fast.train.config import ObjectiveConfig, OptimizerConfig
from vae_fast.train.schedules import lr_at

X = torch.randint(256, (24, 1, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
Y = torch.arange(24) % 3

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def quiet():
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


def loader(*tensors):
    # With a generator of its own, it draws nothing from the one that the noise comes from.
    return DataLoader(TensorDataset(*tensors), batch_size=8, generator=torch.Generator())


def model_of(name, **options):
    torch.manual_seed(0)
    return build(name, (1, 6, 6), latent_dim=2, network_options={"hidden": [8]}, **options)


def fit(module, train, val=None, epochs=2, **options):
    options = {"logger": False, "enable_checkpointing": False} | options
    trainer = lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", enable_progress_bar=False, num_sanity_val_steps=0,
        enable_model_summary=False, **options,
    )  # fmt: skip
    torch.manual_seed(5)
    trainer.fit(module, train, val)
    return trainer


def same(model, other):
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_a_fit_is_a_loop_by_hand():
    """Schedules of beta and of the learning rate, groups, accumulated gradients and clipping."""
    own = OptimizerConfig(
        name="adamw", args={"weight_decay": 0.1}, warmup_steps=2, decay="cosine",
        groups=[{"parameters": "encoder.*", "lr": 0.1}],
    )  # fmt: skip
    objective = ObjectiveConfig(beta=2.0, schedule="linear", period=1.5, free_bits=0.01)
    module = VAEModule(model_of("vae"), lr=0.01, objective=objective, optimizer=own)
    by_hand = copy.deepcopy(module.model)
    trainer = fit(
        module, loader(X), loader(X), epochs=4, accumulate_grad_batches=3, gradient_clip_val=1.0
    )
    encoder = [p for n, p in by_hand.named_parameters() if n.startswith("encoder.")]
    rest = [p for n, p in by_hand.named_parameters() if not n.startswith("encoder.")]
    optimizer = torch.optim.AdamW(
        [{"params": encoder}, {"params": rest}], lr=0.01, weight_decay=0.1, fused=True
    )
    torch.manual_seed(5)
    for step in range(4):
        for group, scale in zip(optimizer.param_groups, (0.1, 1.0), strict=True):
            group["lr"] = scale * lr_at(own, 0.01, step, 4)
        beta = 2.0 * min(1.0, step / 1.5)
        for part in X.split(8):
            (by_hand.loss(part, beta=beta, free_bits=0.01).loss / 3).backward()
        torch.nn.utils.clip_grad_norm_(by_hand.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():  # validation draws as well
            val = [by_hand.loss(part, beta=2.0, free_bits=0.01) for part in X.split(8)]
    same(module.model, by_hand)
    for name in ("loss", "recon", "kl"):
        mean = sum(getattr(t, name) for t in val) / 3
        assert trainer.callback_metrics[f"val/{name}"].item() == pytest.approx(
            mean.item(), rel=1e-5
        )
    assert trainer.callback_metrics["train/beta"] == 2.0
    assert torch.equal(module(X), module.model.reconstruct(X))


def test_several_losses_in_turn_and_labels():
    own = OptimizerConfig(
        phases={"discriminator": {"lr": 3.0, "betas": [0.5, 0.9]}}, warmup_steps=3
    )
    module = VAEModule(model_of("aae", discriminator_hidden=[8]), lr=0.01, optimizer=own)
    by_hand = copy.deepcopy(module.model)
    trainer = fit(module, loader(X))
    assert not module.automatic_optimization
    assert trainer.global_step == 18  # six batches, three optimizers
    optimizers = []
    for phase in by_hand.phases():
        mine = phase.name == "discriminator"
        betas = (0.5, 0.9) if mine else (0.9, 0.999)
        lr = 0.01 * phase.lr * (3.0 if mine else 1.0)
        made = torch.optim.Adam(phase.parameters, lr=lr, betas=betas, fused=True)
        optimizers.append((phase.name, lr, made))
    torch.manual_seed(5)
    for number in range(6):
        part = X.split(8)[number % 3]
        for name, lr, optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = lr * min(1.0, (number + 1) / 3)
            by_hand.zero_grad()
            by_hand.loss(part, phase=name).loss.backward()
            optimizer.step()
    same(module.model, by_hand)
    labelled = VAEModule(model_of("cvae"), lr=0.01)
    before = copy.deepcopy(labelled.model)
    fit(labelled, loader(X, Y), epochs=1)
    assert not all(map(torch.equal, labelled.model.parameters(), before.parameters()))
    with pytest.raises(ValueError, match="conditioned on labels: batches have to be"):
        fit(labelled, loader(X), epochs=1)


def test_a_phase_that_is_not_due_and_batches_in_parts():
    module = VAEModule(
        model_of(
            "vae", objective="latent-diffusion", objective_options={"start": 4, "channels": 4}
        ),
        lr=0.01,
    )
    trainer = fit(module, loader(X))
    steps = {int(s["step"]) for s in trainer.optimizers[1].state.values()}
    assert trainer.global_step == 12 and steps == {3}  # of 6; the fourth is its first
    module = VAEModule(model_of("vae", objective="capacity"), lr=0.01)
    trainer = fit(module, loader(X), accumulate_grad_batches=2)  # three batches an epoch
    assert trainer.global_step == 4 and module.model.objective.steps == 4


def test_a_phase_that_is_not_due_under_a_loss_scaler():
    """The scaler refuses to step an optimizer without gradients."""
    from lightning.pytorch.plugins.precision import MixedPrecision

    module = VAEModule(
        model_of(
            "vae", objective="latent-diffusion", objective_options={"start": 4, "channels": 4}
        ),
        lr=0.01,
    )
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    trainer = fit(module, loader(X), plugins=[MixedPrecision("16-mixed", "cpu", scaler)])
    assert {int(s["step"]) for s in trainer.optimizers[1].state.values()} == {3}


def test_checkpoints_and_what_is_lightnings(tmp_path):
    from lightning.pytorch.callbacks import ModelCheckpoint

    kept = ModelCheckpoint(dirpath=tmp_path, monitor="val/loss")
    module = VAEModule(model_of("vae"), lr=0.01)
    fit(module, loader(X), loader(X), epochs=2, enable_checkpointing=True, callbacks=[kept])
    found = VAEModule.load_from_checkpoint(kept.best_model_path, model=model_of("vae"))
    same(found.model, module.model)
    more = VAEModule(model_of("vae"), lr=0.01)
    trainer = fit(more, loader(X), loader(X), epochs=2)
    trainer.fit_loop.max_epochs = 3
    trainer.fit(more, loader(X), loader(X), ckpt_path=kept.best_model_path)
    assert trainer.global_step == 9
    for wrong in ({"clip_norm": 1.0}, {"scheduler": "StepLR", "scheduler_args": {"step_size": 1}}):
        with pytest.raises(ValueError, match="with Lightning use"):
            VAEModule(model_of("vae"), optimizer=OptimizerConfig(**wrong))
    wrong = VAEModule(model_of("vae"), optimizer=OptimizerConfig(phases={"critic": {"lr": 2.0}}))
    with pytest.raises(ValueError, match="has one loss, and no phases"):
        fit(wrong, loader(X), epochs=1)
