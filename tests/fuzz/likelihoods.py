"""Calls of every likelihood's functions; the truth is its formula in plain PyTorch, in float64."""

from __future__ import annotations

import torch
from torch import Tensor

import vae_fast
from tests.fuzz.draw import FLOATS, REDUCTIONS, Draw
from vae_fast.functional.likelihood import FUNCTIONS
from vae_fast.likelihoods import SPECS, Spec


def _inputs(draw: Draw, spec: Spec) -> dict[str, Tensor]:
    """Parameters by name, of which rows may share one, and the target."""
    shape = draw.shape(1 if spec.planes == 0 else 2, 4)
    if spec.planes > 1:
        shape = (min(shape[0], 20), spec.planes, *(min(n, 9) for n in shape[1:3]))
    elif spec.planes:
        shape = (shape[0], *(min(n, 30) for n in shape[1:]))
    dtype = draw.one_of(FLOATS)
    params, target = spec.inputs(shape, dtype, draw.generator)
    if target.dtype.is_floating_point:  # so that the truth sees the number that the kernel sees
        target = target.to(torch.promote_types(dtype, torch.float32))
    if len(params) > 1 and len(shape) > 1 and shape[0] and draw.chance(0.3):
        shared = draw.random.randrange(1, len(params))
        params[shared] = params[shared][:1]
    given = dict(zip(spec.params, map(draw.laid_out, params), strict=True))
    return given | {"target": draw.laid_out(target)}


def _reduced(terms: Tensor, reduction: str, spec: Spec) -> Tensor:
    """One term for an element, or for a position, of which each row has one at least."""
    samples = len(terms) if spec.planes or terms.dim() > 1 else 1
    rows = terms.reshape(samples, -1).sum(1) if terms.numel() else terms.sum().expand(samples)
    if reduction == "none":
        return rows if spec.planes or terms.dim() > 1 else rows[0]
    return rows.sum() / (samples if reduction == "batchmean" else 1)


def _nll(spec: Spec, given: dict[str, Tensor], reduction: str) -> Tensor:
    target = given["target"]
    if target.dtype == torch.uint8 and spec.target in ("unit", "real"):
        target = target.double() / 255
    terms = spec.terms(*(given[name] for name in spec.params), target)
    return _reduced(terms, reduction, spec)


def nll(draw: Draw):
    spec = draw.one_of(list(SPECS.values()))

    def function(target, reduction, **params):
        values = [params[name] for name in spec.params]
        return vae_fast.nll(spec.name, values, target, reduction=reduction)

    return function, *_call(draw, spec)


def _call(draw: Draw, spec: Spec):
    given = _inputs(draw, spec)

    def truth(reduction, **given):
        return (_nll(spec, given, reduction),)

    return given | {"reduction": draw.one_of(REDUCTIONS)}, truth, spec.params


def elbo(draw: Draw):
    spec = draw.one_of(list(SPECS.values()))
    given = _inputs(draw, spec)
    target, dtype = given["target"], given[spec.params[0]].dtype
    samples = len(target) if spec.planes or target.dim() > 1 else 1
    shape = (samples, 3) if samples > 1 or target.dim() > 1 else (3,)
    given |= {"mu": draw.floats(shape, dtype), "logvar": draw.floats(shape, dtype)}
    options = {"beta": draw.one_of((1.0, 0.25)), "reduction": draw.one_of(REDUCTIONS)}

    def function(target, mu, logvar, beta, reduction, **params):
        values = [params[name] for name in spec.params]
        options = {"beta": beta, "reduction": reduction}
        return vae_fast.elbo(spec.name, values, target, mu, logvar, **options)

    def truth(mu, logvar, beta, reduction, **given):
        recon = _nll(spec, given, reduction)
        kl = 0.5 * (torch.expm1(logvar) - logvar + mu**2)
        if kl.dim() > 1:
            kl = kl.sum(1)
        else:
            kl = kl.sum()
        if reduction != "none":
            kl = kl.sum() / (samples if reduction == "batchmean" else 1)
        return recon + beta * kl, recon, kl

    return function, given | options, truth, (*spec.params, "mu", "logvar")


def _family(name: str):
    specs = [spec for spec in SPECS.values() if f"{spec.family}_nll" == name]
    return lambda draw: (getattr(vae_fast, name), *_call(draw, draw.one_of(specs)))


GENERATORS = {"nll": nll, "elbo": elbo} | {name: _family(name) for name in FUNCTIONS}
