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
        for mine, other in zip(
            call(compiled, spec, c.params, c.x, "once" if spec.planes else "grad")[1],
            grads,
            strict=True,
        ):
            torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


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
            for j, g in enumerate(grads):
                assert g.isnan().all(), (name, which, j)


# --- the Specs -----------------------------------------------------------------------------------


def test_the_lists_are_one() -> None:
    assert set(SPECS) == set(listed())


@SPEC
def test_reference_is_true(spec: Spec) -> None:
    """In float64 and float32, in units of the last place of the terms' size."""
    for dtype, limit in ((torch.float64, 2000), (torch.float32, 400)):
        c = case(spec.name, dtype, 80)
        c.check(spec.name, c.eager, limit)
