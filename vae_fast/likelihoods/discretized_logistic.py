"""A logistic distribution over the 256 levels of 8-bit data, and a mixture: probabilities.

Level k stands for k' = 2 k / 255 - 1 in [-1, 1]. Its probability is the logistic's mass within
1 / 255 of k', and for k = 0 and 255 also the tail beyond (Salimans et al. 2017, section 2.1):

    p(k) = sigmoid((k' + 1/255 - loc) / scale) - sigmoid((k' - 1/255 - loc) / scale),

which is exact here, without the usual approximation in the tails. -log p is in nats.

The mixture has K components over the three channels of a position, as in PixelCNN++ and Child 2021.
Its parameters (N, 10 K, H, W) are K logits, then for each channel c its K locs, K log scales (at
least -7) and K coefficients q_c before tanh. q_0 red is added to green's loc, and q_1 red + q_2
green to blue's. The target is (N, 3, H, W), -log p (N, H, W).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vae_fast.likelihoods.functions import softplus, where
from vae_fast.likelihoods.spec import Spec, Truth, as_floats, draw, normals, uniform, widened
from vae_fast.likelihoods.truth import elementwise, log1pexp, positions

MIN_LOG_SCALE = -7.0


def _bin(loc: Tensor, log_scale: Tensor, level: Tensor) -> Tensor:
    """-log p(level) = softplus(-up) + softplus(low) - log(1 - exp(low - up))."""
    unit = torch.exp(-log_scale) / 255.0
    up = ((2.0 * level - 254.0) - 255.0 * loc) * unit
    low = ((2.0 * level - 256.0) - 255.0 * loc) * unit
    first, last = level < 0.5, level > 254.5
    h = 2.0 * unit
    narrow = h < 0.7
    mass = torch.where(
        narrow,
        torch.log(-torch.expm1(-where(narrow, h, 0.5))),
        torch.log1p(-torch.exp(-where(~narrow, h, 0.8))),
    )
    zero = torch.zeros_like(up)
    over = torch.where(last, zero, softplus(-up))
    under = torch.where(first, zero, softplus(low))
    return (over + under) - torch.where(first | last, zero, mass)


def terms(loc: Tensor, log_scale: Tensor, target: Tensor) -> Tensor:
    return _bin(*torch.broadcast_tensors(*as_floats(loc, log_scale, target=target)))


def _level(x: Tensor) -> Tensor:
    return ((x + 1.0) * 127.5).clamp(0.0, 255.0)


def mean(loc: Tensor, log_scale: Tensor) -> Tensor:
    """loc as a level from 0 to 255, the mean of a logistic with its mass in [-1, 1]."""
    return _level(torch.broadcast_tensors(loc, log_scale)[0])


def _logistic(like: Tensor, generator: torch.Generator | None) -> Tensor:
    u = uniform(like, generator)
    return torch.log(u) - torch.log1p(-u)


def sample(loc: Tensor, log_scale: Tensor, generator: torch.Generator | None = None) -> Tensor:
    m, s = torch.broadcast_tensors(*widened(loc, log_scale))
    return _level(m + torch.exp(s) * _logistic(m, generator)).round().to(loc.dtype)


def inputs(
    shape: Sequence[int], dtype: torch.dtype, generator: torch.Generator
) -> tuple[list[Tensor], Tensor]:
    """Log scales from -8 to 2; levels near loc, far from it, and at both ends."""
    loc, log_scale = draw(shape, generator, -1.1, 1.1), draw(shape, generator, -8.0, 2.0)
    return [loc.to(dtype), log_scale.to(dtype)], _levels(loc, generator)


def _levels(loc: Tensor, generator: torch.Generator) -> Tensor:
    near = _level(loc + 0.02 * normals(loc.shape, generator))
    far = draw(loc.shape, generator, -30.0, 285.0).clamp(0, 255)
    return torch.where(draw(loc.shape, generator, 0, 1) < 0.5, near, far).round().to(torch.uint8)


def _split(params: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits (N, K, ...), and locs, log scales and coefficients (N, 3, K, ...)."""
    k = params.shape[1] // 10
    per_channel = params[:, k:].unflatten(1, (3, 3, k))
    return (
        params[:, :k],
        per_channel[:, :, 0],
        # At the clamp's edge the scale has a gradient, as in the kernel.
        torch.where(per_channel[:, :, 1] < MIN_LOG_SCALE, MIN_LOG_SCALE, per_channel[:, :, 1]),
        torch.tanh(per_channel[:, :, 2]),
    )


def _locs(loc: Tensor, q: Tensor, red: Tensor, green: Tensor) -> Tensor:
    moved = (loc[:, 0], loc[:, 1] + q[:, 0] * red, loc[:, 2] + q[:, 1] * red + q[:, 2] * green)
    return torch.stack(moved, 1)


def mixture_terms(params: Tensor, target: Tensor) -> Tensor:
    params, x = as_floats(params, target=target)
    logits, loc, log_scale, q = _split(params)
    scaled = ((2.0 * x - 255.0) / 255.0).unsqueeze(2)
    moved = _locs(loc, q, scaled[:, 0], scaled[:, 1])
    bins = _bin(moved, log_scale, x.unsqueeze(2).expand_as(moved))
    return torch.logsumexp(logits, 1) - torch.logsumexp(logits - bins.sum(1), 1)


def mixture_mean(params: Tensor) -> Tensor:
    """The mean of the components' locs, as levels from 0 to 255: (N, 3, ...)."""
    logits, loc, _, q = _split(widened(params)[0])
    red = loc[:, 0]
    moved = _locs(loc, q, red, loc[:, 1] + q[:, 0] * red)
    return _level((moved * logits.softmax(1).unsqueeze(1)).sum(2)).to(params.dtype)


def mixture_sample(params: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Levels (N, 3, ...): draw a position's component, then red, green and blue."""
    logits, *planes = _split(widened(params)[0])
    gumbel = -torch.log(-torch.log(uniform(logits, generator)))
    k = (logits + gumbel).argmax(1, keepdim=True).unsqueeze(1)
    loc, log_scale, q = (p.gather(2, k.expand(-1, 3, *k.shape[2:])).squeeze(2) for p in planes)
    noise = torch.exp(log_scale) * _logistic(log_scale, generator)
    red = _level(loc[:, 0] + noise[:, 0]).round()
    r = (2.0 * red - 255.0) / 255.0
    green = _level(loc[:, 1] + q[:, 0] * r + noise[:, 1]).round()
    g = (2.0 * green - 255.0) / 255.0
    blue = _level(loc[:, 2] + q[:, 1] * r + q[:, 2] * g + noise[:, 2]).round()
    return torch.stack([red, green, blue], 1).to(params.dtype)


def mixture_inputs(
    shape: Sequence[int], dtype: torch.dtype, generator: torch.Generator, components: int = 3
) -> tuple[list[Tensor], Tensor]:
    """``shape`` is the target's, (N, 3, H, W). Log scales from -8, below the clamp, to 0."""
    n, _, *rest = shape
    logits = 2.0 * normals((n, components, *rest), generator)
    shape_of_planes = (n, 3, components, *rest)
    loc = draw(shape_of_planes, generator, -1.1, 1.1)
    log_scale = draw(shape_of_planes, generator, -8.0, 0.0)
    q = normals(shape_of_planes, generator)
    planes = torch.stack([loc, log_scale, q], 2).flatten(1, 3)
    return [torch.cat([logits, planes], 1).to(dtype)], _levels(loc[:, :, 0], generator)


def _nll(mp: Any, m: Any, s: Any, x: Any) -> Any:
    def end(k: Any) -> Any:
        return ((2 * x - 255 + k) / mp.mpf(255) - m) / mp.exp(s)

    up, low = end(1), end(-1)
    if x < 0.5:
        return log1pexp(mp, -up)
    if x > 254.5:
        return log1pexp(mp, low)

    def sigmoid(v: Any) -> Any:
        return 1 / (1 + mp.exp(-v))

    beside = sigmoid(low) + sigmoid(-up)
    if beside < 0.5:
        return -mp.log1p(-beside)
    return -mp.log(sigmoid(-low) - sigmoid(-up) if low + up > 0 else sigmoid(up) - sigmoid(low))


def truth(loc: Tensor, log_scale: Tensor, target: Tensor) -> Truth:
    return elementwise(_nll, loc, log_scale, target)


def mixture_truth(params: Tensor, target: Tensor) -> Truth:
    def nll(mp: Any, planes: Any, x: Any) -> Any:
        k = len(planes) // 10
        red, green = ((2 * v - 255) / mp.mpf(255) for v in x[:2])

        def plane(channel: Any, which: Any, j: Any) -> Any:
            return planes[k + (3 * channel + which) * k + j]

        def joint(j: Any) -> Any:
            q = [mp.tanh(plane(c, 2, j)) for c in range(3)]
            moved = (0, q[0] * red, q[1] * red + q[2] * green)
            return planes[j] - mp.fsum(
                _nll(mp, plane(c, 0, j) + moved[c], max(plane(c, 1, j), mp.mpf(-7)), x[c])
                for c in range(3)
            )

        joints = [joint(j) for j in range(k)]
        return mp.log(mp.fsum(map(mp.exp, planes[:k]))) - mp.log(mp.fsum(map(mp.exp, joints)))

    return positions(nll, params, target)


SPECS = (
    Spec("discretized_logistic", ("loc", "log_scale"), "level", terms, mean, sample, inputs, truth),
    Spec(
        "discretized_logistic_mixture",
        ("params",),
        "level",
        mixture_terms,
        mixture_mean,
        mixture_sample,
        mixture_inputs,
        mixture_truth,
        planes=3,
    ),
)
