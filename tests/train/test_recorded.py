import itertools
import random
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from tests.train import small
from tests.train.small import batches, counting
from vae_fast.models import build
from vae_fast.networks.scaling import _rows, scaled
from vae_fast.train import ObjectiveConfig, OptimizerConfig, TrainConfig
from vae_fast.train.distributed import Share, World
from vae_fast.train.python_snapshot import PythonSnapshot
from vae_fast.train.recorded import ATTEMPTS, WARM_UP, RecordedStep
from vae_fast.train.step import Step
from vae_fast.train.tape import record

CPU = torch.device("cpu")
STEPS = 12
PER_EPOCH = 6
# Steps of a kind before the first that is played: the warm-up, two recordings.
BEFORE = WARM_UP + 2


# --- a step --------------------------------------------------------------------------------------


def make(capture, model="vae", objective=None, **options):
    torch.manual_seed(0)
    config = TrainConfig(
        model=model,
        lr=0.01,
        runner="recorded" if capture else "eager",
        objective=objective or ObjectiveConfig(),
        optimizer=OptimizerConfig(clip_norm=20.0, skip_above=5.0),
        epochs=2,
        **{k: v for k, v in options.items() if k != "model_args"},
    )
    sizes = {} if model in ("hvae", "autoencoder-kl") else {"latent_dim": 3}
    made = build(model, (1, 6, 6), **sizes, **options.get("model_args", {}))
    return Step(made, config, CPU, World(), PER_EPOCH)


def train(step, sizes=(8,) * STEPS):
    return small.train(step, sizes)


def assert_same(found, wanted):
    found, wanted = (torch.utils._pytree.tree_leaves(t) for t in (found, wanted))
    for mine, other in zip(found, wanted, strict=True):
        same = torch.equal(mine, other) if isinstance(mine, torch.Tensor) else mine == other
        assert same, (mine, other)


MODELS = {
    "vae": {},
    "ae": {},
    "cvae": {},
    "iwae": {"model_args": {"num_samples": 3}},
    "hvae": {},
    "vrae": {},
    "autoencoder-kl": {"model_args": {"channels": 8, "multipliers": [1, 2], "groups": 2}},
    "hvae, convolutional": {"model_args": {"network": "conv", "width": 8, "z_channels": 2}},
    "ssvae": {},
    "vae, bf16": {"precision": "bf16", "emulate_bf16": True},
    "vae, averaged": {"ema": 0.9},
    "vae, free bits": {"objective": ObjectiveConfig(free_bits=0.01)},
    "vae, Gaussian": {"model_args": {"likelihood": "gaussian"}},
    "vae, norms and dropout": {
        "model_args": {"network_options": {"hidden": [9], "norm": "batch", "dropout": 0.3}}
    },
    "vae, convolutional": {"model_args": {"network": "conv", "network_options": {"channels": [4]}}},
}


@pytest.mark.parametrize("case", MODELS)
def test_replayed_steps_have_the_bits_of_eager_steps(case):
    options = {"model": case.split(",")[0], **MODELS[case]}
    played, taken = make(True, **options), make(False, **options)
    assert_same(train(played), train(taken))
    # The first of the second epoch is recorded again, to compare.
    assert played.runner.played == STEPS - BEFORE - 1, played.runner_is
    assert taken.runner.name == "eager"


def test_batches_of_another_size_have_a_tape_of_their_own():
    sizes = [8, 8, 5] * 8
    played, taken = make(True), make(False)
    assert_same(train(played, sizes), train(taken, sizes))
    assert played.runner.played > STEPS - BEFORE


def test_a_batch_is_a_part_of_a_larger_one():
    together = torch.randint(0, 256, (STEPS * 4, 1, 6, 6), dtype=torch.uint8)
    results = []
    for capture in (True, False):
        step = make(capture)
        torch.manual_seed(1)
        for number, images in enumerate(together.split(4)):
            step(Share(images, None), number)
        results.append(step.model.state_dict())
    assert_same(*results)


@pytest.mark.parametrize(("begin", "called"), [(0, STEPS), (5, STEPS - PER_EPOCH)])
def test_hooks_are_called(begin, called):
    """Hooks that are added while steps are played are called from the next epoch on."""
    step, calls = make(True), []
    for number, share in enumerate(batches([8] * STEPS)):
        if number == begin:
            step.model.encoder.register_forward_hook(lambda *_: calls.append(1))
        step(share, number)
    assert len(calls) == called


def test_steps_are_eager_while_beta_changes():
    objective = ObjectiveConfig(schedule="linear", period=8, unit="steps")
    steps = (8,) * (8 + BEFORE + 3)
    played, taken = make(True, objective=objective), make(False, objective=objective)
    assert_same(train(played, steps), train(taken, steps))
    assert played.runner.played == 3 - 1  # and one of the three begins an epoch


def test_a_loss_that_is_not_finite_is_seen():
    played = make(True)
    train(played)
    before = [p.clone() for p in played.model.parameters()]
    skipped = played.read_guards()["skipped"]
    count = played.runner.played
    with torch.no_grad():
        next(played.model.parameters())[0, 0] = float("nan")
    before = [p.clone() for p in played.model.parameters()]
    played(batches([8])[0], STEPS + 1)
    assert played.runner.played == count + 1
    assert played.read_guards()["skipped"] == skipped + 1
    for p, old in zip(played.model.parameters(), before, strict=True):
        assert torch.equal(p.nan_to_num(7.0), old.nan_to_num(7.0))


def test_phases_and_compiled_networks_are_not_recorded():
    adversarial = make(True, model="aae")
    train(adversarial)
    assert adversarial.runner.name == "eager"
    config = TrainConfig(compile=True, capture=True)
    compiled = Step(build("vae", (1, 6, 6), latent_dim=3), config, CPU, World(), 6)
    assert compiled.runner.name == "eager"


# --- what may be played --------------------------------------------------------------------------


def test_a_tape_contains_only_ops():
    memory, other = torch.arange(4.0), torch.ones(4)

    def work(x):
        y = x.view(2, 2).t().contiguous().view(-1)
        torch.zeros(3).add(1)  # for nothing
        memory.add_(y)
        z = torch.rand(4)
        z[1:3] *= other[:2]
        return (y * memory + z).sum(), y

    x = torch.tensor([1.0, 2.0, 3.0, 4.0])
    torch.manual_seed(3)
    _, tape = record(lambda: work(x), [x])
    x2 = torch.tensor([5.0, 4.0, 2.0, 1.0])
    other.fill_(0.5)
    start, noise = memory.clone(), torch.get_rng_state()
    played = tape.play(x2)
    after = memory.clone()
    memory.copy_(start)
    torch.set_rng_state(noise)
    wanted = work(x2)
    assert_same(played, wanted)
    assert torch.equal(after, memory)
    assert "zeros" not in " ".join(str(call.op) for call in tape.calls)


def test_an_op_may_return_lists_of_tensors_among_its_results(native):
    logits, x = torch.randn(2, 9), torch.rand(2, 9)
    zeros = torch.zeros(2, 3)

    def work(x):
        found = torch.ops.vae_fast.bernoulli_elbo_with_grad(
            [logits], x, zeros, zeros, 1.0, None, 0, 1.0, 1
        )
        return found[0], found[3][0], *x.unbind()

    _, tape = record(lambda: work(x), [x])
    assert not isinstance(tape, str), tape
    other = torch.rand(2, 9)
    assert_same(tape.play(other), work(other))


def test_a_label_out_of_range_is_an_error_when_played_too():
    step = make(True, model="cvae")
    train(step)
    images, labels = batches([8])[0][:2]
    played = step.runner.played
    with pytest.raises(RuntimeError, match="out of range for num_classes=10"):
        step(Share(images, labels + 5), STEPS + 1)
    assert step.runner.played == played + 1


def test_intermediate_tensors_are_freed():
    x = torch.rand(1 << 16)

    class Watched(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.exp()

        @staticmethod
        def backward(ctx, grad):
            return grad

    def work():
        y = Watched.apply(x)
        return ((y + 1).sqrt().sum(),)

    _, tape = record(work, [x])
    source = tape.play.__code__
    seen = [name for name in source.co_varnames if name.startswith("t")]
    assert len(seen) >= 4  # input, exp, add, sqrt, sum
    import dis

    deleted = {i.argval for i in dis.get_instructions(tape.play) if i.opname == "DELETE_FAST"}
    assert deleted == set(seen) - {tape.inputs[0], *tape.outputs}


def again(work, times, recorded=None):
    """The results of repeating the work by a RecordedStep and directly."""
    results = []
    for do in (recorded or RecordedStep(), None):
        torch.manual_seed(0)
        memory, found = torch.zeros(3), []
        for i in range(times):
            x = torch.full((3,), float(i))

            def call(x=x, memory=memory):
                return work(x, memory)

            found.append((do(call, [x]) if do else call())[0].clone())
        results.append((found, memory))
    return results


def test_a_value_that_python_reads_is_not_played():
    def work(x, memory):
        memory.add_(x)
        return (memory * 2 if memory.sum().item() < 30 else memory * 3,)

    recorded = RecordedStep()
    assert_same(*again(work, 12, recorded))
    assert recorded.played == 0
    assert "Python reads" in recorded.why_not


def test_a_value_that_is_always_the_same_may_be_read():
    def work(x, memory):
        one = torch.ones_like(memory.sum())
        return (x * one.item(),)

    recorded = RecordedStep()
    assert_same(*again(work, 12, recorded))
    assert recorded.played == 12 - BEFORE

    def changed(x, memory):
        one = torch.ones_like(memory.sum()).add_(x[0])
        return (x * one.item(),)

    recorded = RecordedStep()
    assert_same(*again(changed, 12, recorded))
    assert recorded.played == 0


def test_work_with_changing_calls_is_not_replayed():
    count = iter(range(1000))
    first = RecordedStep()
    for i in range(12):
        x = torch.full((3,), float(i))
        (y,) = first(lambda x=x: (x * next(count),), [x])
        assert torch.equal(y, x * i)
    assert first.played == 0
    assert "differ" in first.why_not
    assert ATTEMPTS < 12


class Keeping(nn.Module):
    """Keeps things in Python, and returns a tensor that does not depend on them."""

    def __init__(self, keep):
        super().__init__()
        self.part = nn.Identity()
        self.part.steps, self.part.seen = 0, []
        self.part.options = {"inner": SimpleNamespace(value=0.0)}
        self.part.counter = itertools.count()
        self.part.draws = np.random.default_rng(0)
        self.part.register_buffer("total", torch.zeros(3))
        self.keep = keep

    def forward(self, x):
        y = x * 2
        self.keep(self.part, y)
        return y


def attribute(part, y):
    part.steps += 1


def element(part, y):
    part.seen.append(len(part.seen))


def inner(part, y):
    part.options["inner"].value += 0.5


def counter(part, y):
    next(part.counter)


def tensor(part, y):
    part.latest = y.detach()


def buffer(part, y):
    part.total = part.total + y


def drawn_by_numpy(part, y):
    part.draws.random()


def random_of_python(part, y):
    random.random()


def random_of_numpy(part, y):
    np.random.rand()


def module(part, y):
    part.add_module("newest", nn.Identity())


LEFT_IN_PYTHON = {
    attribute: "part.steps", element: "part.seen", inner: "part.options", counter: "part.counter",
    tensor: "part.latest", buffer: "part.total", drawn_by_numpy: "part.draws",
    random_of_python: "Python's random", random_of_numpy: "numpy.random", module: "part.newest",
}  # fmt: skip


@pytest.mark.parametrize("keep", LEFT_IN_PYTHON, ids=lambda f: f.__name__)
def test_work_that_changes_python_state_is_not_replayed(keep):
    model = Keeping(keep)
    recorded = RecordedStep(model)
    for i in range(8):
        x = torch.full((3,), float(i))
        (y,) = recorded(lambda x=x: (model(x),), [x])
        assert torch.equal(y, 2 * x)
    assert recorded.played == 0
    if keep is attribute:
        assert model.part.steps == 8


def the_same(part, y):
    part.steps, part.seen, part.options["inner"].value = 7, [1, float("nan")], 3.0


def in_place(part, y):
    part.total += y
    part.total.add_(1.0)


@pytest.mark.parametrize("keep", [the_same, in_place], ids=lambda f: f.__name__)
def test_equal_python_state_is_allowed(keep):
    model = Keeping(keep)
    recorded = RecordedStep(model)
    total = torch.zeros(3)
    for i in range(8):
        x = torch.full((3,), float(i))
        (y,) = recorded(lambda x=x: (model(x),), [x])
        assert torch.equal(y, 2 * x)
        total += y + 1
    assert recorded.played == 8 - BEFORE, recorded.why_not
    if keep is in_place:
        assert torch.equal(model.part.total, total)


def test_the_reason_names_the_changed_python_state():
    for keep, name in LEFT_IN_PYTHON.items():
        model = Keeping(keep)
        snapshot = PythonSnapshot(model)
        assert snapshot.changed() == ""
        model(torch.ones(3))
        assert snapshot.changed() == name


def test_a_model_that_anneals_by_a_counter_of_its_own():
    """Every fourth step differs: two recordings are equal, but the model's counter shows the
    difference."""
    played, taken = counting(make(True)), counting(make(False))
    assert_same(train(played), train(taken))
    assert played.model.count == STEPS
    assert played.refused == {"recorded": "each step changes count, in Python"}
    assert played.runner.name == "eager"


def test_a_hidden_draw_is_found_by_the_trial():
    """Python state: two recordings are equal, but do not contain everything."""

    def work(x, memory):
        torch.manual_seed(torch.initial_seed() + 1)  # Python state, not an op
        return (x + torch.rand(3),)

    recorded = RecordedStep()
    assert_same(*again(work, 12, recorded))
    assert recorded.played == 0
    assert "does not repeat a step" in recorded.why_not


def test_a_tape_that_fails_is_not_played(monkeypatch):
    def fails(*_):
        torch.rand(3)
        raise RuntimeError("no")

    monkeypatch.setattr("vae_fast.train.tape._compiled", lambda tape: fails)
    recorded = RecordedStep()
    assert_same(*again(lambda x, memory: (memory.add_(x) + torch.rand(3),), 12, recorded))
    assert recorded.played == 0
    assert "does not repeat a step" in recorded.why_not


def test_a_later_change_is_found_by_the_check():
    state = {"power": 2}
    recorded = RecordedStep()

    def step(i, check=False):
        x = torch.full((3,), float(i))
        (y,) = recorded(lambda: (x ** state["power"],), [x], check=check)
        return torch.equal(y, x ** state["power"])

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert all(step(i) for i in range(8))
    state["power"] = 3
    assert not step(9)  # as the documentation says
    with pytest.warns(UserWarning, match="other ops than before.*--capture false"):
        assert step(10, check=True)
    assert all(step(i) for i in range(8))
    assert recorded.why_not == "the model's calls have changed"


def test_constants_made_anew_are_constants_and_drawn_ones_are_not():
    def constant(x, memory):
        return (x * torch.tensor([1.0, 2.0, 3.0]),)

    def drawn(x, memory):
        return (x * torch.tensor([random.random(), 2.0, 3.0]),)

    recorded = RecordedStep()
    assert_same(*again(constant, 12, recorded))
    assert recorded.played == 12 - BEFORE
    recorded = RecordedStep()
    random.seed(0)
    for _ in range(12):
        recorded(lambda: drawn(torch.ones(3), None), [])
    assert recorded.played == 0


def test_in_place_views_and_replaced_memory():
    def turned(x, memory):
        y = torch.stack([x, x + 1]).transpose_(0, 1)
        y.unsqueeze_(0).squeeze_(0)
        memory.add_(y[:, 1])
        return (y.sum(1),)

    recorded = RecordedStep()
    assert_same(*again(turned, 12, recorded))
    assert recorded.played == 12 - BEFORE

    def resized(x, memory):
        return (torch.add(x, 1, out=torch.empty(0)),)

    recorded = RecordedStep()
    assert_same(*again(resized, 12, recorded))
    assert recorded.played == 0
    assert "memory is replaced" in recorded.why_not


def test_gradients_that_autograd_adds_up():
    layer = nn.Linear(4, 4)
    grad = torch.zeros_like(layer.weight)

    def work(x, memory):
        layer.weight.grad = None
        y = layer(layer(x.repeat(2, 2)[:, :4]))
        (y * y).sum().backward()
        grad.copy_(layer.weight.grad)
        return (grad,)

    recorded = RecordedStep()
    assert_same(*again(work, 12, recorded))
    assert recorded.played == 12 - BEFORE


def test_the_default_device_does_not_matter():
    x, memory, recorded = torch.ones(3), torch.zeros(3), RecordedStep()
    image = torch.arange(36, dtype=torch.uint8).view(1, 36)
    _rows.cache_clear()
    with torch.device("meta"):
        for i in range(BEFORE + 2):
            (y,) = recorded(lambda: (memory.add_(x).clone(),), [x])
            assert y.tolist() == [i + 1.0] * 3
        found = scaled(image, torch.float32)
    assert recorded.played == 2
    assert torch.equal(found, image / 255)


@pytest.mark.parametrize("kinds", [3, 30])
def test_few_kinds_are_remembered(kinds):
    recorded = RecordedStep()
    for _ in range(BEFORE + 2):
        for kind in range(kinds):
            x = torch.ones(kind + 1)
            assert torch.equal(recorded(lambda x=x: (x * 2,), [x], kind)[0], x * 2)
    assert recorded.played == (2 * kinds if kinds == 3 else 0)
    assert len(recorded._kinds) == min(kinds, 8)
