"""An epoch's small last batch takes a step as much shorter as it is smaller, in every runner."""

import pytest
import torch

import vae_fast
from tests.conftest import NATIVE
from tests.train import small
from tests.train.replay import Tape
from vae_fast.models import build
from vae_fast.train import OptimizerConfig, TrainConfig
from vae_fast.train.captured import WARM_UP, CapturedStep
from vae_fast.train.distributed import World
from vae_fast.train.merged import merged
from vae_fast.train.runners import Eager
from vae_fast.train.step import Step
from vae_fast.train.update import Update

CPU = torch.device("cpu")
BATCHES = WARM_UP + 5
RUNNERS = {
    "eager": {},
    "native": {},
    "recorded": {},
    "graph": {},
    "merged graph": {},
    "eager, in parts": {"accumulate": 3},
    "eager, SGD": {"name": "torch.optim:SGD", "args": {"momentum": 0.9, "dampening": 0.9}},
    "eager, two phases": {"model": "aae"},
}


def make(name, clip_norm):
    model = RUNNERS[name].get("model", "vae")
    optimizer = {k: v for k, v in RUNNERS[name].items() if k in ("name", "args")}
    config = TrainConfig(
        model=model,
        lr=0.01,
        runner=name.partition(",")[0] if "graph" not in name else "eager",
        accumulate=RUNNERS[name].get("accumulate", 1),
        optimizer=OptimizerConfig(clip_norm=clip_norm, **optimizer),
    )
    torch.manual_seed(0)
    step = Step(build(model, (1, 6, 6), latent_dim=3), config, CPU, World(), 100)
    if "graph" in name:
        step.schedule_values.on_device(CPU)
        step.updates[0].guard.decides_on_device = True
        step.runner = Eager(step)
        few = (merged(step),) if "merged" in name else ()
        step.runner = CapturedStep(step.take, Tape(), step.model, *few)
    return step


def moments(step):
    """The first moments, or SGD's momentum, of the first phase: the next ones see its result."""
    optimizer = step.updates[0].optimizer
    states = getattr(optimizer, "torch_optimizer", optimizer).state.values()
    found = [s["exp_avg"] if "exp_avg" in s else s["momentum_buffer"] for s in states]
    return torch.cat([t.flatten().clone() for t in found])


def flat(step):
    return torch.cat([p.detach().flatten().clone() for p in step.phases[0].parameters])


@pytest.mark.filterwarnings("ignore:a batch of shape")
@pytest.mark.parametrize("clip_norm", [0.0, 5.0])
@pytest.mark.parametrize("name", RUNNERS)
def test_a_small_last_batch_counts_by_its_samples(name, clip_norm):
    if not NATIVE and name in ("native", "merged graph"):
        pytest.skip("it is made of the native ops")
    whole, share = {}, small.batches([3])[0]
    with vae_fast.set_backend("reference" if name == "graph" else "auto"):
        for part in (1.0, 0.375):
            step = make(name, clip_norm)
            small.train(step, [8] * BATCHES)
            assert step.runner.name == name.split(" ")[-1 if "graph" in name else 0].strip(",")
            before, weights = moments(step), flat(step)
            torch.manual_seed(7)
            step(share._replace(part=part), BATCHES)
            changed = moments(step) - 0.9 * before
            moved = (flat(step) - weights).norm()
            whole[part] = changed, moved, step.meter.read(), step.read_guards()
            if "graph" in name:
                assert step.runner.is_captured and step.runner._graph.replays == BATCHES - WARM_UP
    (one, far, *shown), (other, less, *as_shown) = whole.values()
    assert one.norm() > 0
    assert (other - 0.375 * one).norm() <= 1e-4 * one.norm()
    # SGD's learning rate stays; the momentum of earlier steps moves the weights as far.
    assert less > 0.7 * far if "SGD" in name else 0.2 * far < less < 0.45 * far
    # Loss and norm are those of the batch's mean.
    if name != "eager, two phases":
        assert torch.utils._pytree.tree_map(pytest.approx, as_shown) == shown
        assert clip_norm == 0 or shown[1]["grad_norm"] > clip_norm


def test_a_run_that_goes_on_with_the_last_batch_captures_whole_ones():
    step = make("graph", 0.0)
    with vae_fast.set_backend("reference"):
        with pytest.warns(UserWarning, match="for whole ones"):
            step(small.batches([3])[0]._replace(part=0.375), 0)
        small.train(step, [8] * BATCHES)
    assert step.runner._graph.replays == BATCHES - WARM_UP


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.SGD])
def test_the_shorter_step_is_torchs_with_a_smaller_gradient_and_learning_rate(kind):
    """SGD's with a smaller gradient alone."""
    config = TrainConfig(lr=0.1, optimizer=OptimizerConfig(name=f"torch.optim:{kind.__name__}"))
    mine, theirs = (torch.nn.Parameter(torch.ones(4)) for _ in range(2))
    update = Update([mine], config, CPU)
    optimizer = kind([theirs], lr=0.1)
    for part in (1.0, 1.0, 0.25, 1.0):
        update((mine * torch.arange(4.0)).sum(), part=part)
        theirs.grad = part * torch.arange(4.0)
        optimizer.param_groups[0]["lr"] = 0.1 * (part if kind is torch.optim.Adam else 1.0)
        optimizer.step()
    assert torch.allclose(mine, theirs, atol=1e-6)
    assert update.optimizer.param_groups[0]["lr"] == 0.1
