"""-log p and -log p + beta * KL of every likelihood in ``SPECS``, by name and as functions.

``SPECS`` generates the functions ``NAME_nll``: one for each family, with named parameters.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any, cast

import torch

from vae_fast import reference
from vae_fast.backend import has_native, takes_small_calls, use_native
from vae_fast.functional.checks import FLOATING, gaussian_pair, reduction_code
from vae_fast.likelihoods import SPECS, Spec
from vae_fast.likelihoods.bernoulli import BERNOULLI_PROBS
from vae_fast.types import LossOutput, Reduction, TermsReduction

if has_native("cpu"):
    from vae_fast.ops import likelihood as _native

Param = torch.Tensor | float

_INTEGERS = frozenset({torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64})
# The possible dtypes of each kind of target, and their meaning.
TARGETS = {
    "unit": (FLOATING | {torch.uint8, torch.bool}, "floating (0..1), uint8 (x / 255) or bool"),
    "real": (FLOATING | {torch.uint8, torch.bool}, "floating, uint8 (x / 255) or bool"),
    "count": (FLOATING | _INTEGERS | {torch.bool}, "counts, in any integer or floating dtype"),
    "level": (FLOATING | _INTEGERS, "levels of 0..255, in any integer or floating dtype"),
    "category": (_INTEGERS, "class numbers, in an integer dtype"),
}


def spec_of(likelihood: str | Spec) -> Spec:
    if isinstance(likelihood, Spec):
        return likelihood
    spec = SPECS.get(likelihood)
    if spec is None:
        raise ValueError(f"likelihood must be one of {', '.join(SPECS)}, got {likelihood!r}")
    return spec


def check_target(spec: Spec, target: torch.Tensor) -> None:
    if not isinstance(target, torch.Tensor):
        raise TypeError(f"target must be a tensor, got {type(target).__name__}")
    allowed, meaning = TARGETS[spec.target]
    if target.dtype not in allowed:
        raise TypeError(
            f"target must be {meaning}, for {spec.name}; got {target.dtype}: convert it with "
            "target.float(), or with target.to(torch.uint8) if it holds bytes"
        )
    if target.layout is not torch.strided or target.is_nested:
        raise TypeError("target must be a dense tensor, neither sparse nor nested")


if has_native("cpu"):
    for _spec in SPECS.values():
        _native.add_to_node(_spec, TARGETS[_spec.target][0])


def _tensors(
    spec: Spec, params: Sequence[Param], like: torch.Tensor, names: Sequence[str]
) -> list[torch.Tensor]:
    """The parameters, numbers too, as tensors of one floating dtype."""
    if len(params) != len(names) and len(params) != 1:
        raise ValueError(
            f"{spec.name} has the parameters {', '.join(names)}, got {len(params)} of them: give "
            "each, or one tensor with all of them stacked in dim 1"
        )
    dtype = None
    for name, p in zip(names, params, strict=False):
        if isinstance(p, torch.Tensor):
            if p.dtype not in FLOATING:
                raise TypeError(
                    f"{name} must be float32, float64, bfloat16 or float16, got {p.dtype}: "
                    f"convert it with {name}.float()"
                )
            if p.layout is not torch.strided or p.is_nested:
                raise TypeError(f"{name} must be a dense tensor, neither sparse nor nested")
            if p.device != like.device:
                raise ValueError(
                    f"{name} is on {p.device}, target on {like.device}: move them to one device"
                )
            dtype = (
                p.dtype
                if dtype is None or dtype == p.dtype
                else (torch.promote_types(dtype, p.dtype))
            )
        elif not isinstance(p, Real) or isinstance(p, bool):
            raise TypeError(
                f"{name} must be a tensor{', or a number' if len(names) > 1 else ''}, "
                f"got {type(p).__name__}"
            )
    if dtype is None:
        raise TypeError(f"one of {', '.join(names)} must be a tensor")
    return [
        (p if p.dtype == dtype else p.to(dtype))
        if isinstance(p, torch.Tensor)
        else torch.tensor(float(p), dtype=dtype, device=like.device)
        for p in params
    ]


def _is_usual(spec: Spec, params: Sequence[Param], target: torch.Tensor) -> bool:
    """Whether the arguments need no conversion and no further check: the full checks take most of a
    small call's time."""
    if type(target) is not torch.Tensor or spec.planes or len(params) != len(spec.params):
        return False
    first = params[0]
    dtype, shape, device = getattr(first, "dtype", None), target.shape, target.device
    if dtype not in FLOATING or target.dtype not in TARGETS[spec.target][0]:
        return False
    for p in params:
        if not isinstance(p, torch.Tensor) or p.dtype is not dtype or p.shape != shape:
            return False
        if p.device != device or p.layout is not torch.strided or p.is_nested:
            return False
    return target.layout is torch.strided and not target.is_nested


def check_params(
    spec: Spec, params: Sequence[Param], target: torch.Tensor, names: Sequence[str] = ()
) -> list[torch.Tensor]:
    """Check parameters and target; returns the parameters as tensors of one dtype.

    ``names``: the caller's names of the parameters, if they differ from the Spec's.
    """
    names = names or spec.params
    if _is_usual(spec, params, target):
        return cast("list[torch.Tensor]", list(params))
    check_target(spec, target)
    params = _tensors(spec, params, target, names)
    if spec.planes:
        return _check_planes(spec, params[0], target)
    shape = target.shape
    if len(params) == 1 and len(spec.params) > 1:
        (stacked,), count = params, len(spec.params)
        wanted = (shape[0], count * shape[1], *shape[2:]) if len(shape) >= 2 else None
        if tuple(stacked.shape) != wanted:
            raise ValueError(
                f"one tensor for {', '.join(spec.params)} must hold them stacked in dim 1, "
                f"{wanted or '(N, ' + str(count) + ' * C, ...)'} for a target of {tuple(shape)}; "
                f"got {tuple(stacked.shape)}"
            )
        return params
    for name, p in zip(names, params, strict=True):
        if p.shape == shape:
            continue
        fits = p.dim() <= len(shape) and all(
            size in (1, full)
            for size, full in zip(reversed(p.shape), reversed(shape), strict=False)
        )
        strict = spec.family == "bernoulli"  # its logits do not broadcast
        if not fits or (strict and p.numel() != target.numel()):
            raise ValueError(
                f"{name} has shape {tuple(p.shape)}, target has shape {tuple(shape)}: "
                + ("they must be equal" if strict else f"{name} must broadcast to target")
            )
    return params


def _check_planes(spec: Spec, planes: torch.Tensor, target: torch.Tensor) -> list[torch.Tensor]:
    shape = target.shape
    rest = shape if spec.target == "category" else (shape[0], *shape[2:])
    channels_fit = spec.target == "category" or (len(shape) >= 2 and shape[1] == spec.planes)
    if planes.dim() < 2 or (planes.shape[0], *planes.shape[2:]) != tuple(rest) or not channels_fit:
        wanted = "(N, ...)" if spec.target == "category" else f"(N, {spec.planes}, ...)"
        raise ValueError(
            f"{spec.params[0]} must be (N, planes, ...) and target {wanted}, got "
            f"{tuple(planes.shape)} and {tuple(shape)}"
        )
    return [planes]


def _check_order(
    spec: Spec, params: Sequence[torch.Tensor], target: torch.Tensor, names: Sequence[str]
) -> None:
    """Raise if only the target has a gradient: then a model's output was probably swapped with the
    data. (A density of real numbers may be symmetric in the two.)"""
    if spec.target == "real" or not target.requires_grad or not torch.is_grad_enabled():
        return
    if not any(p.requires_grad for p in params):
        named = ", ".join(names or spec.params)
        raise ValueError(
            f"target requires grad and {named} {'do' if len(spec.params) > 1 else 'does'} not: the "
            f"order is {named}, then the target, and they look swapped"
        )


def check_unit_range(spec: Spec, value: torch.Tensor, *data: torch.Tensor | float) -> None:
    """Raise, as F.binary_cross_entropy does, where probabilities or targets leave [0, 1].

    The kernel returns NaN in this case, so the check costs nothing else. On a GPU the device
    asserts, as in torch, and the host does not wait. While a graph is traced, the result stays NaN.
    """
    if spec is not BERNOULLI_PROBS or torch.compiler.is_compiling():
        return
    from vae_fast.ops.autograd import is_plain

    if not is_plain(value) or value.device.type not in ("cpu", "cuda"):
        return
    if value.is_cuda:
        torch._assert_async(
            value.isnan().any().logical_not(),
            "all elements of probabilities and target must be between 0 and 1",
        )
        return
    if not bool(value.isnan().any()):
        return
    for name, t in zip(("probabilities", "target"), data, strict=True):
        if (
            isinstance(t, torch.Tensor)
            and t.is_floating_point()
            and bool(((t < 0) | (t > 1)).any())
        ):
            raise RuntimeError(
                f"all elements of {name} must be between 0 and 1, as F.binary_cross_entropy asks; "
                f"they lie between {t.nan_to_num().min():g} and {t.nan_to_num().max():g}. "
                + (
                    "Is a sigmoid missing? (vae_fast.bernoulli_nll takes logits.)"
                    if name == "probabilities"
                    else "Scale the data to [0, 1]; data normalised to a mean and a deviation, or to "
                    "[-1, 1], have no Bernoulli likelihood."
                )
            )


def _is_native(spec: Spec, target: torch.Tensor) -> bool:
    """Whether the kernels compute this call. Likelihoods that the GPU's library lacks run in plain
    PyTorch there."""
    device = target.device.type
    return use_native(device) and _native.serves(spec, device)


def nll(
    likelihood: str | Spec,
    params: Sequence[Param] | torch.Tensor,
    target: torch.Tensor,
    *,
    reduction: TermsReduction = "sum",
) -> torch.Tensor:
    """-log p(target | params) in nats, of any likelihood in ``vae_fast.likelihoods.SPECS``.

    Args:
        likelihood: its name.
        params: its parameters in order, each a tensor that broadcasts to the target (a CPU does not
            expand shared ones, such as a gene's dispersion) or a number; or one tensor with all of
            them stacked in dim 1, (N, params * C, ...).
        target: (N, ...), in a dtype that fits the likelihood: counts and levels as any integers or
            floats, [0, 1] and real data as floats, uint8 (x stands for x / 255) or bool.
        reduction: "sum", "batchmean" (sum over features, mean over samples), "none" (N,), or
            "elementwise", a term for each of the target's elements, in plain PyTorch.
    """
    params = [params] if isinstance(params, torch.Tensor) else params
    return nll_of(spec_of(likelihood), params, target, reduction)


def nll_of(
    spec: Spec,
    params: Sequence[Param],
    target: torch.Tensor,
    reduction: TermsReduction,
    names: Sequence[str] = (),
) -> torch.Tensor:
    """``nll`` for a function with its own ``names`` of the parameters."""
    code = reduction_code(reduction, elementwise=True)
    if code is not None and takes_small_calls():
        value = _native.small_nll(spec, params, target, code)
        if value is not None:
            check_unit_range(spec, value, params[0], target)
            return value
    tensors = check_params(spec, params, target, names)
    _check_order(spec, tensors, target, names)
    if code is None:
        value = reference.nll_terms(spec, tensors, target)
    elif _is_native(spec, target):
        value = _native.nll(spec, tensors, target, code)
    else:
        value = reference.nll(spec, tensors, target, reduction)
    check_unit_range(spec, value, tensors[0], target)
    return value


def elbo(
    likelihood: str | Spec,
    params: Sequence[Param] | torch.Tensor,
    target: torch.Tensor,
    mu: torch.Tensor,
    logvar: torch.Tensor,
    *,
    beta: float | torch.Tensor = 1.0,
    reduction: Reduction = "sum",
) -> LossOutput:
    """The negative ELBO, ``nll + beta * gaussian_kl``, in one op, for any likelihood.

    Kingma & Welling 2014, equation 10; beta as in Higgins et al. 2017.

    Args:
        likelihood, params, target, reduction: as for ``nll``.
        mu, logvar: (N, ...), as for ``gaussian_kl``; their own shape, the same N.
        beta: the KL's weight, a number or a 0-d tensor (which gets no gradient).

    Returns:
        LossOutput(loss, recon, kl) in nats, recon and kl unweighted.
    """
    params = [params] if isinstance(params, torch.Tensor) else params
    return elbo_of(spec_of(likelihood), params, target, mu, logvar, beta, reduction)


def elbo_of(
    spec: Spec,
    params: Sequence[Param],
    target: torch.Tensor,
    mu: torch.Tensor,
    logvar: torch.Tensor,
    beta: float | torch.Tensor,
    reduction: Reduction,
    names: Sequence[str] = (),
) -> LossOutput:
    """``elbo`` for a function with its own ``names`` of the parameters."""
    code = reduction_code(reduction)
    if code is not None and takes_small_calls():
        out = _native.small_elbo(spec, params, target, mu, logvar, beta, code)
        if out is not None:
            check_unit_range(spec, out.recon, params[0], target)
            return out
    tensors = check_params(spec, params, target, names)
    _check_order(spec, tensors, target, names)
    first = (names or spec.params)[0]
    mu, logvar = gaussian_pair(mu, logvar)
    if mu.device != target.device:
        raise ValueError(f"mu is on {mu.device}, {first} on {target.device}: move to one device")
    samples = target.shape[0] if spec.planes else reference.samples_of(target)
    if reference.samples_of(mu) != samples:
        raise ValueError(
            f"{first} has {samples} samples (shape {tuple(target.shape)}), "
            f"mu has {reference.samples_of(mu)} (shape {tuple(mu.shape)}): they must be equal"
        )
    beta = check_beta(beta, tensors[0])
    if _is_native(spec, target):
        out = _native.elbo(spec, tensors, target, mu, logvar, beta, code)
    else:
        out = reference.elbo(spec, tensors, target, mu, logvar, beta, reduction)
    check_unit_range(spec, out.recon, tensors[0], target)
    return out


def check_beta(beta: float | torch.Tensor, like: torch.Tensor) -> float | torch.Tensor:
    if isinstance(beta, torch.Tensor):
        if beta.numel() != 1 or beta.is_complex() or beta.layout is not torch.strided:
            found = f"{tuple(beta.shape)}, {beta.dtype}, {beta.layout}"
            raise ValueError(f"beta must be one number, got a tensor of {found}")
        if beta.device != like.device and beta.device.type != "cpu":
            raise ValueError(
                f"beta is on {beta.device}, the likelihood's parameters on {like.device}: move them "
                "to one device"
            )
        return beta.detach().reshape(())
    if not isinstance(beta, Real):
        raise TypeError(f"beta must be a number or a 0-d tensor, got {type(beta).__name__}")
    try:
        beta = float(beta)
    except OverflowError:
        raise ValueError(f"beta is beyond a float's range: {str(beta)[:20]}...") from None
    if torch.compiler.is_compiling():  # otherwise the op would be compiled for each number
        dtype = torch.promote_types(like.dtype, torch.float32)
        return torch.ones((), dtype=dtype, device=like.device) * beta
    return beta


# --- a function for each family ------------------------------------------------------------------


def _families() -> dict[str, list[Spec]]:
    """The likelihoods by family: the parametrisations of one distribution."""
    families: dict[str, list[Spec]] = {}
    for spec in SPECS.values():
        families.setdefault(spec.family, []).append(spec)
    return families


def _function(family: str, specs: list[Spec]) -> Callable[..., torch.Tensor]:
    usual, *others = specs
    extra = [n for spec in others for n in spec.params if n not in usual.params]
    extra = list(dict.fromkeys(extra))
    positional = [*usual.params, "target"]

    def function(*args: Any, reduction: Reduction = "sum", **named: Any) -> Any:
        if len(args) == len(positional) and not named and not any(a is None for a in args):
            *params, target = args
            return nll_of(usual, params, target, reduction)
        if len(args) > len(positional):
            raise TypeError(f"{family}_nll takes {len(positional)} arguments, got {len(args)}")
        given = dict(zip(positional, args, strict=False))
        for name, value in named.items():
            if name not in positional and name not in extra:
                raise TypeError(f"{family}_nll has no argument {name!r}")
            if given.get(name) is not None:
                raise TypeError(f"{family}_nll got {name} twice")
            given[name] = value
        given = {name: value for name, value in given.items() if value is not None}
        if "target" not in given:
            raise TypeError(f"{family}_nll needs a target, after {', '.join(usual.params)}")
        target = given.pop("target")
        for spec in specs:
            if set(spec.params) == set(given):
                return nll(spec, [given[n] for n in spec.params], target, reduction=reduction)
        if set(given) == {usual.params[0]}:  # stacked parameters
            return nll(usual, [given[usual.params[0]]], target, reduction=reduction)
        choices = " or ".join(f"({', '.join(spec.params)})" for spec in specs)
        raise TypeError(f"{family}_nll takes {choices}; got ({', '.join(given)})")

    keyword, either = inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
    function.__dict__["__signature__"] = inspect.Signature(
        [inspect.Parameter(n, either, default=None) for n in positional]
        + [inspect.Parameter(n, keyword, default=None) for n in extra]
        + [inspect.Parameter("reduction", keyword, default="sum")]
    )
    function.__name__ = function.__qualname__ = f"{family}_nll"
    function.__module__ = __name__
    function.__doc__ = f"""-log p(target | {", ".join(usual.params)}) in nats.

{inspect.getdoc(inspect.getmodule(usual.terms))}

Args:
    {", ".join(usual.params)}: each a tensor that broadcasts to the target, or a number; or all of
        them stacked in dim 1 of the first, with the others left out.
    target: (N, ...): {TARGETS[usual.target][1]}.
    {(", ".join(extra) + ": another form of a parameter, in place of it.") if extra else ""}
    reduction: "sum", "batchmean" (sum over features, mean over samples) or "none" (N,).
"""
    return function


# The Bernoulli's functions are in functional/bernoulli.py.
FUNCTIONS = {
    f"{family}_nll": _function(family, specs)
    for family, specs in _families().items()
    if family != "bernoulli"
}
