"""Subnormal moments become zero, under a script's own optimizer and the trainer's."""

import copy
import logging

import pytest
import torch

import vae_fast
from vae_fast import moments
from vae_fast.moments import FLUSHED_EVERY
from vae_fast.train import OptimizerConfig, TrainConfig
from vae_fast.train.update import Update

SMALL = 1e-39


def with_small_moments(model, kind=torch.optim.Adam, **options):
    """An optimizer whose first moments are subnormal, a step before they are flushed."""
    optimizer = kind(model.parameters(), **options)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    for _ in range(FLUSHED_EVERY - 1):
        optimizer.step()
    for state in optimizer.state.values():
        state["exp_avg"].fill_(SMALL)
    return optimizer


def largest(optimizer):
    return max(state["exp_avg"].abs().max().item() for state in optimizer.state.values())


def test_moments_of_the_drop_in_model_are_flushed_and_nothing_else(monkeypatch, caplog):
    torch.manual_seed(0)
    model = vae_fast.VAE(6, 5, 2)
    copied = torch.nn.ModuleList([copy.deepcopy(model.encoder), copy.deepcopy(model.decoder)])
    monkeypatch.setitem(moments._state, "has_said", False)
    with caplog.at_level(logging.INFO, "vae_fast"):
        for kind in (torch.optim.Adam, torch.optim.AdamW):
            ours, theirs = with_small_moments(model, kind), with_small_moments(copied, kind)
            for optimizer in (ours, theirs):
                optimizer.step()
            assert largest(ours) == 0.0 < largest(theirs)
            assert all(map(torch.equal, model.parameters(), copied.parameters()))
            exact = with_small_moments(model, kind, eps=0.0)
            exact.step()  # without an eps they decide the step
            assert largest(exact) > 0.0
            model.load_state_dict(dict(zip(model.state_dict(), copied.parameters(), strict=True)))
    assert [r.getMessage() for r in caplog.records].count(
        "Subnormal moments of the optimizer become zero every 32 steps"
    ) == 1
    ours = with_small_moments(model)
    for state in ours.state.values():
        state["exp_avg"].fill_(1e-37)
    ours.step()
    assert largest(ours) == pytest.approx(0.9e-37)


def test_other_optimizers_and_dtypes_keep_their_moments_and_copies_are_flushed():
    model = vae_fast.VAE(6, 5, 2)
    copied = copy.deepcopy(model)
    ours = with_small_moments(copied)
    ours.step()
    assert largest(ours) == 0.0
    # Adafactor's eps is a pair.
    adafactor = torch.optim.Adafactor(model.parameters())
    for _ in range(FLUSHED_EVERY):
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        adafactor.step()
    # 1e-5 is subnormal in float16, and large beside an eps of 1e-8.
    half = with_small_moments(model.half())
    for state in half.state.values():
        state["exp_avg"].fill_(1e-5)
    half.step()
    assert largest(half) == pytest.approx(0.9e-5, rel=0.02)


def test_the_trainer_flushes_moments_outside_the_flat_buffer():
    parameters = [torch.nn.Parameter(torch.ones(4)), torch.nn.Parameter(torch.ones(3))]
    config = TrainConfig(optimizer=OptimizerConfig())
    update = Update(parameters, config, torch.device("cpu"), is_distributed=True)
    assert update.flat is None
    for number in range(1, FLUSHED_EVERY + 1):
        update(sum((p * 0.0).sum() for p in parameters))
        if number == FLUSHED_EVERY - 1:
            for p in parameters:
                update.optimizer.state[p]["exp_avg"].fill_(SMALL)
    assert largest(update.optimizer) == 0.0


def test_between_flushes_a_step_reads_one_count(monkeypatch):
    """Also where the parameter that led gets no more gradients."""
    model = vae_fast.VAE(6, 5, 2)
    optimizer = torch.optim.Adam(model.parameters())
    first, *others = model.parameters()
    reads, steps_of = [], moments._steps_of
    monkeypatch.setattr(moments, "_steps_of", lambda *a: reads.append(a) or steps_of(*a))
    monkeypatch.setattr(moments, "_parameters_watched", lambda: flushed.append(1) or set(others))
    flushed = []
    for step in range(1, 2 * FLUSHED_EVERY + 1):
        for p in others if step > 5 else (first, *others):
            p.grad = torch.ones_like(p)
        optimizer.step()
        optimizer.zero_grad()
        assert len(flushed) == step // FLUSHED_EVERY
    assert len(reads) < 2 * FLUSHED_EVERY + 30


@pytest.mark.slow
def test_a_compiled_step_flushes():
    model = vae_fast.VAE(6, 5, 2)
    optimizer = with_small_moments(model)
    torch.compile(lambda: optimizer.step(), backend="eager")()
    assert largest(optimizer) == 0.0
