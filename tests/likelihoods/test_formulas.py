"""The likelihoods' formulas by themselves, in C++ and in plain PyTorch, against 100 digits.

No driver and no op is between: formulas.cpp calls each formula of csrc/likelihoods/list.h over arrays,
for every math policy that this machine runs.
"""

from __future__ import annotations

import ctypes
import functools
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.ops.accuracy import ulps
from vae_fast.backend import library, native_reason
from vae_fast.likelihoods import SPECS, Spec

ROOT = Path(__file__).parents[2]
POLICIES = {
    "generic": ("VF_BYTES=16", torch.float32),
    "avx2": ("VF_BYTES=32", torch.float32),
    "avx512": ("VF_BYTES=64", torch.float32),
    "float": ("VF_SCALAR=float", torch.float32),
    "double": ("VF_SCALAR=double", torch.float64),
}
SPEC = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())


def listed() -> dict[str, str]:
    """The names in csrc/likelihoods/list.h, and the structs that have their formulas."""
    text = (ROOT / "csrc/likelihoods/list.h").read_text()
    return dict(re.findall(r"^\s*X\((\w+), (\w+)\)", text, flags=re.MULTILINE))


# Inputs at the ends of what a likelihood has to get right: a parameter of each in a row, then the target.
EDGES = {
    # Through 0, at the series' end, and where exp(-|l|) is nothing.
    "continuous_bernoulli": (
        [0.0, -0.0, 1e-20, 1e-8, 100.0, 1e4, -1e4, 1.9999, 2.0, -2.0],
        [0.3, 0.3, 0.7, 0.2, 1.0, 0.0, 0.0, 0.4, 0.4, 0.4],
    ),
    # 1 / scale^2 overflows.
    "gaussian": ([0.0, 0.0, 0.5], [80.0, -50.0, -50.0], [1.0, 1e-22, 0.5]),
    "laplace": ([0.0, 0.0, 1e30, 0.5], [0.0, 80.0, 0.0, -50.0], [0.0, 1.0, -1e30, 0.5]),
    # Hardly a distribution, the Gaussian, and far tails.
    "student_t": ([0.0] * 4, [0.0] * 4, [1e-6, 1e8, 1e12, 1.0], [2.0, 2.0, 3.0, 1e10]),
    # Certain, impossible, and all but flat.
    "discretized_logistic": (
        [0.0, 0.0, 0.0, -1.0, 1.0, 0.5, 0.0, 1e3, -1e3],
        [-80.0, -20.0, 60.0, -20.0, -7.0, 0.0, 3.0, -3.0, -3.0],
        [128, 127, 5, 0, 255, 0, 255, 0, 255],
    ),
    "poisson": ([0.0, 1e-30, 1.0, 1e-3], [0.0, 2.0, 1e6, 1.0]),
    "poisson_log": ([-100.0, -100.0, 80.0, -10000.0], [0.0, 3.0, 0.0, 1.0]),
    # No rate, no dispersion, and dispersions that leave the Poisson.
    "negative_binomial": (
        [0.0, 0.0, 1.0, 1e6, 1.0, 3.0, 5.0],
        [1.0, 1.0, 1e-30, 1e-8, 1e20, 1e30, 1e-20],
        [0.0, 2.0, 0.0, 1e6, 2.0, 2.0, 3.0],
    ),
    "negative_binomial_log": (
        [-100.0, -100.0, 0.0, 80.0],
        [1.0, 1.0, 1e12, 1.0],
        [0.0, 2.0, 3.0, 3.0],
    ),
    # A zero may come from the inflation or from the counts: one way or both are all but impossible.
    "zero_inflated_negative_binomial": (
        [1.0] * 9 + [1e6, 1e4, 1e3, 50.0, 200.0],
        [1.0, 1.0, 1.0, 1e8, 1e8, 1.0, 1e-30, 1e-3, 1.0] + [1e4, 1e4, 1e3, 1e8, 1e8],
        [0.0, 50.0, -50.0, 50.0, -1000.0, 30.0, 0.0, -30.0, 1e4]
        + [-1000.0, -300.0, -1e4, -50.0, -17.0],
        [0.0] * 8 + [3.0] + [0.0] * 5,
    ),
}


def check_edges(name: str, dtype: torch.dtype, call) -> None:
    """``call(params, x)`` on EDGES[name]: values and gradients to a few units of float32."""
    *params, x = (torch.tensor(row, dtype=dtype) for row in EDGES[name])
    value, grads = SPECS[name].truth(*params, x)
    for result, truth in zip(call(params, x), [value, *grads], strict=True):
        expected = torch.from_numpy(truth.astype(np.float64)).to(dtype)
        torch.testing.assert_close(result, expected, rtol=3e-6, atol=2e-7)


# --- the C++ formulas ----------------------------------------------------------------------------


@pytest.fixture(scope="session", params=POLICIES)
def formulas(request, tmp_path_factory) -> tuple[ctypes.CDLL, torch.dtype]:
    """formulas.cpp, compiled for one policy."""
    define, dtype = POLICIES[request.param]
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("there is no C++ compiler")
    runs = library().cpu_capabilities() if native_reason("cpu") is None else ("generic",)
    if request.param in ("avx2", "avx512") and request.param not in runs:
        pytest.skip(f"this machine does not run {request.param}")
    out = tmp_path_factory.mktemp("formulas") / f"{request.param}.so"
    flags = ["-O2", "-fno-math-errno", "-fPIC", "-shared", "-Wno-psabi", "-Wno-unknown-pragmas"]
    source = ROOT / "tests/likelihoods/formulas.cpp"
    command = [compiler, *flags, f"-D{define}", f"-I{ROOT / 'csrc'}", str(source), "-o", str(out)]
    subprocess.run(command, check=True)
    return ctypes.CDLL(str(out)), dtype


def _pointers(tensors: list[Tensor]) -> ctypes.Array:
    return (ctypes.c_void_p * len(tensors))(*[t.data_ptr() for t in tensors])


def _pointer(t: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(t.data_ptr())


def call(
    formulas: ctypes.CDLL, spec: Spec, params: list[Tensor], x: Tensor, how: str = "both"
) -> tuple[Tensor, list[Tensor]]:
    """The value and the gradients of a formula. ``how``: "value", "grad" or "both"; for planes "both",
    "value", or "once", without reading gradients back."""
    function = getattr(formulas, spec.name)
    if spec.planes:
        planes = [p.contiguous() for p in params[0].unbind(1)]
        values = [v.contiguous() for v in (x if spec.planes > 1 else x.unsqueeze(1)).unbind(1)]
        nll, grads = torch.empty_like(planes[0]), [torch.empty_like(p) for p in planes]
        out = None if how == "value" else _pointers(grads)
        arrays = (_pointers(planes), _pointers(values), _pointer(nll), out)
        count = ctypes.c_int64(nll.numel())
        function(count, len(planes), *arrays, ctypes.c_bool(how == "both"))
        return nll, [torch.stack(grads, 1)]
    params, x = [p.contiguous() for p in params], x.contiguous()
    nll, grads = torch.empty_like(x), [torch.empty_like(p) for p in params]
    value = None if how == "grad" else _pointer(nll)
    out = None if how == "value" else _pointers(grads)
    function(ctypes.c_int64(x.numel()), _pointers(params), _pointer(x), value, out)
    return nll, grads


# --- truth and bar -------------------------------------------------------------------------------


class Case:
    """Inputs of a likelihood, the truth, what plain PyTorch gives, and the size of the terms.

    A result may be a difference of large terms: near a density's mode, the gradient is. Its error is
    counted in units of the last place of the terms' size, for which stands how far the result moves
    as each input is scaled: the sum of |p d/dp| over all inputs p, from second derivatives.
    """

    def __init__(self, spec: Spec, dtype: torch.dtype, count: int) -> None:
        generator = torch.Generator().manual_seed(1)
        shape = (
            (count // 40, 3, 1) if spec.planes == 3 else (count // 5,) if spec.planes else (count,)
        )
        self.params, x = spec.inputs(shape, dtype, generator)
        self.x = x.to(dtype)
        value, grads = spec.truth(*self.params, self.x)
        self.truth = [value, *grads]
        if dtype != torch.float64:
            self.truth = [t.astype(np.float64) for t in self.truth]
        self.eager = _reference(spec, self.params, self.x)[0]
        self.size = self._sizes(spec)

    def _sizes(self, spec: Spec) -> list[np.ndarray]:
        inputs = [t.double() for t in (*self.params, self.x)]
        if spec.target == "category":
            return [np.abs(t) for t in self.truth]
        leaves = [t.requires_grad_() for t in inputs]
        nll = spec.terms(*leaves)
        grads = torch.autograd.grad(nll.sum(), leaves, create_graph=True)
        if spec.planes:  # every plane is a term of its position's result
            moved = (grads[0] * leaves[0]).abs().sum(1)
            sizes = [nll.abs() + moved, grads[0].abs() + grads[0].abs().amax(1, keepdim=True)]
        else:
            sizes = [nll.abs() + _moved(leaves, grads)]
            for g in grads[:-1]:
                second = torch.autograd.grad(g.sum(), leaves, retain_graph=True, allow_unused=True)
                sizes.append(g.abs() + _moved(leaves, second))
        if spec.target == "count":
            # Where x > 0, the terms that x = rate makes cancel: x and the rate, and in the dispersion's
            # gradient log(1 + w) - w / (1 + w).
            rate = leaves[0].exp() if spec.params[0] == "log_rate" else leaves[0]
            sizes[0] = sizes[0] + torch.where(leaves[-1] > 0, rate + leaves[-1], 0.0)
            if len(sizes) > 2:
                w = rate / (leaves[1] + 1e-8)
                sizes[2] = sizes[2] + torch.where(leaves[-1] > 0, w.log1p() - w / (1 + w), 0.0)
        # Below 1e-50 the truth's own digits end.
        return [
            s.detach().clamp_min(1e-50).numpy().astype(t.dtype)
            for s, t in zip(sizes, self.truth, strict=True)
        ]

    def check(self, name: str, results: list[Tensor], limit: float | None = None) -> None:
        """At most twice plain PyTorch's largest error, plus one unit; or ``limit`` units."""
        assert len(results) == len(self.truth)
        for i, result in enumerate(results):
            error = ulps(result, self.truth[i], self.size[i])
            eager = ulps(self.eager[i], self.truth[i], self.size[i])
            bar = 2 * eager.max() + 1 if limit is None else limit
            worst = np.unravel_index(error.argmax(), error.shape)
            assert error.max() <= bar, (
                f"{name}, {'value' if i == 0 else f'gradient {i}'} at {worst}: {error.max():.4g} "
                f"units, plain PyTorch {eager.max():.4g}; {result[worst].item()!r} where "
                f"{self.truth[i][worst]!r} is true"
            )


def _moved(inputs: list[Tensor], grads: tuple[Tensor | None, ...]) -> Tensor:
    return sum((p * g).abs() for p, g in zip(inputs, grads, strict=True) if g is not None)


def _reference(spec: Spec, params: list[Tensor], x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    leaves = [p.detach().clone().requires_grad_() for p in params]
    nll = spec.terms(*leaves, x)
    return [nll.detach(), *torch.autograd.grad(nll.sum(), leaves)], leaves


@functools.cache
def case(name: str, dtype: torch.dtype, count: int = 500) -> Case:
    return Case(SPECS[name], dtype, count)


@pytest.mark.slow  # compiling takes half a minute
def test_cpp_formulas_are_as_accurate_as_plain_pytorch(formulas) -> None:
    compiled, dtype = formulas
    for name, spec in SPECS.items():
        if name not in listed():
            continue
        c = case(name, dtype)
        nll, grads = call(compiled, spec, c.params, c.x)
        c.check(name, [nll, *grads])
        # Value and gradient alone, and without scratch, take other branches of the formula.
        alone = call(compiled, spec, c.params, c.x, "value")[0]
        torch.testing.assert_close(alone, nll, rtol=1e-6, atol=1e-6)
        other = call(compiled, spec, c.params, c.x, "once" if spec.planes else "grad")[1]
        c.check(f"{name} alone", [alone, *other])


@pytest.mark.slow
def test_cpp_formulas_at_the_edges(formulas) -> None:
    compiled, dtype = formulas
    for name in EDGES:

        def both(params: list[Tensor], x: Tensor, spec: Spec = SPECS[name]) -> list[Tensor]:
            nll, grads = call(compiled, spec, params, x)
            return [nll, *grads]

        check_edges(name, dtype, both)


@pytest.mark.slow
def test_cpp_formulas_let_nan_through(formulas) -> None:
    compiled, dtype = formulas
    for name, spec in SPECS.items():
        if name not in listed():
            continue
        c = case(name, dtype)
        for which in range(len(c.params) + 1):
            inputs = [t.clone() for t in (*c.params, c.x)]
            inputs[which].fill_(float("nan"))
            nll, grads = call(compiled, spec, inputs[:-1], inputs[-1])
            assert nll.isnan().all(), (name, which)
            # A gradient that the input has no part in, as the zero logits' of x > 0, is as it was.
            for j, g in enumerate(grads):
                assert j != which != len(grads) or g.isnan().all(), (name, which, j)


# --- the Specs -----------------------------------------------------------------------------------


@pytest.mark.skipif(not (ROOT / "csrc").exists(), reason="the kernels' sources are not here")
def test_the_lists_are_equal() -> None:
    assert set(SPECS) == set(listed())


@SPEC
def test_reference_is_true(spec: Spec) -> None:
    """In float64 and float32, in units of the last place of the terms' size."""
    for dtype, limit in ((torch.float64, 2000), (torch.float32, 400)):
        c = case(spec.name, dtype, 80)
        c.check(spec.name, c.eager, limit)


@pytest.mark.parametrize("name", EDGES)
def test_reference_at_the_edges(name: str) -> None:
    for dtype in (torch.float32, torch.float64):
        check_edges(name, dtype, lambda params, x: _reference(SPECS[name], params, x)[0])


@SPEC
def test_reference_differentiates_twice(spec: Spec) -> None:
    generator = torch.Generator().manual_seed(2)
    shape = (1, 3, 1) if spec.planes == 3 else (6,)
    params, x = spec.inputs(shape, torch.float64, generator)
    leaves = [p.requires_grad_() for p in params]
    grads = torch.autograd.grad(spec.terms(*leaves, x).sum(), leaves, create_graph=True)
    second = torch.autograd.grad(sum(g.sum() for g in grads), leaves)
    for p, s in zip(leaves, second, strict=True):
        step = 1e-6 * p.detach().abs().clamp_min(1e-2)
        for i in range(p.numel()):
            sums = []
            for sign in (1, -1):
                moved = [q.detach().clone() for q in leaves]
                at = next(k for k, q in enumerate(leaves) if q is p)
                moved[at].view(-1)[i] += sign * step.view(-1)[i]
                sums.append(sum(g.double().sum() for g in _reference(spec, moved, x)[0][1:]))
            slope = (sums[0] - sums[1]) / (2 * step.view(-1)[i])
            scale = max(abs(float(g)) for g in sums) / float(step.view(-1)[i])
            torch.testing.assert_close(s.view(-1)[i], slope, rtol=1e-4, atol=1e-9 * scale + 1e-8)


DISTRIBUTIONS = torch.distributions
AS_TORCH = {
    "continuous_bernoulli": lambda l: DISTRIBUTIONS.ContinuousBernoulli(logits=l),
    "gaussian": lambda m, s: DISTRIBUTIONS.Normal(m, s.exp()),
    "gaussian_scale": DISTRIBUTIONS.Normal,
    "laplace": lambda m, s: DISTRIBUTIONS.Laplace(m, s.exp()),
    "laplace_scale": DISTRIBUTIONS.Laplace,
    "student_t": lambda m, s, df: DISTRIBUTIONS.StudentT(df, m, s.exp()),
    "student_t_scale": lambda m, s, df: DISTRIBUTIONS.StudentT(df, m, s),
    "poisson": DISTRIBUTIONS.Poisson,
    "poisson_log": lambda l: DISTRIBUTIONS.Poisson(l.exp()),
    "negative_binomial": lambda m, t: DISTRIBUTIONS.NegativeBinomial(t, logits=(m / t).log()),
    "negative_binomial_log": lambda l, t: DISTRIBUTIONS.NegativeBinomial(t, logits=l - t.log()),
    "categorical": lambda l: DISTRIBUTIONS.Categorical(logits=l.movedim(1, -1)),
}


def moderate(name: str) -> tuple[list[Tensor], Tensor]:
    """Parameters for which torch.distributions keeps its digits, and a target."""
    generator = torch.Generator().manual_seed(3)
    spec = SPECS[name]
    params, x = spec.inputs((50, 3, 4) if spec.planes == 3 else (400,), torch.float64, generator)
    if spec.target == "count":
        params[0] = params[0].clamp(*((-2.0, 4.0) if "log" in spec.params[0] else (0.1, 60.0)))
        params[1:] = [p.clamp(0.5, 50.0) for p in params[1:2]] + [
            p.clamp(-3, 3) for p in params[2:]
        ]
        x = x.clamp_max(100)
    elif name.startswith("student_t"):
        params[2] = params[2].clamp(3.0, 100.0)
    return params, x


@pytest.mark.parametrize("name", AS_TORCH)
def test_reference_is_torchs_distribution(name: str) -> None:
    params, x = moderate(name)
    expected = -AS_TORCH[name](*params).log_prob(x)
    near = torch.ones_like(expected, dtype=torch.bool)
    if name == "continuous_bernoulli":  # torch's has a Taylor series around 0, and clamps
        near = (params[0].abs() > 0.1) & (params[0].abs() < 10)
    torch.testing.assert_close(
        SPECS[name].terms(*params, x)[near], expected[near], rtol=1e-6, atol=1e-6
    )


@SPEC
def test_samples_have_the_mean_and_the_nll_of_their_likelihood(spec: Spec) -> None:
    params, _ = moderate(spec.name)
    if spec.name.startswith("discretized"):  # within [-1, 1], where the mean is the locs'
        k = 3
        wide = params[0] if spec.planes else None
        if wide is not None:
            per_channel = wide[:, k:].unflatten(1, (3, 3, k))
            per_channel[:, :, 0].clamp_(-0.3, 0.3)
            per_channel[:, :, 1].clamp_(-6.0, -3.5)
        else:
            params = [params[0].clamp(-0.6, 0.6), params[1].clamp(-6.0, -3.5)]
    n = 400
    many = [p.expand(n, *p.shape).flatten(0, 1) for p in params]
    generator = torch.Generator().manual_seed(4)
    x = spec.sample(*many, generator=generator)
    again = spec.sample(*many, generator=torch.Generator().manual_seed(4))
    assert torch.equal(x, again)
    draws = x.unflatten(0, (n, -1)).double()
    assert torch.isfinite(draws).all()
    if spec.target == "category":
        probabilities = params[0].softmax(1)
        for c in range(probabilities.shape[1]):
            share = (draws == c).double().mean(0)
            sigma = (probabilities[:, c] * (1 - probabilities[:, c]) / n).sqrt() + 1 / n
            assert ((share - probabilities[:, c]).abs() < 5 * sigma).all()
        return
    error = draws.std(0) / n**0.5
    # Rare counts are no normal numbers, so not of all.
    off = (draws.mean(0) - spec.mean(*params)).abs() - 0.02 * draws.std(0)
    # An event that no draw has seen has no deviation either.
    unseen = 5.0 / n if spec.family == "bernoulli" else 1e-9
    assert (off <= 5 * error + unseen).double().mean() > 0.97
    if spec.target in ("unit", "level", "count"):
        assert (draws >= 0).all() and (
            draws <= {"unit": 1, "level": 255, "count": 1e9}[spec.target]
        ).all()
    # All parameters are the density's own: E[d log p / d parameter] = 0.
    nll = spec.terms(*[p.requires_grad_() for p in many], x)
    for g in torch.autograd.grad(nll.sum(), many):
        score = g.unflatten(0, (n, -1)).double()
        spread = score.std(0) / n**0.5
        assert (
            (score.mean(0)).abs()
            <= 6 * spread + (5 * unseen if spec.name == "bernoulli" else unseen)
        ).double().mean() > 0.97
