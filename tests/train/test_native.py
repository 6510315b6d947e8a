"""The native step compared with the eager step, in float64 and float32, also on a busy machine."""

import copy
import multiprocessing
import re

import pytest
import torch
from torch import nn

import vae_fast
from tests.conftest import NATIVE
from tests.fresh import python
from vae_fast import models
from vae_fast.backend import library
from vae_fast.models.likelihoods import Gaussian
from vae_fast.train.average import WeightAverage
from vae_fast.train.flat import FlatAdam, FlatParameters
from vae_fast.train.native import NativeStep, build

if not NATIVE:
    pytest.skip("the CPU library is not built", allow_module_level=True)

EPS = 1e-3  # Adam's: it divides by no rounding error of gradients that are nearly 0
MODELS = {
    "vae": ("vae", (1, 28, 28), {}),  # two layers that pieces share by features
    "odd": ("vae", (1, 7, 5), {"latent_dim": 5, "network_options": {"hidden": [33, 17]}}),
    "wide latent": ("vae", (3, 4, 4), {"latent_dim": 300, "network_options": {"hidden": [9]}}),
    "cvae": ("cvae", (1, 8, 8), {"latent_dim": 7, "condition_options": {"num_classes": 4}}),
    "ae": ("ae", (1, 9, 9), {"latent_dim": 3, "likelihood": "gaussian"}),
    "laplace": ("vae", (1, 30, 30), {"likelihood": "laplace", "network_options": {"hidden": [80]}}),
    "deep": ("vae", (11,), {"latent_dim": 1, "network_options": {"hidden": [16, 8, 40, 3]}}),
    "linear": ("vae", (4,), {"latent_dim": 2, "network_options": {"hidden": []}}),
}


def _of(likelihood, shape=(2, 5, 5), **options):
    # A large last layer, small ones before it.
    return "vae", shape, {
        "latent_dim": 3, "network_options": {"hidden": [24]},
        "likelihood": likelihood, "likelihood_options": options,
    }  # fmt: skip


COUNTS = {
    "poisson": _of("poisson"),
    "gene dispersion": _of("negative_binomial", (301,)),
    "channel dispersion": _of("negative_binomial", (3, 5, 6)),
    "shared dispersion": _of("zero_inflated_negative_binomial", dispersion="shared"),
    "own dispersion": _of("zero_inflated_negative_binomial", dispersion="per_element"),
}
LIKELIHOODS = {
    "continuous bernoulli": _of("continuous_bernoulli"),
    "learned scale": _of("gaussian", variance="learned"),
    "shared scale": _of("gaussian", variance="shared", scale=0.4),
    "student t": _of("student_t", df=4.0),
    "levels": _of("discretized_logistic"),
    **COUNTS,
}
MODELS |= LIKELIHOODS


class Run:
    """A model with its training step, native or eager in ``dtype``."""

    def __init__(
        self, model, *, dtype=None, kind=torch.optim.Adam, ema=0.9, clip=0.0, bf16=False, **options
    ):
        self.model = copy.deepcopy(model).to(dtype)
        options = {"lr": 1e-3, "eps": EPS, **options}
        self.clip, self.native, self.bf16 = clip, None, bf16
        if dtype is None:
            self.flat = FlatParameters(list(self.model.parameters()))
            made = kind(self.flat.parameters, fused=True, **options)
            self.optimizer = FlatAdam(self.flat, made)
            self.average = WeightAverage(self.model, ema, self.flat) if ema else None
            options = {"average": self.average, "clip_norm": clip, "bf16": bf16}
            self.native = build(self.model, self.optimizer, **options)
            assert isinstance(self.native, NativeStep), self.native
        else:
            self.optimizer = kind(self.model.parameters(), **options)
            self.average = WeightAverage(self.model, ema) if ema else None

    def step(self, x, *y, beta=1.0, weight=0.1, key):
        if self.native is not None:
            terms = self.native.step(
                x, *y, lr=1e-3, beta=beta, noise_key=key, average_weight=weight
            )
            return torch.tensor([terms.loss, terms.recon, terms.kl, terms.norm])
        inputs = x if x.dtype != torch.float32 else x.to(next(self.model.parameters()).dtype)
        noise = {"noise_key": key} if self.model.is_probabilistic else {}
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            terms = self.model(inputs, *y, beta=beta, **noise)
        terms.loss.backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.model.parameters()])
        if self.clip and norm > self.clip:
            for p in self.model.parameters():
                p.grad *= self.clip / norm
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.update(weight)
        return torch.stack([*terms, norm]).detach()

    def state(self):
        """Weights, buffers, moments and moving averages, by name."""
        found = {f"weight {k}": v for k, v in self.model.state_dict().items()}
        state = self.optimizer.state_dict()["state"]
        for name in ("exp_avg", "exp_avg_sq"):
            found |= {f"{name} {i}": s[name] for i, s in state.items()}
        if self.average is not None:
            found |= {f"average {k}": v for k, v in self.average.state_dict().items()}
        return {k: v.detach().clone() for k, v in found.items()}


def made(name):
    torch.manual_seed(0)
    kind, shape, options = MODELS[name]
    return models.build(kind, shape, **options), shape


def batches(shape, sizes, dtype=torch.uint8):
    for size in sizes:
        x = torch.randint(0, 256, (size, *shape), dtype=torch.uint8)
        x = x if dtype == torch.uint8 else x / 255 if dtype == torch.float32 else x > 127
        key = torch.randint(-(1 << 62), 1 << 62, (2,))
        yield x, torch.randint(-1, 4, (size,)), key


def error(found, truth):
    return (found.double() - truth.double()).abs().max().item()


def compare(native, eager, truth, where):
    """At most twice eager float32's error, and a unit in the last place of the largest."""
    for name, right in truth.items():
        ulp = 1.2e-7 * right.double().abs().max().item() + 1e-9
        mine, theirs = error(native[name], right), error(eager[name], right)
        assert mine <= 2 * theirs + 2 * ulp, f"{where} {name}: {mine} where eager has {theirs}"


@pytest.mark.parametrize("name", [m for m in MODELS if m not in LIKELIHOODS])
def test_it_agrees_with_the_eager_step(name, cpu_level, threads):
    threads(2)
    model, shape = made(name)
    options = {"clip": 1.0} if name == "odd" else {}
    if name == "cvae":
        options = {"kind": torch.optim.AdamW, "weight_decay": 0.1}
    if name == "deep":
        options = {"weight_decay": 0.1, "maximize": True}
    runs = [Run(model, dtype=d, **options) for d in (None, torch.float32, torch.float64)]
    dtype = {"ae": torch.float32, "deep": torch.bool}.get(name, torch.uint8)
    for i, (x, y, key) in enumerate(batches(shape, (37, 145, 1, 37), dtype)):
        condition = (y,) if model.uses_labels else ()
        beta = (1.0, 0.0, 0.5, 4.0)[i]
        terms = [run.step(x, *condition, beta=beta, key=key) for run in runs]
        compare(*({"terms": t} for t in terms), f"step {i}")
        compare(*(run.state() for run in runs), f"step {i}")
    assert runs[0].optimizer._steps.item() == 4


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_likelihoods_are_the_eager_steps(name, cpu_level, threads):
    """Parameters from the network, fixed ones and learned ones; counts in any dtype."""
    threads(2)
    model, shape = made(name)
    runs = [Run(model, dtype=d) for d in (None, torch.float32, torch.float64)]
    for i, (x, _, key) in enumerate(batches(shape, (37, 64, 8))):
        if name in COUNTS:
            x = (x // 16 * (x > 128)).to((torch.uint8, torch.int64, torch.float32)[i])
        elif i == 1:
            x = x / 255
        terms = [run.step(x, key=key) for run in runs]
        compare(*({"terms": t} for t in terms), f"step {i}")
        compare(*(run.state() for run in runs), f"step {i}")


@pytest.mark.parametrize("name", ["odd", "cvae", "ae", "silu", "levels", "gene dispersion"])
def test_in_bf16_it_is_as_near_as_the_eager_step(name, cpu_level, threads):
    """Autocast's roundings, of every operand and result of a product."""
    threads(2)
    model, shape = made("odd" if name == "silu" else name)
    if name == "silu":
        model = swapped(model, nn.ReLU, nn.SiLU)
    runs = [
        Run(model, bf16=True),
        Run(model, dtype=torch.float32, bf16=True),
        Run(model, dtype=torch.float64),
    ]
    for i, (x, y, key) in enumerate(batches(shape, (37, 128, 37))):
        x = x // 100 if name in COUNTS else x
        condition = (y,) if model.uses_labels else ()
        terms = [run.step(x, *condition, key=key) for run in runs]
        states = [torch.cat([v.flatten() for v in run.state().values()]) for run in runs]
        for mine, theirs, exact in (terms, states):
            distances = [(t.double() - exact.double()).norm() for t in (mine, theirs)]
            assert distances[0] <= 1.5 * distances[1] + 1e-4 * exact.double().norm(), f"step {i}"
            assert distances[0] > 1e-6 * exact.double().norm()  # it does round


def swapped(model, old, new):
    for module in model.modules():
        for key, child in module._modules.items():
            if type(child) is old:
                module._modules[key] = new()
    return model


def trained(threads=2, steps=5, name="vae", **options):
    torch.set_num_threads(threads)
    model, shape = made(name)
    run = Run(model, **options)
    terms = [run.step(x, key=key) for x, _, key in batches(shape, [100] * steps)]
    return {**run.state(), "terms": torch.stack(terms)}


def same(a, b):
    return all(torch.equal(a[k], b[k]) for k in a)


def spin():
    while True:
        pass


def test_the_bits_are_the_same_for_any_number_of_threads_and_under_load(cpu_level, threads):
    try:
        library().pretend_cpus(4)
        alone = trained(1)
        busy = [multiprocessing.get_context("fork").Process(target=spin) for _ in range(3)]
        for count in (2, 3, 4):
            assert same(trained(count), alone)
        for process in busy:
            process.start()
        assert same(trained(4), alone)
        assert same(trained(2), alone)
    finally:
        library().pretend_cpus(0)
        for process in busy:
            process.kill()


def test_the_noise_is_the_eager_steps_and_a_resumed_run_has_the_same_bits():
    model, shape = made("odd")
    run, eager = Run(model), copy.deepcopy(model)
    torch.manual_seed(5)
    x = torch.rand(6, *shape)
    state = torch.get_rng_state()
    mine = run.native.step(x, lr=0.0)
    after = torch.get_rng_state()
    torch.set_rng_state(state)
    assert mine.recon == pytest.approx(eager(x).recon.item(), rel=1e-6)
    assert torch.equal(after, torch.get_rng_state())
    # Resumed: weights, moments and average from the state that was saved.
    again = Run(models.build(*MODELS["odd"][:2], **MODELS["odd"][2]))
    key = torch.tensor([3, 4])
    again.step(x, key=key)
    again.model.load_state_dict(run.model.state_dict())
    again.optimizer.load_state_dict(run.optimizer.state_dict())
    again.average.load_state_dict(run.average.state_dict())
    for each in (run, again):
        each.step(x, key=key)
    assert same(run.state(), again.state())


def test_rows_are_gathered_and_binarised_as_by_gather_batch():
    model, shape = made("odd")
    data = torch.randint(0, 256, (50, *shape), dtype=torch.uint8)
    index = torch.randperm(50)[:23]
    key, binary = torch.tensor([1, 2]), torch.tensor([7, 8])
    drawn = vae_fast.gather_batch(data, index, mode="binarize", noise_key=binary, first_row=46)
    for by_index, batch in (
        ({"index": index}, data[index]),
        ({"index": index, "binary_key": binary, "first_row": 46}, drawn),
    ):
        runs = Run(model), Run(model)
        runs[0].native.step(data, lr=1e-3, noise_key=key, **by_index)
        runs[1].native.step(batch, lr=1e-3, noise_key=key)
        assert same(runs[0].state(), runs[1].state())


def test_steps_that_are_not_finite_or_too_large_are_skipped_and_the_average_follows():
    model, shape = made("odd")
    x, key = torch.rand(6, *shape), torch.tensor([1, 2])
    for bad, limit in ((x, 0.1), (x.clone().fill_(torch.inf), 1e30), (x * torch.nan, 1e30)):
        run = Run(model)
        run.average._averages[-1].zero_()
        before = run.state()
        terms = run.native.step(bad, lr=1e-3, noise_key=key, limit=limit, average_weight=0.5)
        assert terms.skipped
        assert terms.norm > 0.1 if limit == 0.1 else terms.norm != terms.norm
        after = run.state()
        for name in before:
            if name.startswith("average"):
                weight = before[name.replace("average", "weight")]
                assert torch.equal(after[name], 0.5 * weight)
            else:
                assert torch.equal(after[name], before[name])
        assert run.optimizer._steps.item() == 0


SUBNORMAL = 1e-40


@pytest.mark.parametrize("eps", [EPS, 0.0])
def test_moments_that_became_subnormal_are_zeros(cpu_level, threads, eps):
    """Moments of weights that get no gradient any more, as behind a ReLU that is off.

    Subnormal numbers would slow each step by half. With eps = 0 they matter, and are kept.
    """
    threads(2)
    model, shape = made("vae")
    run, key = Run(model, eps=eps), torch.tensor([1, 2])
    x = torch.zeros(8, *shape, dtype=torch.uint8)  # so the first layer's weights have no gradient
    weight = run.model.encoder[1].weight
    before = weight.detach().clone()
    state = run.optimizer.torch_optimizer.state[weight]
    for name in ("exp_avg", "exp_avg_sq"):
        state[name].fill_(SUBNORMAL)
    run.native.step(x, lr=1e-3, noise_key=key)
    kept = [bool((state[name] != 0).all()) for name in ("exp_avg", "exp_avg_sq")]
    assert kept == [eps == 0] * 2
    assert torch.equal(weight, before)
    assert torch.tensor(SUBNORMAL) * 0.5 != 0  # the caller's own arithmetic has not changed


def test_it_detects_that_weights_were_overwritten():
    model, shape = made("odd")
    x, key = torch.rand(6, *shape), torch.tensor([1, 2])
    run, other = Run(model), Run(model)
    for each in (run, other):
        each.step(x, key=key)
    for write in (
        lambda m: nn.init.constant_(m.encoder[1].weight, 0.01),
        lambda m: m.load_state_dict(model.state_dict()),
    ):
        write(run.model)
        write(other.model)
        other.native.weights_changed()
        found = [each.native.step(x, lr=0.0, noise_key=key).recon for each in (run, other)]
        assert found[0] == found[1]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda m: m.encoder.insert(2, nn.Tanh()), "Tanh"),
        (lambda m: m.encoder[1].register_forward_hook(print), "hooks"),
        (
            lambda m: setattr(m, "likelihood", Gaussian(variance="learned")),
            "likelihood",
        ),
        (lambda m: m.decoder[0].weight.requires_grad_(False), "frozen"),
        (lambda m: m.double(), "float64"),
    ],
)
def test_an_unsupported_model_gets_the_reason(change, sentence):
    model, _ = made("odd")
    change(model)
    flat = FlatParameters([p for p in model.parameters() if p.requires_grad])
    optimizer = FlatAdam(flat, torch.optim.Adam(flat.parameters, fused=True))
    why_not = build(model, optimizer)
    assert isinstance(why_not, str)
    assert sentence in why_not


def test_wrong_input_is_refused_before_anything_changes():
    model, shape = made("cvae")
    run = Run(model)
    before = run.state()
    x, y = torch.zeros(3, *shape), torch.tensor([0, 1, 2])
    for error_type, sentence, call in (
        (ValueError, "built for", lambda: run.native.step(x[:, :, :4], y, lr=1)),
        (ValueError, "labels", lambda: run.native.step(x, lr=1)),
        (ValueError, "3 samples, but 2 labels", lambda: run.native.step(x, y[:2], lr=1)),
        (TypeError, "float64", lambda: run.native.step(x.double(), y, lr=1)),
        (TypeError, "contiguous", lambda: run.native.step(x.mT, y, lr=1)),
        (ValueError, "empty", lambda: run.native.step(x[:0], y[:0], lr=1)),
        (IndexError, "index 3", lambda: run.native.step(x, y, lr=1, index=y + 1)),
        (TypeError, "binarising", lambda: run.native.step(x, y, lr=1, binary_key=y[:2])),
    ):
        with pytest.raises(error_type, match=sentence):
            call()
    assert same(run.state(), before)


SHORT_OF_MEMORY = """
import re, resource, torch
from tests.train.test_native import Run, batches, made

torch.set_num_threads(1)
model, shape = made("vae")
runs = [Run(model, ema=0) for _ in range(2)]
small, large = batches(shape, (37, 30_000))
for run in runs:
    run.step(small[0], key=small[2])
used = int(re.search(r"VmSize:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), resource.RLIM_INFINITY))
try:
    runs[0].step(large[0], key=large[2])
except RuntimeError as error:
    print(error)
terms = [run.step(small[0], key=small[2]) for run in runs]
assert torch.equal(*terms), terms
weights = [run.flat.whole for run in runs]
assert torch.equal(*weights)
try:
    mu = torch.zeros(1000, 784)
    torch.ops.vae_fast.reparameterize(mu, mu, small[2], 40)
except RuntimeError as error:
    print(error)
"""


def test_too_little_memory_is_an_error_and_the_next_step_is_whole():
    """The next step used memory that was never there, and the process died."""
    done = python(SHORT_OF_MEMORY)
    assert done.returncode == 0, done.stderr
    words = r"vae_fast: can't allocate memory: \d+ bytes were asked for; take smaller batches"
    assert len(re.findall(words, done.stdout)) == 2, done.stdout
