"""iwae_bound, the importance-weighted loss of K samples, beside repeating the target K times."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F

import vae_fast
from benchmarks.case import OURS, Absence, Case, Contender, Outputs, WrongResult
from benchmarks.check import TOLERANCE, all_close, close, in_float64
from benchmarks.inputs import DTYPES, normal, pixels
from benchmarks.peers import Op, compiled, jax_contender, ours, torch_contender

LATENT = 20

# --- the peers' spellings ------------------------------------------------------------------------


def _loss(nll, z, mu, logvar):
    """-bound, mean over the batch, from -log p(x | z_k): Burda et al. 2015, equation 8."""
    log_prior = -0.5 * z.pow(2).sum(-1)
    log_q = -0.5 * ((z - mu).pow(2) / logvar.exp() + logvar).sum(-1)
    log_weight = log_prior - log_q - nll
    return -(torch.logsumexp(log_weight, 0) - math.log(z.shape[0])).mean()


def eager(logits, target, z, mu, logvar):
    """The usual implementation of VAE libraries: the batch is repeated for each of the K
    samples."""
    repeated = target.repeat(logits.shape[0], 1, 1)
    nll = F.binary_cross_entropy(torch.sigmoid(logits), repeated, reduction="none").sum(-1)
    return _loss(nll, z, mu, logvar)


def eager_logits(logits, target, z, mu, logvar):
    repeated = target.expand_as(logits)
    nll = F.binary_cross_entropy_with_logits(logits, repeated, reduction="none").sum(-1)
    return _loss(nll, z, mu, logvar)


def jax_logits(logits, target, z, mu, logvar):
    import jax
    import jax.numpy as jnp

    nll = jnp.sum(jax.nn.softplus(logits) - logits * target, -1)
    log_q = -0.5 * jnp.sum(jnp.square(z - mu) / jnp.exp(logvar) + logvar, -1)
    log_weight = -0.5 * jnp.sum(jnp.square(z), -1) - log_q - nll
    return -jnp.mean(jax.nn.logsumexp(log_weight, 0) - math.log(z.shape[0]))


def our_loss(logits, target, z, mu, logvar):
    return -vae_fast.iwae_bound(logits, target, z, mu, logvar)[0].mean()


# --- set-up --------------------------------------------------------------------------------------


def setup_iwae_bound(
    shape: Sequence[int], pass_: str, dtype: str, device: torch.device, modes: Sequence[str]
) -> Case:
    """``shape``: samples per image, images, pixels."""
    k, batch, count = shape
    kind = DTYPES[dtype]
    # The least traffic, in bytes: a logit is read for the weights, and read again, once they are
    # known, to write its gradient, 3 s; the target of all K samples is read once, s.
    per_logit = kind.itemsize * (1 if pass_ == "value" else 3)

    def inputs(seed: int) -> list[torch.Tensor]:
        mu = normal(seed, 2, (batch, LATENT), kind, device)
        logvar = normal(seed, 3, (batch, LATENT), kind, device, scale=0.5)
        z = mu + torch.exp(0.5 * logvar) * normal(seed, 4, (k, batch, LATENT), kind, device)
        return [
            # Samples of one image decode alike: with logits that have nothing to do with each
            # other one sample would have all the weight, and the gradient be mostly zeros.
            normal(seed, 0, (batch, count), kind, device)
            + normal(seed, 5, (k, batch, count), kind, device, scale=0.05),
            pixels(seed, 1, (batch, count), kind, device),
            z, mu, logvar,
        ]  # fmt: skip

    call = Op(wrt=(0, 2, 3, 4))

    def contenders() -> list[Contender | Absence]:
        return [
            ours(our_loss, call, pass_),
            torch_contender("eager", eager, call, pass_),
            torch_contender("eager-logits", eager_logits, call, pass_),
            *compiled(eager_logits, call, pass_, device, modes),
            jax_contender(jax_logits, call, pass_, device),
        ]

    def check(inputs: Sequence[torch.Tensor], outputs: Outputs) -> None:
        exact = [in_float64(t).requires_grad_(i in call.wrt) for i, t in enumerate(inputs)]
        truth = eager_logits(*exact)
        # Weights are exponentials of sums over all pixels, so the tolerance includes their
        # rounding.
        tolerance = 10 * TOLERANCE[kind]
        if outputs.values:
            close("the bound", outputs.values[0].item(), truth.item(), TOLERANCE[kind])
        if not outputs.grads:
            return
        if len(outputs.grads) != len(call.wrt):
            raise WrongResult(f"{len(outputs.grads)} gradients, where {len(call.wrt)} are wanted")
        slopes = torch.autograd.grad(truth, [exact[i] for i in call.wrt])
        names = ("logits", "z", "mu", "logvar")
        for name, found, slope in zip(names, outputs.grads, slopes, strict=True):
            all_close(f"the gradient of {name}", found, slope, tolerance)

    size = kind.itemsize
    return Case(
        "iwae_bound", pass_, f"{k}x{batch}x{count}", dtype, k * batch * count,
        k * batch * count * per_logit + batch * count * size,
        device, inputs, contenders, check,
    )  # fmt: skip


SETUPS = {"iwae_bound": setup_iwae_bound}

NAMES = (OURS, "eager", "eager-logits", "compile", "jax")


def test_speed(checked, benchmark):
    benchmark.pedantic(checked.read, args=(checked.limit(4),), rounds=10, warmup_rounds=2)
