"""The native likelihoods under autograd: -log p, and -log p + beta * KL.

One pair of autograd functions serves all likelihoods. On the CPU forward computes the gradients
too, while parameters and target are in the cache, and backward returns them. On the GPU, and while
torch.compile traces, backward computes them from the saved inputs: there, reading 5 bytes and
writing 4 per element costs less than rescaling gradients.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from vae_fast import reference
from vae_fast.backend import has_native, library, node
from vae_fast.likelihoods import SPECS, Spec
from vae_fast.ops.autograd import (
    beyond_native,
    differentiable_again,
    distinct,
    is_batched,
    is_plain,
    needs_grad,
)
from vae_fast.ops.bernoulli_slope import BernoulliSlope
from vae_fast.ops.fake import register_fake
from vae_fast.ops.gaussian import _pair as gaussian_pair
from vae_fast.ops.gaussian import grads_again as gaussian_grads_again
from vae_fast.ops.layout import dense, like
from vae_fast.reference import compute_dtype
from vae_fast.types import REDUCTIONS, LossOutput

Maybe = torch.Tensor | None
NONE, SUM, BATCHMEAN = range(3)  # reductions


class Ops(NamedTuple):
    """The native ops of one likelihood; csrc/torch/likelihood.h has their schemas."""

    nll: Callable[..., Any]
    nll_backward: Callable[..., Any]
    nll_with_grad: Callable[..., Any]
    nll_with_grad_out: Callable[..., Any]
    elbo: Callable[..., Any]
    elbo_backward: Callable[..., Any]
    elbo_with_grad: Callable[..., Any]


@functools.cache
def ops_of(name: str) -> Ops:
    return Ops(*(getattr(torch.ops.vae_fast, f"{name}_{op}").default for op in Ops._fields))


# --- arguments in the shapes that the kernels read -----------------------------------------------

# The CUDA library's likelihoods, and whether each reads half precision.
_ON_CUDA: dict[str, bool] = library("cuda").likelihoods() if has_native("cuda") else {}


def serves(spec: Spec, device_type: str) -> bool:
    """Whether the device's library has this likelihood. The GPU's has none with planes."""
    return device_type != "cuda" or spec.name in _ON_CUDA


def in_accepted_dtype(target: Tensor, dtype: torch.dtype) -> Tensor:
    """The target in a dtype that CUDA kernels accept with parameters of ``dtype``: the same dtype,
    float32 with half precision, uint8 or bool."""
    if target.dtype in (dtype, torch.uint8, torch.bool):
        return target
    return target.to(torch.float64 if dtype == torch.float64 else torch.float32)


def flat(
    params: Sequence[Tensor], target: Tensor, count: int, reads_half: bool
) -> tuple[list[Tensor], Tensor]:
    """The arguments of the CUDA kernels, from those of ``_prepare``: ``count`` parameters in the
    target's shape and layout, and a target in an accepted dtype.

    Shared and stacked parameters are expanded, and the target is repeated for K sets of samples.
    Autograd sums the gradients of shared parameters.
    """
    if not reads_half:
        params = [p.to(compute_dtype(p)) for p in params]
    target = in_accepted_dtype(target, params[0].dtype)
    if len(params) < count:
        params = params[0].tensor_split(count, 1)
    rows = max(p.shape[0] for p in params) if target.dim() >= 2 else 0
    if target.dim() >= 2 and rows > target.shape[0] > 0:
        target = target.repeat(rows // target.shape[0], *[1] * (target.dim() - 1))
    if any(p.shape != target.shape or p.stride() != target.stride() for p in params):
        params, target = [p.expand(target.shape).contiguous() for p in params], target.contiguous()
    return list(params), target


def prepare(spec: Spec, params: Sequence[Tensor], target: Tensor) -> tuple[list[Tensor], Tensor]:
    """Parameters and target in the shapes and dtypes that the kernels of their device read."""
    params, target = _prepare(spec, params, target)
    if target.is_cuda:
        return flat(params, target, len(spec.params), _ON_CUDA[spec.name])
    return params, target


def _prepare(spec: Spec, params: Sequence[Tensor], target: Tensor) -> tuple[list[Tensor], Tensor]:
    """Parameters and target in the shapes of csrc/torch/likelihood.h."""
    if spec.planes:
        return [params[0].contiguous()], target.contiguous()
    shape, whole, contiguous = target.shape, True, True
    for p in params:
        # The number of dimensions first: a tracer would equate sizes of samples and features.
        whole = whole and p.dim() == len(shape) and p.shape == shape
        contiguous = contiguous and p.is_contiguous()
    if whole:
        if contiguous:
            return list(params), target.contiguous()
        first = dense(params[0])
        return [like(p, first) for p in params], like(target, first)
    target = target.contiguous()
    if len(params) == 1 and len(spec.params) > 1:  # stacked
        return [params[0].contiguous()], target
    if all(p.dim() == len(shape) + 1 and p.shape[1:] == shape for p in params):  # K sets
        return [p.contiguous().flatten(0, 1) for p in params], target
    return _shared(params, target)


def _shared(params: Sequence[Tensor], target: Tensor) -> tuple[list[Tensor], Tensor]:
    """Parameters (N or 1, C or 1, P or 1) and the target (N, C, P), for parameters that broadcast.

    The feature dimensions are split into two parts, of C and P elements, so that each parameter is
    either full or of size 1 in each part. If no split works, parameters are expanded.
    """
    shape = tuple(target.shape) if target.dim() >= 2 else (1, *target.shape)
    params = [p.reshape(*[1] * (len(shape) - p.dim()), *p.shape) for p in params]

    def is_uniform(p: Tensor, dims: range) -> bool:
        sizes = [(p.shape[d], shape[d]) for d in dims if shape[d] != 1]
        return all(size == full for size, full in sizes) or all(size == 1 for size, _ in sizes)

    features = range(1, len(shape))
    cuts = [range(1, c) for c in range(1, len(shape))]
    cut = next(
        (
            c
            for c in cuts
            if all(is_uniform(p, c) and is_uniform(p, range(c.stop, len(shape))) for p in params)
        ),
        range(1, 1),
    )
    rest = range(cut.stop, len(shape))
    views = []
    for p in params:
        if not (is_uniform(p, cut) and is_uniform(p, rest)):
            p = p.expand(p.shape[0], *(shape[d] for d in features))
        sizes = [math.prod(p.shape[d] for d in dims) for dims in (cut, rest)]
        views.append(p.reshape(p.shape[0], *sizes).contiguous())
    sizes = [math.prod(shape[d] for d in dims) for dims in (cut, rest)]
    return views, target.reshape(shape[0], *sizes)


def mean_scale(x: Tensor, reduction: int) -> float:
    """The factor of a sum's gradient: 1 / samples for batchmean, else 1."""
    return 1.0 / max(1, x.shape[0]) if reduction == BATCHMEAN and x.dim() >= 2 else 1.0


# --- gradients made in forward -------------------------------------------------------------------


def made_in_forward(t: Tensor, reduction: int) -> bool:
    """Whether forward computes the gradients too; see the module's docstring."""
    return t.is_cpu and reduction != NONE and not torch.compiler.is_compiling()


def rescaled(grads: Sequence[Tensor], grad_loss: Tensor) -> bool:
    """Multiply gradients, computed for an upstream gradient of 1, by the actual one, in place.

    False if they must be computed again: half precision has rounded them already, possibly to the
    zeros that loss scaling should prevent.
    """
    if not is_plain(grad_loss):
        return False
    on_host = grad_loss.is_cpu  # item() would wait for a GPU
    if on_host and grad_loss.item() == 1.0:
        return True
    if any(grad.element_size() < 4 for grad in grads):
        return False
    factor = grad_loss.item() if on_host else grad_loss
    for grad in grads:
        grad.mul_(factor)
    return True


def _mask(needs: Sequence[bool]) -> int:
    """The ops' ``wanted``: a bit mask of the parameters that need a gradient."""
    mask, bit = 0, 1
    for needed in needs:
        if needed:
            mask |= bit
        bit += bit
    return mask


def _spread(grads: Sequence[Tensor], needs: Sequence[bool]) -> list[Maybe]:
    """One gradient per parameter, None where not needed."""
    if all(needs):
        return list(grads)
    rest = iter(grads)
    return [next(rest) if needed else None for needed in needs]


def _dense(grad: Maybe) -> Maybe:
    return None if grad is None else grad.contiguous()


# --- -log p --------------------------------------------------------------------------------------


class _NLL(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, name: str, reduction: int, target: Tensor, *params: Tensor) -> Tensor:
        ctx.save_for_backward(target, *params)
        ctx.options = name, reduction
        ctx.grads = None
        ops, wanted = ops_of(name), _mask(ctx.needs_input_grad[3:])
        if wanted and made_in_forward(target, reduction):
            nll, ctx.grads = ops.nll_with_grad(params, target, reduction, 1.0, wanted)
            return nll
        return ops.nll(params, target, reduction)

    @staticmethod
    def backward(ctx: Any, grad_nll: Tensor) -> tuple[Tensor | None, ...]:
        # The gradients made in forward are given away, once: whoever gets them may write to them.
        grads, ctx.grads = ctx.grads, None
        needs = ctx.needs_input_grad[2:]
        name, reduction = ctx.options
        made = _nll_grads(name, reduction, ctx.saved_tensors, grad_nll, needs, grads)
        return None, None, *made


def _nll_grads(
    name: str,
    reduction: int,
    saved: Sequence[Tensor],
    grad_nll: Tensor,
    needs: Sequence[bool],
    grads: Sequence[Tensor] | None = None,
) -> Sequence[Maybe]:
    """The gradients of the target and the parameters, which are ``saved``.

    ``grads``: the parameters' gradients for an upstream gradient of 1, if forward computed them.
    """
    if beyond_native(grad_nll):
        if name == "bernoulli" and (slope := _bernoulli_slope(saved, grad_nll, needs, reduction)):
            return slope

        def value(t: Tensor, *p: Tensor) -> Tensor:
            return _reference_nll(name, reduction, t, p)

        return differentiable_again(value, saved, (grad_nll,), needs)
    target, *params = saved
    wanted = _mask(needs[1:])
    if wanted and (grads is None or not rescaled(grads, grad_nll)):
        grads = ops_of(name).nll_backward(grad_nll.contiguous(), params, target, reduction, wanted)
    grad_target = None
    if needs[0]:
        grad_target = _target_grad(name, reduction, target, params, grad_nll)
    return grad_target, *_spread(grads or (), needs[1:])


def _bernoulli_slope(
    saved: Sequence[Tensor], grad_nll: Tensor, needs: Sequence[bool], reduction: int
) -> Sequence[Maybe]:
    """``_nll_grads`` for gradients that will be differentiated; empty for arguments that this does
    not serve."""
    target, logits = saved
    usual = logits.dtype in (torch.float32, torch.float64) and grad_nll.dtype == logits.dtype
    if not usual or needs[0] or target.dim() < 2 or logits.shape != target.shape:
        return ()
    if is_batched(grad_nll):
        return ()

    def native(upstream: Tensor, logits: Tensor, target: Tensor) -> Tensor:
        params, target = prepare(SPECS["bernoulli"], [logits], target)
        wanted = ops_of("bernoulli").nll_backward
        (grad,) = wanted(upstream.contiguous(), params, target, reduction, 1)
        return cast(Tensor, grad.view_as(logits))

    scale = mean_scale(target, reduction)
    return None, BernoulliSlope.apply(native, scale, grad_nll, logits, target)


def _reference_nll(name: str, reduction: int, target: Tensor, params: Sequence[Tensor]) -> Tensor:
    spec = SPECS[name]
    if params[0].shape[0] > target.shape[0] and len(params) == len(spec.params) and not spec.planes:
        sets = params[0].shape[0] // target.shape[0]  # K sets of samples, flattened
        target = target.repeat(sets, *[1] * (target.dim() - 1))
    return reference.nll(spec, params, target, REDUCTIONS[reduction])


def _target_grad(
    name: str, reduction: int, target: Tensor, params: Sequence[Tensor], grad: Tensor
) -> Tensor:
    """d nll / d target, by plain PyTorch, as it is rarely needed."""
    with torch.enable_grad():
        leaf = target.detach().to(compute_dtype(*params)).requires_grad_()
        nll = _reference_nll(name, reduction, leaf, [p.detach() for p in params])
        return torch.autograd.grad(nll, leaf, grad)[0].to(target.dtype)


class _NLLTraced(torch.autograd.Function):
    """``_NLL`` without state between forward and backward, for torch.compile."""

    @staticmethod
    def forward(ctx: Any, name: str, reduction: int, target: Tensor, *params: Tensor) -> Tensor:
        ctx.save_for_backward(target, *params)
        ctx.options = name, reduction
        return ops_of(name).nll(params, target, reduction)

    @staticmethod
    def backward(ctx: Any, grad_nll: Tensor) -> tuple[Tensor | None, ...]:
        target, *params = ctx.saved_tensors
        name, reduction = ctx.options
        needs = [True] * len(params)
        grads = ops_of(name).nll_backward(
            grad_nll.contiguous(), params, target, reduction, _mask(needs)
        )
        return None, None, None, *grads


def nll(spec: Spec, params: Sequence[Tensor], target: Tensor, reduction: int) -> Tensor:
    """-log p(target | params), in nats, for checked parameters of one floating dtype."""
    if torch.compiler.is_compiling() and target.requires_grad:
        return reference.nll(spec, params, target, REDUCTIONS[reduction])
    sets = params[0].shape[:2] if params[0].dim() > target.dim() and not spec.planes else None
    is_sample = target.dim() < 2 and not spec.planes  # one sample, without a batch dimension
    shaped, target = prepare(spec, params, target)
    if sets is not None:
        reduction = NONE
    if not needs_grad(target, *shaped):
        value = ops_of(spec.name).nll(shaped, target, reduction)
    else:
        target, *shaped = distinct(target, *shaped)
        function = _NLLTraced if torch.compiler.is_compiling() else _NLL
        value = function.apply(spec.name, reduction, target, *shaped)
    if sets is not None:
        return value.view(sets)
    return value.reshape(()) if is_sample and value.dim() else value


# --- -log p + beta * KL --------------------------------------------------------------------------


class _Elbo(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        name: Any,
        beta: Any,
        beta_tensor: Any,
        reduction: int,
        target: Tensor,
        mu: Tensor,
        logvar: Tensor,
        *params: Tensor,
    ) -> Any:
        ctx.save_for_backward(beta_tensor, target, mu, logvar, *params)
        ctx.options = name, beta, reduction
        ctx.set_materialize_grads(False)
        ctx.grads = None
        ops, arguments = ops_of(name), (params, target, mu, logvar, beta, beta_tensor, reduction)
        if made_in_forward(target, reduction):
            wanted = _mask(ctx.needs_input_grad[7:])
            loss, recon, kl, grads, *rest = ops.elbo_with_grad(*arguments, 1.0, wanted)
            ctx.grads = *rest, *grads
            return loss, recon, kl
        return ops.elbo(*arguments)

    @staticmethod
    def backward(ctx: Any, *upstream: Maybe) -> tuple[Tensor | None, ...]:
        beta_tensor, *inputs = ctx.saved_tensors  # raises if beta was changed in place
        name, beta, reduction = ctx.options
        grads, ctx.grads = ctx.grads, None
        made = _elbo_grads(
            name, beta, beta_tensor, reduction, inputs, upstream, ctx.needs_input_grad[4:], grads
        )
        return None, None, None, None, *made


def _elbo_grads(
    name: str,
    beta: float,
    beta_tensor: Maybe,
    reduction: int,
    saved: Sequence[Tensor],
    upstream: Sequence[Maybe],
    needs: Sequence[bool],
    grads: Sequence[Tensor] | None = None,
) -> Sequence[Maybe]:
    """The gradients of the ``saved`` inputs: the target, mu, logvar and the parameters.

    ``upstream``: the gradients of loss, recon and kl. ``grads``: the gradients of all but the
    target for a loss gradient of 1, if forward computed them.
    """
    target, mu, logvar, *params = saved
    grad_loss, grad_recon, grad_kl = upstream
    if all(grad is None for grad in upstream):
        return (None,) * len(saved)
    if beyond_native(*upstream):
        weight = beta if beta_tensor is None else beta * beta_tensor

        def loss(t: Tensor, m: Tensor, v: Tensor, *p: Tensor) -> LossOutput:
            return reference.elbo(SPECS[name], p, t, m, v, weight, REDUCTIONS[reduction])

        return differentiable_again(loss, saved, upstream, needs)
    only_loss = grad_recon is None and grad_kl is None
    if grads is None or not only_loss or grad_loss is None or not rescaled(grads, grad_loss):
        made, *rest = ops_of(name).elbo_backward(
            *map(_dense, upstream), params, target, mu, logvar, beta, beta_tensor, reduction,
            _mask(needs[3:]),
        )  # fmt: skip
        grads = *rest, *made
    grad_mu: Maybe
    grad_logvar: Maybe
    grad_mu, grad_logvar, *made_params = grads
    of_params = _spread(made_params, needs[3:])
    # None instead of zeros for unused outputs, as in plain PyTorch: with zeros, an optimizer's
    # momentum would move the weights.
    if grad_loss is None and grad_recon is None:
        of_params = [None] * len(params)
    if grad_loss is None and grad_kl is None:
        grad_mu = grad_logvar = None
    grad_target = None
    parts = [g for g in (grad_loss, grad_recon) if g is not None]
    if needs[0] and parts:
        grad_target = _target_grad(name, reduction, target, params, cast(Tensor, sum(parts)))
    return grad_target, grad_mu, grad_logvar, *of_params


class _ElboTraced(torch.autograd.Function):
    """``_Elbo`` without state between forward and backward, for torch.compile."""

    @staticmethod
    def forward(
        ctx: Any,
        name: Any,
        beta: Any,
        beta_tensor: Any,
        reduction: int,
        target: Tensor,
        mu: Tensor,
        logvar: Tensor,
        *params: Tensor,
    ) -> Any:
        ctx.save_for_backward(target, mu, logvar, beta_tensor, *params)
        ctx.options = name, beta, reduction
        return ops_of(name).elbo(params, target, mu, logvar, beta, beta_tensor, reduction)

    @staticmethod
    def backward(
        ctx: Any, grad_loss: Tensor, grad_recon: Tensor, grad_kl: Tensor
    ) -> tuple[Tensor | None, ...]:
        target, mu, logvar, beta_tensor, *params = ctx.saved_tensors
        name, beta, reduction = ctx.options
        grads, grad_mu, grad_logvar = ops_of(name).elbo_backward(
            *map(_dense, (grad_loss, grad_recon, grad_kl)), params, target, mu, logvar, beta,
            beta_tensor, reduction, _mask([True] * len(params)),
        )  # fmt: skip
        return None, None, None, None, None, grad_mu, grad_logvar, *grads


def elbo(
    spec: Spec,
    params: Sequence[Tensor],
    target: Tensor,
    mu: Tensor,
    logvar: Tensor,
    beta: float | Tensor,
    reduction: int,
) -> LossOutput:
    """-log p + beta * KL(N(mu, exp(logvar)) || N(0, 1)) and its parts, in nats."""
    if torch.compiler.is_compiling() and target.requires_grad:
        names = REDUCTIONS[reduction]
        return reference.elbo(spec, params, target, mu, logvar, beta, names)
    if (params[0].dtype == torch.float64) != (mu.dtype == torch.float64):
        params = [p.to(torch.float64) for p in params]
        mu, logvar = mu.to(torch.float64), logvar.to(torch.float64)
    is_sample = target.dim() < 2 and not spec.planes
    shaped, target = prepare(spec, params, target)
    mu, logvar = gaussian_pair(mu, logvar)
    beta_tensor = None
    if isinstance(beta, torch.Tensor):
        if mu.dtype == torch.float64:
            # The kernels take beta as float32, which would round a float64.
            recon, kl = elbo(spec, params, target, mu, logvar, 1.0, reduction)[1:]
            return LossOutput(recon + beta.to(mu.device, torch.float64) * kl, recon, kl)
        beta_tensor, beta = beta.to(mu.device, torch.float32), 1.0
    options = spec.name, float(beta), beta_tensor, reduction
    if not needs_grad(target, mu, logvar, *shaped):
        terms = ops_of(spec.name).elbo(shaped, target, mu, logvar, *options[1:])
    else:
        tensors = distinct(target, mu, logvar, *shaped)
        function = _ElboTraced if torch.compiler.is_compiling() else _Elbo
        terms = function.apply(*options, *tensors)
    if is_sample and terms[0].dim():
        terms = [term.reshape(()) for term in terms]
    return LossOutput(*terms)


# --- nodes in C++, for small calls ----------------------------------------------------------------

# The C++ nodes' numbers of the likelihoods that they serve.
_NUMBERS: dict[str, int] = {}


def add_to_node(spec: Spec, dtypes: Collection[torch.dtype]) -> None:
    """Let C++ nodes serve a likelihood whose target has one of ``dtypes``."""
    if node is not None:
        is_class, shares = spec.target == "category", spec.family != "bernoulli"
        _NUMBERS[spec.name] = node.add(
            spec.name, len(spec.params), spec.planes, is_class, shares, tuple(dtypes)
        )


def _grads_again(
    name: str,
    latent: bool,
    beta: float,
    reduction: int,
    saved: Sequence[Tensor],
    upstream: Sequence[Maybe],
    needs: Sequence[bool],
) -> Sequence[Maybe]:
    """The gradients that a C++ node cannot compute itself. ``saved``: the target, with ``latent``
    also mu and logvar, and the parameters, as given by the caller."""
    target, *rest = saved
    latents, params = (rest[:2], rest[2:]) if latent else ([], rest)
    shaped = params
    if not beyond_native(*upstream):  # plain PyTorch broadcasts shared parameters
        shaped, target = prepare(SPECS[name], params, target)
    saved = target, *latents, *shaped
    if latent:
        grads = _elbo_grads(name, beta, None, reduction, saved, upstream, needs)
    else:
        (grad_nll,) = upstream
        assert grad_nll is not None  # a node runs only with a gradient
        grads = _nll_grads(name, reduction, saved, grad_nll, needs)
    first = len(grads) - len(params)
    of_params = [
        g if g is None else g.view(p.shape) for g, p in zip(grads[first:], params, strict=True)
    ]
    return *grads[:first], *of_params


if node is not None:
    node.set_again(_grads_again, gaussian_grads_again)


def small_nll(spec: Spec, params: Sequence[object], target: object, reduction: int) -> Maybe:
    """``nll`` by a C++ node, which checks the arguments; None for calls that it does not serve."""
    number = _NUMBERS.get(spec.name)
    if number is None or torch.compiler.is_compiling():
        return None
    return node.nll(number, params, target, reduction)


def small_elbo(
    spec: Spec,
    params: Sequence[object],
    target: object,
    mu: object,
    logvar: object,
    beta: object,
    reduction: int,
) -> LossOutput | None:
    """``elbo`` by a C++ node, like ``small_nll``."""
    number = _NUMBERS.get(spec.name)
    if number is None or torch.compiler.is_compiling():
        return None
    losses = node.elbo(number, params, target, mu, logvar, beta, reduction)
    return None if losses is None else LossOutput(*losses)


# --- fake kernels: shapes and dtypes for torch.compile -------------------------------------------


def _fake_loss(params: Sequence[Tensor], target: Tensor, reduction: int, planes: int) -> Tensor:
    shape: tuple[int, ...] = ()
    if reduction == NONE and (target.dim() >= 2 or planes):
        shape = (max(target.shape[0], *(p.shape[0] for p in params)),)
    return params[0].new_empty(shape, dtype=compute_dtype(*params))


def _fake_grads(params: Sequence[Tensor], wanted: int) -> list[Tensor]:
    return [torch.empty_like(p) for j, p in enumerate(params) if wanted >> j & 1]


def _fakes(planes: int) -> dict[str, Callable[..., Any]]:
    def nll(params: Any, target: Tensor, reduction: int) -> Any:
        return _fake_loss(params, target, reduction, planes)

    def nll_backward(
        grad_nll: Tensor, params: Any, target: Tensor, reduction: int, wanted: Any
    ) -> Any:
        return _fake_grads(params, wanted)

    def nll_with_grad(
        params: Any, target: Tensor, reduction: int, grad_scale: Tensor, wanted: Any
    ) -> Any:
        return _fake_loss(params, target, reduction, planes), _fake_grads(params, wanted)

    def nll_with_grad_out(
        params: Any, target: Tensor, reduction: int, grad_scale: Tensor, grads: Tensor
    ) -> Any:
        return _fake_loss(params, target, reduction, planes)

    def elbo(
        params: Any,
        target: Tensor,
        mu: Tensor,
        logvar: Tensor,
        beta: Any,
        beta_tensor: Any,
        reduction: int,
    ) -> Any:
        return tuple(_fake_loss(params, target, reduction, planes) for _ in range(3))

    def elbo_backward(
        grad_loss: Tensor, grad_recon: Tensor, grad_kl: Tensor, params: Any, target: Tensor, mu: Tensor, logvar: Tensor, beta: Any, beta_tensor: Any, reduction: int,
        wanted: Any,
    ) -> Any:  # fmt: skip
        return _fake_grads(params, wanted), torch.empty_like(mu), torch.empty_like(mu)

    def elbo_with_grad(
        params: Any,
        target: Tensor,
        mu: Tensor,
        logvar: Tensor,
        beta: Any,
        beta_tensor: Any,
        reduction: int,
        grad_scale: Tensor,
        wanted: Any,
    ) -> Any:
        losses = elbo(params, target, mu, logvar, beta, beta_tensor, reduction)
        grads = _fake_grads(params, wanted)
        return *losses, grads, torch.empty_like(mu), torch.empty_like(mu)

    return {op: fake for op, fake in locals().items() if op in Ops._fields}


for _spec in SPECS.values():
    for _op, _fake in _fakes(_spec.planes).items():
        register_fake(f"{_spec.name}_{_op}", _fake)
