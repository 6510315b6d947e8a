"""The drivers as functions of tensors, through the emulation: what the tests compare."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tests.cuda_emulation import emulator as e
from tests.cuda_emulation.emulator import Emulator, pointer
from vae_fast.types import GATHER_MODES


@dataclass
class Up:
    """An upstream gradient, as csrc/ops/args.h has it."""

    loss: torch.Tensor | None = None
    part: torch.Tensor | None = None
    weight: float = 1.0
    weight_tensor: torch.Tensor | None = None
    scale: float = 1.0
    per_row: bool = False

    def struct(self, run: Emulator) -> ctypes.Structure:
        loss, part, weight = (run.give(t) for t in (self.loss, self.part, self.weight_tensor))
        return run.structs["Upstream"](
            pointer(loss), pointer(part), self.weight, pointer(weight), self.scale, self.per_row
        )

    def factor(self, rows: int) -> torch.Tensor:
        """The gradient that reaches each row's part, (rows, 1), float64, by the rule in args.h."""
        weight = self.weight * (1.0 if self.weight_tensor is None else self.weight_tensor.item())
        if self.loss is None and self.part is None:
            return torch.full((rows, 1), self.scale * weight, dtype=torch.float64)
        total = torch.zeros(rows, 1, dtype=torch.float64)
        for tensor, times in ((self.loss, weight), (self.part, 1.0)):
            if tensor is not None:
                total += times * tensor.double().reshape(-1, 1)  # one value, or one per row
        return self.scale * total


def accuracy(
    found: torch.Tensor, expected: torch.Tensor, scale: torch.Tensor | float | None = None
) -> None:
    """Assert that ``found`` is the float64 ``expected``, up to rounding of its dtype and arithmetic.

    Arithmetic is float64 for float64, else float32. It may be off by 8 units of ``scale``: the size
    of the terms that were added up (by default the largest result, or 1).
    """
    assert found.shape == expected.shape, (found.shape, expected.shape)
    expected = expected.double()
    arithmetic = torch.finfo(e.accumulator(found.dtype)).eps
    if scale is None:
        finite = expected[expected.isfinite()].abs()
        scale = max(1.0, finite.max().item() if finite.numel() else 1.0)
    storage = torch.finfo(found.dtype)
    bound = 0.501 * storage.eps * expected.abs() + storage.smallest_normal * storage.eps
    bound = bound + 8 * arithmetic * scale
    wrong = ~((found.double() - expected).abs() <= bound)
    wrong &= ~((found.double() == expected) | (found.isnan() & expected.isnan()))
    if wrong.any():
        first = tuple(int(i[0]) for i in wrong.nonzero(as_tuple=True)) if wrong.dim() else ()
        raise AssertionError(
            f"{int(wrong.sum())} of {wrong.numel()} are off; the first is {found[first].item()!r} "
            f"at {first}, where {expected[first].item()!r} is right"
        )


def sums_shape(reduction: str, rows: int) -> tuple[int, ...]:
    return (rows,) if reduction == "none" else ()


def philox_words(run: Emulator, key: torch.Tensor, first: int, counters: int) -> torch.Tensor:
    run.begin()
    key, words = run.give(key), run.take((4 * counters,), torch.int32)
    code = run.lib.emulated_philox_words(pointer(key), first, counters, pointer(words))
    run.finish(code)
    return words.long() & 0xFFFFFFFF


def gaussian_forward(
    run: Emulator,
    mu: torch.Tensor,
    logvar: torch.Tensor,
    prior: tuple[torch.Tensor, torch.Tensor] | None = None,
    key: torch.Tensor | None = None,
    num_samples: int = 1,
    kl: bool = True,
    reduction: str = "sum",
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """z (num_samples, rows, cols) if a key is given, and the KL if it is asked for."""
    rows, cols = mu.shape
    args = run.structs["GaussianForward"](dtype=e.code(mu.dtype), rows=rows, cols=cols)
    prior_mu, prior_logvar = prior or (None, None)
    inputs = {
        "mu": mu,
        "logvar": logvar,
        "prior_mu": prior_mu,
        "prior_logvar": prior_logvar,
    }
    for name, t in inputs.items():
        setattr(args, name, pointer(run.give(t)))
    args.key = pointer(None if key is None else _key(run, key))
    args.num_samples = num_samples
    args.reduction = e.REDUCTIONS.index(reduction)
    z = run.take((num_samples, rows, cols), mu.dtype) if key is not None else None
    sums = run.take(sums_shape(reduction, rows), e.accumulator(mu.dtype)) if kl else None
    args.z, args.kl = pointer(z), pointer(sums)
    run.run("gaussian_forward", args)
    return z, sums


def gaussian_backward(
    run: Emulator,
    mu: torch.Tensor,
    logvar: torch.Tensor,
    prior: tuple[torch.Tensor, torch.Tensor] | None = None,
    key: torch.Tensor | None = None,
    grad_z: torch.Tensor | None = None,
    up: Up | None = None,
) -> list[torch.Tensor]:
    """Gradients of mu, logvar and, if given, the prior's two. ``up``: what reaches the KL."""
    rows, cols = mu.shape
    args = run.structs["GaussianBackward"](
        dtype=e.code(mu.dtype), rows=rows, cols=cols, num_samples=1
    )
    names = ["mu", "logvar", *(["prior_mu", "prior_logvar"] if prior else [])]
    for name, t in zip(names, (mu, logvar, *(prior or ())), strict=True):
        if name != "mu" or up is not None:
            setattr(args, name, pointer(run.give(t)))
    if grad_z is not None:
        args.key, args.grad_z = pointer(run.give(key)), pointer(run.give(grad_z))
        args.num_samples = grad_z.shape[0]
    if up is not None:
        args.has_kl, args.grad_kl = True, up.struct(run)
    grads = [run.take((rows, cols), mu.dtype) for _ in names]
    for name, t in zip(names, grads, strict=True):
        setattr(args, f"grad_{name}", pointer(t))
    run.run("gaussian_backward", args)
    return grads


def _likelihood(
    run: Emulator,
    name: str,
    params: Sequence[torch.Tensor],
    target: torch.Tensor,
    reduction: str,
    up: Up | None,
    wanted: Sequence[bool] | None,
) -> tuple[ctypes.Structure, list[torch.Tensor | None] | None]:
    rows, cols = target.shape
    operand, dtype = run.structs["Operand"], params[0].dtype
    args = run.structs["Likelihood"](
        id=list(run.likelihoods).index(name),
        dtype=e.code(dtype),
        target_dtype=e.code(target.dtype),
        rows=rows,
        target_rows=rows,
        planes=1,
        inner=cols,
        target=pointer(run.give(target)),
        reduction=e.REDUCTIONS.index(reduction),
    )
    for j, p in enumerate(params):
        args.params[j] = operand(pointer(run.give(p)), cols, 0, 1)
    if up is None:
        return args, None
    args.grad_nll = up.struct(run)
    grads = [run.take((rows, cols), dtype) if w else None for w in wanted or [True] * len(params)]
    for j, grad in enumerate(grads):
        args.grads[j] = operand(pointer(grad), cols, 0, 1)
    return args, grads


def nll(
    run: Emulator,
    name: str,
    params: Sequence[torch.Tensor],
    target: torch.Tensor,
    *,
    value: bool = True,
    reduction: str = "sum",
    up: Up | None = None,
    wanted: Sequence[bool] | None = None,
) -> tuple[torch.Tensor | None, list[torch.Tensor | None] | None]:
    """-log p if ``value``, and its gradients if there is an upstream (of the parameters wanted)."""
    args, grads = _likelihood(run, name, params, target, reduction, up, wanted)
    found = None
    if value:
        found = run.take(sums_shape(reduction, len(target)), e.accumulator(params[0].dtype))
    args.nll = pointer(found)
    run.run("nll", args)
    return found, grads


def elbo(
    run: Emulator,
    name: str,
    params: Sequence[torch.Tensor],
    target: torch.Tensor,
    mu: torch.Tensor,
    logvar: torch.Tensor,
    *,
    beta: float = 1.0,
    beta_tensor: torch.Tensor | None = None,
    value: bool = True,
    reduction: str = "sum",
    ups: tuple[Up, Up] | None = None,
) -> tuple[list[torch.Tensor] | None, list[torch.Tensor] | None]:
    """[loss, recon, kl] if ``value``; the gradients of the parameters, mu and logvar if there are
    upstreams (the reconstruction's and the KL's)."""
    recon, grads = _likelihood(run, name, params, target, reduction, ups[0] if ups else None, None)
    args = run.structs["Elbo"](
        recon=recon,
        kl_dtype=e.code(mu.dtype),
        kl_cols=mu.shape[1],
        mu=pointer(run.give(mu)),
        logvar=pointer(run.give(logvar)),
        beta=beta,
        beta_tensor=pointer(run.give(beta_tensor)),
    )
    losses = None
    if value:
        shape, dtype = sums_shape(reduction, len(target)), e.accumulator(params[0].dtype)
        losses = [run.take(shape, dtype) for _ in range(3)]
        args.loss, args.recon.nll, args.kl = (pointer(t) for t in losses)
    if ups is not None:
        of_kl = [run.take(tuple(mu.shape), mu.dtype) for _ in range(2)]
        args.grad_mu, args.grad_logvar = (pointer(t) for t in of_kl)
        args.grad_kl = ups[1].struct(run)
        grads = [*grads, *of_kl]
    run.run("elbo", args)
    return losses, grads


def gather(
    run: Emulator,
    data: torch.Tensor,
    index: torch.Tensor,
    mode: str,
    key: torch.Tensor | None = None,
    first_row: int = 0,
    first_row_tensor: torch.Tensor | None = None,
) -> torch.Tensor:
    """The batch (B, columns) of data (N, columns); the offset is that of data and of the batch."""
    args = run.structs["Gather"](
        dtype=e.code(data.dtype),
        mode=GATHER_MODES.index(mode),
        samples=len(data),
        rows=len(index),
        cols=data.shape[1],
        data=pointer(run.give(data)),
        first_row=first_row,
    )
    offset, run.offset = run.offset, 0
    for name, t in (("index", index), ("key", key), ("first_row_tensor", first_row_tensor)):
        setattr(args, name, pointer(run.give(t)))
    run.offset = offset
    dtype = {"bytes": data.dtype, "scale": torch.float32, "binarize": torch.bool}[mode]
    out = run.take((len(index), data.shape[1]), dtype)
    args.out = pointer(out)
    run.run("gather", args)
    return out


def _group_norm(
    run: Emulator,
    kind: str,
    x: torch.Tensor,
    groups: int,
    last: bool,
    **inputs: torch.Tensor | None,
) -> ctypes.Structure:
    """x is (rows, channels, inner), or (rows, inner, channels) where it is channels-last."""
    rows, channels, inner = (x.shape[i] for i in ((0, 2, 1) if last else (0, 1, 2)))
    args = run.structs[kind](
        dtype=e.code(x.dtype),
        channels_last=last,
        silu=True,
        rows=rows,
        channels=channels,
        groups=groups,
        inner=inner,
    )
    for name, t in {"x": x, **inputs}.items():
        setattr(args, name, pointer(run.give(t)))
    return args


def group_norm(
    run: Emulator,
    x: torch.Tensor,
    groups: int,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
    last: bool,
) -> list[torch.Tensor]:
    """[y, mean, rstd]"""
    args = _group_norm(run, "GroupNorm", x, groups, last, weight=weight, bias=bias)
    args.eps = eps
    sums = e.accumulator(x.dtype)
    found = [run.take(tuple(x.shape), x.dtype)]
    found += [run.take((args.rows, groups), sums) for _ in range(2)]
    args.y, args.mean, args.rstd = (pointer(t) for t in found)
    run.run("group_norm", args)
    return found


def group_norm_backward(
    run: Emulator,
    grad_y: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    mean: torch.Tensor,
    rstd: torch.Tensor,
    last: bool,
) -> list[torch.Tensor]:
    """[grad_x, grad_weight, grad_bias]"""
    inputs = {"weight": weight, "bias": bias, "mean": mean, "rstd": rstd, "grad_y": grad_y}
    args = _group_norm(run, "GroupNormBackward", x, mean.shape[1], last, **inputs)
    found = [run.take(tuple(x.shape), x.dtype)]
    found += [run.take((args.channels,), e.accumulator(x.dtype)) for _ in range(2)]
    args.grad_x, args.grad_weight, args.grad_bias = (pointer(t) for t in found)
    run.run("group_norm_backward", args)
    return found


def step_sample(run: Emulator, heads: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    rows, latent = len(heads), heads.shape[1] // 2
    z = run.take((rows, latent), torch.float32)
    given = {"heads": run.give(heads), "key": _key(run, key), "z": z}
    pointers = {name: pointer(t) for name, t in given.items()}
    run.run("step_sample", run.structs["StepSample"](rows=rows, latent=latent, **pointers))
    return z


def step_sample_backward(
    run: Emulator,
    grad_z: torch.Tensor,
    heads: torch.Tensor,
    key: torch.Tensor,
    beta: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    rows, latent = grad_z.shape
    grad = run.take(tuple(heads.shape), torch.float32)
    given = {
        name: run.give(t) for name, t in (("heads", heads), ("grad_z", grad_z), ("beta", beta))
    }
    given |= {"key": _key(run, key), "grad_heads": grad}
    pointers = {name: pointer(t) for name, t in given.items()}
    kind = run.structs["StepSampleBackward"]
    run.run("step_sample_backward", kind(rows=rows, latent=latent, scale=scale, **pointers))
    return grad


def step_decide(
    run: Emulator,
    *,
    ranges: Sequence[tuple[int, int]],
    columns: Sequence[tuple[int, torch.Tensor]],
    rows: int,
    guard: Sequence[float],
    **given: torch.Tensor | None,
) -> dict[str, torch.Tensor]:
    """``gradients``, ``usual``, ``steps`` and ``sums`` after the call, and the ``outcome``."""
    heads = given["heads"]
    args = run.structs["StepDecide"](rows=rows, beta1=0.9, beta2=0.999)
    args.latent = 0 if heads is None else heads.shape[1] // 2
    part = run.structs["StepPart"]
    parts = [part(begin, count, None) for begin, count in ranges]
    parts += [part(place, t.shape[1], pointer(run.give(t))) for place, t in columns]
    args.parts = len(parts)
    for i, one in enumerate(parts):
        args.part[i] = one
    names = ("clip", "skip_above", "patience", "settling", "followed")
    for name, value in zip(names, guard, strict=True):
        setattr(args, name, value)
    for name in ("recon", "heads", "beta"):
        setattr(args, name, pointer(run.give(given[name])))
    found = {name: run.change(given[name]) for name in ("gradients", "usual", "steps", "sums")}
    found["outcome"] = run.take((5,), torch.float32)
    for name, t in found.items():
        setattr(args, name, pointer(t))
    run.run("step_decide", args)
    return found


def step_update(
    run: Emulator,
    weights: torch.Tensor,
    gradients: torch.Tensor,
    first: torch.Tensor,
    second: torch.Tensor,
    average: torch.Tensor | None,
    outcome: torch.Tensor,
    lr: float,
    average_weight: float,
    betas: tuple[float, float],
    **options: float | bool,
) -> list[torch.Tensor | None]:
    """Weights, both moments and the average after the call."""
    args = run.structs["StepUpdate"](n=len(weights), beta1=betas[0], beta2=betas[1], **options)
    changed = {"weights": weights, "first": first, "second": second, "average": average}
    found = {name: run.change(t) for name, t in changed.items()}
    numbers = {"lr": torch.tensor(lr), "average_weight": torch.tensor(average_weight)}
    given = {"gradients": gradients, "outcome": outcome, **numbers}
    for name, t in (found | {name: run.give(t) for name, t in given.items()}).items():
        setattr(args, name, pointer(t))
    run.run("step_update", args)
    return list(found.values())


def _key(run: Emulator, key: torch.Tensor) -> torch.Tensor:
    offset, run.offset = run.offset, 0  # a key is a separate tensor, so it is aligned
    given, run.offset = run.give(key), offset
    return given
