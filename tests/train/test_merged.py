"""The step of few launches beside the eager one, on the CPU, where its own ops are plain PyTorch."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import vae_fast
from tests.conftest import NATIVE
from tests.train import small
from tests.train.replay import Tape
from vae_fast.data import Batches
from vae_fast.data.rows import Rows
from vae_fast.models import build
from vae_fast.train import ObjectiveConfig, OptimizerConfig, TrainConfig
from vae_fast.train.captured import WARM_UP, CapturedStep
from vae_fast.train.distributed import Share, World
from vae_fast.train.merged import MergedStep, merged
from vae_fast.train.runners import Eager
from vae_fast.train.step import Step

pytestmark = pytest.mark.skipif(not NATIVE, reason="it is made of the native ops")
CPU = torch.device("cpu")


def make(model="vae", shape=(1, 6, 6), **options):
    """A step as on a GPU, with its decisions and schedules in tensors."""
    torch.manual_seed(0)
    config = TrainConfig(model=model, lr=0.01, runner="eager", epochs=2, **options)
    step = Step(build(model, shape, **config.model_args), config, CPU, World(), 6)
    step.schedule_values.on_device(CPU)
    step.updates[0].guard.decides_on_device = True
    step.runner = Eager(step)
    return step


def busy(**options):
    """All that a step may do besides."""
    return {
        "ema": 0.9,
        "objective": ObjectiveConfig(schedule="linear", period=9, unit="steps"),
        "optimizer": OptimizerConfig(
            name="adamw", warmup_steps=4, decay="cosine", clip_norm=15.0, skip_above=5.0
        ),
        **options,
    }


class Few:
    """The runner that takes the merged step eagerly."""

    name, why_not = "eager", ""

    def __init__(self, step):
        self.take = merged(step).take

    def __call__(self, share):
        return self.take(share)


NO_LAUNCHES = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.empty_like.default)


class LaunchCounter(TorchDispatchMode):
    """Notes the ops that do work on a GPU: each is a launch of the graph."""

    def __init__(self):
        super().__init__()
        self.ops = []

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        if not op.is_view and op not in NO_LAUNCHES:
            self.ops.append(str(op))
        return op(*args, **(kwargs or {}))


SMALL = {"hidden": [12]}
CASES = {
    "vae": {},
    "busy": busy(),
    "deep, SiLU": {"network_options": {"hidden": [12, 9], "activation": "silu"}},
    "counts": {"likelihood": "poisson"},
    "levels": {"likelihood": "discretized_logistic"},
    "a scale of each": {"likelihood": "gaussian", "likelihood_options": {"variance": "learned"}},
    "a dispersion for each place": {"likelihood": "negative_binomial"},
    "maximised, decayed": {
        "optimizer": OptimizerConfig(args={"weight_decay": 0.1, "maximize": False, "eps": 1e-6})
    },
    "ae": {},
    "cvae": {"condition_options": {"num_classes": 10}},
}


def of_case(name):
    options = dict(CASES[name])
    arguments = {"latent_dim": 3, "network_options": SMALL}
    for key in ("network_options", "likelihood", "likelihood_options", "condition_options"):
        if key in options:
            arguments[key] = options.pop(key)
    return {"model": name if name in ("ae", "cvae") else "vae", "model_args": arguments, **options}


@pytest.mark.parametrize("name", CASES)
def test_native_steps_agree_with_eager_steps(name):
    eager, few = make(**of_case(name)), make(**of_case(name))
    few.runner = Few(few)
    assert isinstance(merged(few), MergedStep)
    sizes = [8] * 9 + [5]
    right, found = small.train(eager, sizes), small.train(few, sizes)
    assert torch.equal(found[4], right[4])  # the generator
    for key, value in right[1].items():
        assert torch.allclose(found[1][key], value, rtol=1e-3, atol=1e-5), key
    assert found[2][0] == pytest.approx(right[2][0], rel=1e-5) and found[2][1] == right[2][1]
    assert found[3]["grad_norm"] == pytest.approx(right[3]["grad_norm"], rel=1e-4)
    assert found[3]["skipped"] == right[3]["skipped"]
    for mine, other in zip(
        torch.utils._pytree.tree_leaves(found[0]["updates"]),
        torch.utils._pytree.tree_leaves(right[0]["updates"]),
        strict=True,
    ):
        if isinstance(other, torch.Tensor):
            assert torch.allclose(mine.float(), other.float(), rtol=1e-3, atol=1e-4)
    if few.average is not None:
        for key, value in right[0]["average"].items():
            assert torch.allclose(found[0]["average"][key], value, rtol=1e-3, atol=1e-5), key


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_in_half_precision_steps_are_autocasts(precision):
    """Loss and gradients of every case, from scales at which fp16's gradients overflow as well."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    for name in CASES:
        step = make(**of_case(name), precision=precision)
        few, (share,) = merged(step), small.batches([32])
        first = few._parts.layers[0].linear.weight
        assert few._operands[id(first)].dtype == few._targets[id(first)].dtype == dtype
        before = step.state_dict()["updates"][0].get("scale", {"value": torch.tensor(1.0)})
        before = before["value"].clone()
        assert few.differs(share) == "", name
        scale = step.updates[0].scale
        assert scale is None or scale.value == before == 2.0**16
        few._half.zero_()
        few._half.copy_ = lambda data: None  # the cast of the weights is left out
        assert few.differs(share) != "", name


def test_a_scale_at_which_gradients_overflow_halves_and_the_step_is_skipped():
    found = []
    for few in (False, True):
        step = make(**of_case("busy"), precision="fp16")
        step.runner = Few(step) if few else step.runner
        step.updates[0].scale.value.fill_(2.0**24)
        small.train(step, [8] * 12)
        found.append((step.updates[0].scale.value.item(), step.updates[0].optimizer._steps.item()))
        found[-1] += tuple(p.detach().clone() for p in step.model.parameters())
    (scale, steps, *right), (own_scale, own_steps, *weights) = found
    assert scale == own_scale < 2.0**24 and steps == own_steps < 12
    for mine, other in zip(weights, right, strict=True):
        assert torch.allclose(mine, other, rtol=1e-2, atol=2e-3)


def test_standardized_columns_are_merged():
    options = {"likelihood": "gaussian", "likelihood_options": {"standardize": True}}
    found = []
    for few in (False, True):
        step = make(model_args={"latent_dim": 3, "network_options": SMALL, **options})
        step.model.likelihood.fit(torch.tensor(0.4), torch.tensor(0.3))
        step.runner = Few(step) if few else step.runner
        torch.manual_seed(1)
        for number in range(4):
            step(Share(torch.randn(8, 1, 6, 6), None), number)
        found.append((step.meter.read()[0], step.model.state_dict()))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-5)
    assert not any(value == 0 for value in found[0][0].values())
    for key, value in found[0][1].items():
        assert torch.allclose(found[1][1][key], value, rtol=1e-3, atol=1e-5), key


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_replayed_it_has_its_own_bits(precision):
    once, captured = (make(**of_case("busy"), precision=precision) for _ in range(2))
    once.runner = Few(once)
    captured.runner = CapturedStep(captured.take, Tape(), captured.model, merged(captured))
    sizes = [8] * 7 + [5, 8]
    right = small.train(once, sizes)
    with pytest.warns(UserWarning, match="is taken eagerly"):
        found = small.train(captured, sizes)
    assert captured.runner._graph.replays == 8 - WARM_UP
    leaves = torch.utils._pytree.tree_leaves
    for mine, other in zip(leaves(found), leaves(right), strict=True):
        assert torch.equal(mine, other) if isinstance(mine, torch.Tensor) else mine == other


def _take(step, shares):
    for number, share in enumerate(shares):
        step(share, number)


def test_rows_are_gathered_in_the_graph_and_have_the_bits_of_batches():
    data = torch.randint(0, 256, (45, 1, 6, 6), dtype=torch.uint8)
    found = []
    for by_rows in (True, False):
        step = make(**of_case("vae"))
        step.runner = CapturedStep(step.take, Tape(), step.model, merged(step))
        batches = Batches(data, 8, shuffle=True)
        batches.by_rows = by_rows
        torch.manual_seed(1)
        shares = [share for _ in range(2) for share in World().shares(batches)]
        assert all(isinstance(share.images, Rows) == by_rows for share in shares)
        with pytest.warns(UserWarning, match=r"\(5, 1, 6, 6\) is taken eagerly"):
            _take(step, shares)
        found.append((step.state_dict()["updates"], step.meter.read()))
        assert step.runner._graph.replays == 10 - WARM_UP
        gathers = [op for op, *_ in step.runner._graph.ops if "gather_batch" in str(op)]
        assert len(gathers) == 1
    leaves = torch.utils._pytree.tree_leaves
    for mine, other in zip(*map(leaves, found), strict=True):
        assert torch.equal(mine, other) if isinstance(mine, torch.Tensor) else mine == other
    share = Share(Rows(data, torch.tensor([3, 1])), None)
    assert torch.equal(share.gathered().images, data[[3, 1]]) and share.images.shape == (2, 1, 6, 6)
    eager = make(**of_case("vae"))
    eager(share, 0)  # another runner is given the batch itself


def test_a_differing_native_step_is_given_up_with_a_warning():
    step = make(**of_case("vae"))
    few = merged(step)
    assert few.differs(small.batches([8])[0]) == ""
    ranges, few._ranges = few._ranges, few._ranges[:2]
    assert few.differs(small.batches([8])[0]).startswith("gradient's norm (")
    few._ranges = ranges
    wrong = few._parts.layers[0].linear.weight
    few._targets[id(wrong)] = torch.zeros_like(wrong)
    before = {k: v.clone() for k, v in step.model.state_dict().items()}
    noise = torch.get_rng_state()
    assert few.differs(small.batches([8])[0]).startswith("gradient (by ")
    assert all(torch.equal(v, before[k]) for k, v in step.model.state_dict().items())
    assert torch.equal(noise, torch.get_rng_state()) and step.updates[0].optimizer._steps == 0
    step.runner = CapturedStep(step.take, Tape(), step.model, few)
    said = "the (loss|gradient) .* is not the eager step's: steps are captured op by op"
    with vae_fast.set_backend("reference"):  # the native CPU ops read the upstream gradient
        with pytest.warns(UserWarning, match=said):
            found = small.train(step, [8] * 5)
        right = small.train(make(**of_case("vae")), [8] * 5)
    assert all(torch.equal(value, found[1][key]) for key, value in right[1].items())


def test_a_skipped_step_leaves_everything_as_it_was():
    step = make(**of_case("busy"))
    step.runner = Few(step)
    small.train(step, [8] * 3)
    optimizer = step.updates[0].optimizer
    moments = [t.clone() for t in (*optimizer._buffers.values(), optimizer._steps)]
    step.meter.read()
    with torch.no_grad():
        bias = next(p for n, p in step.model.named_parameters() if n == "decoder.0.bias")
        bias[0] = torch.inf
    before = {k: v.clone() for k, v in step.model.state_dict().items()}
    step(small.batches([8])[0], 3)
    assert all(torch.equal(v, before[k]) for k, v in step.model.state_dict().items())
    assert all(map(torch.equal, moments, (*optimizer._buffers.values(), optimizer._steps)))
    assert step.read_guards()["skipped"] == 1 and step.meter.read()[1] == 8


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"model": "iwae"}, "IWAE is not a VAE"),
        ({"objective": ObjectiveConfig(free_bits=0.1)}, "free bits are not supported"),
        ({"model_args": {"prior": "vamp"}}, "no code for the model's learned prior"),
        ({"optimizer": OptimizerConfig(args={"amsgrad": True})}, "amsgrad"),
    ],
)
def test_unsupported_inputs_are_errors(options, says):
    assert says in merged(make(**options))


def test_a_step_of_the_tutorials_vae_has_twenty_launches():
    decided = OptimizerConfig(clip_norm=1.0, skip_above=5.0)
    share = Share(torch.randint(0, 256, (128, 1, 28, 28), dtype=torch.uint8), None)

    def launches(take):
        for _ in range(2):
            take(share)
        with LaunchCounter() as counter:
            take(share)
        return counter.ops

    options = {"shape": (1, 28, 28), "model_args": {"latent_dim": 20}}
    for precision, most in (("fp32", 20), ("bf16", 30), ("fp16", 35)):
        given = {**options, "ema": 0.9, "optimizer": decided, "precision": precision}
        ops = launches(merged(make(**given)).take)
        assert len(ops) <= most, ops
        products = [op for op in ops if op.startswith(("aten.addmm", "aten._addmm", "aten.mm"))]
        assert len(products) == 4 + 7  # forward; backward, less the first layer's input
        assert len(launches(make(**given).take)) > 2.5 * most  # the count would see more
    op_by_op = launches(make(**options).take)
    assert 40 < len(op_by_op) <= 45, op_by_op


def test_the_cpus_ops_refuse_what_a_gpus_would():
    heads, key = torch.randn(4, 6), torch.tensor([1, 2])
    for wrong in (heads.bfloat16(), torch.randn(6, 4).t()):
        with pytest.raises(TypeError, match="contiguous float32, got torch.(bfloat16|float32)"):
            torch.ops.vae_fast.step_sample(wrong, key)
