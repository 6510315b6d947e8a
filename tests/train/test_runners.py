"""The choice of a run's runner, its reason, and that a run keeps it."""

import copy
import json

import pytest
import torch
import yaml

import vae_fast
from tests.conftest import NATIVE
from tests.train import small
from tests.train.small import batches, counting
from vae_fast.models import build
from vae_fast.train import (
    ObjectiveConfig,
    OptimizerConfig,
    TrainConfig,
    Trainer,
    checkpoint,
    native_runner,
    runners,
)
from vae_fast.train.captured import CapturedStep
from vae_fast.train.config import CheckpointConfig
from vae_fast.train.distributed import World
from vae_fast.train.native import NativeStep
from vae_fast.train.step import Step

if not NATIVE:
    pytest.skip("the CPU library is not built", allow_module_level=True)

CPU = torch.device("cpu")
PER_EPOCH = 6


def make(runner="auto", model="vae", **options):
    torch.manual_seed(0)
    sizes = options.pop("model_args", {})
    config = TrainConfig(model=model, lr=0.01, runner=runner, epochs=3, **options)
    return Step(build(model, (1, 6, 6), latent_dim=3, **sizes), config, CPU, World(), PER_EPOCH)


@pytest.mark.parametrize(
    ("options", "name", "why"),
    [
        ({}, "native", "by the native runner"),
        ({"model": "cvae"}, "native", "native"),
        ({"runner": "recorded"}, "recorded", "by the recorded runner"),
        ({"runner": "eager"}, "eager", "by the eager runner"),
        (
            {"runner": "graph"},
            "native",
            "runner; the graph runner can't take them: it needs a CUDA GPU",
        ),
        ({"capture": False}, "eager", "capture is false"),
        ({"capture": False, "runner": "native"}, "native", "native"),
        ({"compile": True}, "eager", "torch.compile"),
        ({"model": "iwae"}, "recorded", "IWAE is not a VAE, CVAE or AE"),
        ({"model": "aae"}, "eager", "several losses in turn"),
        ({"precision": "bf16", "emulate_bf16": True, "runner": "native"}, "native", "native"),
        ({"objective": ObjectiveConfig(free_bits=0.1)}, "recorded", "free bits"),
        ({"model_args": {"likelihood": "categorical"}}, "recorded", "the likelihood"),
        ({"optimizer": OptimizerConfig(name="torch.optim:SGD")}, "eager", "no fused Adam"),
    ],
)
def test_the_chosen_runner_and_its_reason(options, name, why):
    step = make(**options)
    assert step.runner.name == name
    assert why in step.runner_is


def test_a_users_own_classes_are_recorded_where_that_is_asked_for(monkeypatch):
    """Their Python may depend on a global, a closure or the clock, which a recording cannot see."""

    class Mine(torch.nn.Linear):
        """Its Python is the user's."""

    def made_with(runner, **options):
        step = make(runner, model="iwae", **options)
        step.model.decoder[0].__class__ = Mine
        step.choose_runner()
        return step

    step = made_with("auto")
    assert step.runner.name == "eager"
    assert (
        "the recorded runner can't take them: the class" in step.runner_is
        and "Mine" in step.runner_is
    )
    assert "--capture true" in step.runner_is
    assert made_with("recorded").runner.name == "recorded"
    assert made_with("auto", capture=True).runner.name == "recorded"
    assert made_with("auto", capture=False).runner.name == "eager"
    # A CUDA graph sees as little.
    monkeypatch.setattr(runners, "CudaGraph", lambda device: None)
    step.device = torch.device("cuda")
    for given, is_graph in ((None, False), (True, True)):
        step.config.capture = given
        assert isinstance(runners._graph(step), CapturedStep) == is_graph


def test_the_reference_backend_has_no_native_step():
    with vae_fast.set_backend("reference"):
        assert "the backend is 'reference'" in make().runner_is
    step = make()
    with vae_fast.set_backend("reference"):  # after it was chosen
        found = small.train(step, [8] * 3)
        wanted = small.train(make("eager"), [8] * 3)
    assert step.refused == {"native": "the backend is 'reference'"}
    assert all(map(torch.equal, found[1].values(), wanted[1].values()))


def trained(step, steps=2 * PER_EPOCH):
    return small.train(step, [8] * steps)[1:]


@pytest.mark.parametrize("model", ["vae", "ae", "cvae"])
def test_native_steps_follow_the_eager_ones(model):
    """Schedules, clipping, the guard, the moving average, metrics, and the same noise."""
    options = {
        "ema": 0.9,
        "objective": ObjectiveConfig(schedule="linear", period=9, unit="steps"),
        "optimizer": OptimizerConfig(
            name="adamw", warmup_steps=4, decay="cosine", clip_norm=2.0, skip_above=5.0,
            args={"eps": 1e-3},
        ),
    }  # fmt: skip
    native, eager = make("native", model, **options), make("eager", model, **options)
    found, wanted = trained(native), trained(eager)
    assert native.runner.taken == 2 * PER_EPOCH and not native.refused
    for one, other in (
        (found[0], wanted[0]),
        (native.average.state_dict(), eager.average.state_dict()),
    ):
        for key, value in other.items():
            assert torch.allclose(one[key], value, rtol=1e-4, atol=2e-5), key
    assert found[1][0] == pytest.approx(wanted[1][0], rel=1e-5)
    assert found[1][1] == wanted[1][1]
    assert found[2] == pytest.approx(wanted[2], rel=1e-4)
    usual = [step.updates[0].guard._usual for step in (native, eager)]
    assert torch.allclose(*usual, rtol=1e-4)
    assert torch.equal(found[3], wanted[3])


def test_native_steps_in_bf16_follow_the_eager_ones_as_far_as_bf16_tells(monkeypatch):
    monkeypatch.setattr(native_runner, "has_tiles", lambda: True)
    options = {"precision": "bf16", "emulate_bf16": True}
    assert "AMX" in make(**options).runner_is
    native, eager, whole = make("native", **options), make("eager", **options), make("eager")
    found, wanted, exact = trained(native), trained(eager), trained(whole)
    assert native.runner.taken == 2 * PER_EPOCH and not native.refused
    assert found[1][0] == pytest.approx(wanted[1][0], rel=3e-3)
    for key, value in wanted[0].items():
        mine, theirs = ((w - exact[0][key]).norm() for w in (found[0][key], value))
        assert mine <= 1.5 * theirs + 1e-5, key


def test_a_native_step_that_is_not_finite_is_skipped():
    step = make("native")
    small.train(step, [8] * 3)
    with torch.no_grad():
        step.model.decoder[0].bias[0] = torch.inf
    before = {k: v.clone() for k, v in step.model.state_dict().items()}
    for number in (3, PER_EPOCH):  # and where it is compared with the eager step
        step(batches([8])[0], number)
    assert not step.refused
    assert all(torch.equal(v, before[k]) for k, v in step.model.state_dict().items())
    assert step.read_guards()["skipped"] == 2
    assert step.consecutive_not_finite == 2


def _wrong_terms(step, terms, update):
    return terms._replace(kl=terms.kl + 0.1)


def _wrong_gradient(step, terms, update):
    step.optimizer.flat._gradients[1].mul_(1.1)
    return terms


def _wrong_update(step, terms, update):
    if update:
        step.optimizer._buffers["exp_avg_sq"].mul_(1.01)
    return terms


def _breakable(monkeypatch, wrong):
    """Makes the native step of an object wrong."""
    right, broken = NativeStep.step, [None]

    def step_of(self, *args, update=True, **options):
        terms = right(self, *args, update=update, **options)
        return wrong(self, terms, update) if broken[0] == self else terms

    monkeypatch.setattr(NativeStep, "step", step_of)
    return broken


def _same(*steps):
    states = [
        torch.utils._pytree.tree_leaves(
            [s.model.state_dict(), s.state_dict()["updates"], s.average.state_dict()]
        )
        for s in steps
    ]
    return all(
        torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
        for one, other in zip(*states, strict=True)
    )


def _take(step, number):
    torch.manual_seed(number)
    step(batches([8])[0], number)


@pytest.mark.parametrize("wrong", [_wrong_terms, _wrong_gradient, _wrong_update])
def test_a_native_step_that_keeps_differing_is_replaced_by_the_recorded_one(monkeypatch, wrong):
    """The next epoch's first step finds it. That one and the next two have the eager step's bits."""
    broken = _breakable(monkeypatch, wrong)
    runs = make("native", ema=0.9), make("native", ema=0.9)
    for step in runs:
        small.train(step, [8] * PER_EPOCH)
    runs[1].refused["native"] = "it is left here"
    runs[1].choose_runner()
    broken[0] = runs[0].runner._native
    for number in range(PER_EPOCH, PER_EPOCH + 2):
        for step in runs:
            _take(step, number)
        assert runs[0].runner.name == "native" and _same(*runs)
    with pytest.warns(
        UserWarning, match="3 steps in a row the native step's .* differed from the eager"
    ):
        _take(runs[0], PER_EPOCH + 2)
    _take(runs[1], PER_EPOCH + 2)
    assert "differed from the eager step" in runs[0].runner_is and runs[0].runner.name == "recorded"
    assert _same(*runs)


def test_a_native_step_that_differs_once_or_twice_is_kept(monkeypatch):
    """As if one ReLU's input were zero up to rounding. A run resumed in between has the same bits,
    because it compares the same steps."""
    broken = _breakable(monkeypatch, _wrong_gradient)
    run, again = make("native", ema=0.9), make("native", ema=0.9)
    small.train(run, [8] * PER_EPOCH)
    native = run.runner._native
    for number, is_wrong in enumerate((True, True, False, False, True, False), PER_EPOCH):
        taken, broken[0] = run.runner.taken, native if is_wrong else None
        _take(run, number)
        # The fifth is not compared.
        assert run.runner.taken == taken + (not is_wrong or number == PER_EPOCH + 4)
        assert run.runner is not None and not run.refused
        if number == PER_EPOCH:  # resumed, with one that differed
            again.load_state_dict(copy.deepcopy(run.state_dict()))
            again.model.load_state_dict(run.model.state_dict())
    assert run.checks["differed"] == 0

    native = again.runner._native
    for number, is_wrong in enumerate((True, False, False, True, False), PER_EPOCH + 1):
        broken[0] = native if is_wrong else None
        if number == PER_EPOCH + 4:  # and where no step is compared
            third = make("native", ema=0.9)
            third.load_state_dict(copy.deepcopy(again.state_dict()))
            third.model.load_state_dict(again.model.state_dict())
            again, native = third, third.runner._native
            broken[0] = native
        _take(again, number)
    assert _same(run, again)


def test_a_comparison_waits_for_no_other_thread(monkeypatch, threads):
    """Torch's threads wait for one another, which on a busy machine takes them milliseconds each time."""
    threads(2)
    step, seen = make("native", ema=0.9), []
    eager = step.differentiate
    monkeypatch.setattr(
        step, "differentiate", lambda *args: [seen.append(torch.get_num_threads()), eager(*args)][1]
    )
    small.train(step, [8] * (PER_EPOCH + 1))
    assert seen == [1, 1] and torch.get_num_threads() == 2 and step.runner.taken == PER_EPOCH + 1


def test_a_change_of_the_model_is_detected_at_the_next_epoch():
    hooked, calls, counted = make("native"), [], make("native")
    small.train(hooked, [8] * 2)
    small.train(counted, [8] * 2)
    hooked.model.encoder.register_forward_hook(lambda *_: calls.append(1))
    counting(counted)
    for step in (hooked, counted):
        for number in range(PER_EPOCH, PER_EPOCH + 2):
            step(batches([8])[0], number)
    assert len(calls) == 2 and "hooks" in hooked.runner_is
    assert counted.model.count == 2 and "forward is not its class's" in counted.runner_is


@pytest.mark.parametrize("hook", ["register_hook", "register_post_accumulate_grad_hook"])
def test_hooks_of_a_parameter_are_called_at_every_step(hook):
    step, calls = make("native"), []
    weight = step.model.encoder[1].weight
    getattr(weight, hook)(lambda *_: calls.append(1))
    small.train(step, [8] * 3)
    assert len(calls) == 3 and "native" not in step.runner_is.partition(";")[0]


def test_a_parameter_that_was_frozen_after_the_start_stays_as_it_is():
    step = make("native")
    small.train(step, [8] * 2)
    weight = step.model.encoder[1].weight.requires_grad_(False)
    before, others = weight.clone(), step.model.decoder[0].weight.clone()
    for number in range(PER_EPOCH, PER_EPOCH + 3):
        step(batches([8])[0], number)
    assert torch.equal(weight, before) and not torch.equal(step.model.decoder[0].weight, others)
    assert "a parameter was frozen" in step.runner_is


# --- a run ---------------------------------------------------------------------------------------


def started(config, clothes, out, **changes):
    run = TrainConfig(**{**vars(config), "out": f"{config.out}-{out}", **changes})
    return Trainer(run, train_data=clothes[0], val_data=clothes[1])


def go_on(trainer, clothes, **options):
    return Trainer.resume(
        trainer.folder.path, train_data=clothes[0], val_data=clothes[1], **options
    )


class Killed(BaseException):
    pass


def stop(trainer, at):
    class Stopping(type(trainer.step.runner)):
        def __call__(self, share):
            if trainer.progress.step == at:
                raise Killed
            return super().__call__(share)

    trainer.step.runner.__class__ = Stopping
    with pytest.raises(Killed):
        trainer.fit()


def weights(trainer):
    return checkpoint.load(trainer.folder.checkpoints / "last").weights


@pytest.mark.parametrize(
    ("runner", "precision"), [("native", "fp32"), ("native", "bf16"), ("recorded", "fp32")]
)
def test_a_resumed_run_keeps_its_runner_and_its_bits(
    config, clothes, runner, precision, capsys, monkeypatch
):
    """Stopped in mid-epoch, behind a checkpoint that is in mid-epoch too."""
    monkeypatch.setattr(native_runner, "has_tiles", lambda: False)
    options = {
        "runner": "auto" if runner == "native" else runner,
        "precision": precision,
        "emulate_bf16": True,
        "checkpoint": CheckpointConfig(every_steps=7),
        "ema": 0.9,
    }
    whole = started(config, clothes, "whole", **options)
    whole.fit()
    cut = started(config, clothes, "cut", **options)
    assert f"Steps are taken by the {runner} runner" in capsys.readouterr().out
    stop(cut, 16)
    kept = yaml.safe_load((cut.folder.path / "config.yaml").read_text())
    assert kept["runner"] == cut.config.runner == runner
    environment = json.loads((cut.folder.path / "environment.json").read_text())
    assert environment[0]["runner"] == f"Steps are taken by the {runner} runner"
    again = go_on(cut, clothes)
    assert again.progress.step == 14 and again.step.runner.name == runner
    again.fit()
    found, wanted = weights(again), weights(whole)
    assert all(torch.equal(value, wanted[key]) for key, value in found.items())
    losses = [[row["loss"] for row in run.folder.metrics()] for run in (again, whole)]
    assert losses[0] == losses[1]


def test_checkpoints_keep_refused_runners_which_may_be_asked_for_again(config, clothes):
    run = started(config, clothes, "left")
    run.step.refused["native"] = "its loss differed from the eager step's"
    run.step.choose_runner()
    run.fit()
    again = go_on(run, clothes, epochs=3)
    assert again.step.runner.name == "recorded"
    assert "its loss differed from the eager step's" in again.step.runner_is
    assert go_on(run, clothes, changes={"runner": "native"}).step.runner.name == "native"
    with pytest.raises(
        ValueError, match="graph runner can.t take this run.s steps: it needs a CUDA GPU"
    ):
        go_on(run, clothes, changes={"runner": "graph"})


def test_a_run_without_a_recorded_runner_resumes_to_its_bits(config, clothes):
    run = started(config, clothes, "old", runner="recorded", epochs=1)
    run.fit()
    file = run.folder.path / "config.yaml"
    old = {k: v for k, v in yaml.safe_load(file.read_text()).items() if k != "runner"}
    file.write_text(yaml.safe_dump(old))
    assert go_on(run, clothes, epochs=2).step.runner.name == "recorded"


def test_a_runner_that_cannot_serve_is_refused_before_there_is_a_folder(config, clothes, tmp_path):
    with pytest.raises(
        ValueError, match=r"native runner can.t take this run.s steps: IWAE.*Use --runner recorded"
    ):
        started(config, clothes, "no", runner="native", model="iwae")
    assert not any(tmp_path.iterdir())
    with pytest.raises(ValueError, match="did you mean 'native'"):
        started(config, clothes, "no", runner="nativ")


def test_native_steps_read_rows_where_they_lie(monkeypatch, tmp_path):
    """A run by rows has the bits of one by gathered batches, also where steps are compared."""
    images = torch.randint(0, 256, (41, 1, 6, 6), dtype=torch.uint8)
    found, seen = [], []
    right = NativeStep.step

    def watched(self, images, labels=None, *, index=None, **options):
        seen.append(index is not None)
        return right(self, images, labels, index=index, **options)

    monkeypatch.setattr(NativeStep, "step", watched)
    for by_rows in (True, False):
        monkeypatch.setattr(native_runner.NativeRunner, "takes_rows", by_rows)
        config = TrainConfig(
            batch_size=8, epochs=2, out=str(tmp_path / str(by_rows)), tensorboard="off"
        )
        config.model_args = {"latent_dim": 3, "network_options": {"hidden": [8]}}
        trainer = Trainer(config, train_data=images, val_data=images[:9])
        trainer.fit()
        assert trainer.step.runner.name == "native" and trainer.step.runner.taken == 12
        # After the run the batches hold images again.
        assert torch.is_tensor(next(iter(trainer.batches)).images)
        found.append(trainer.model.state_dict())
    assert seen == [True] * 12 + [False] * 12
    assert all(map(torch.equal, found[0].values(), found[1].values()))
