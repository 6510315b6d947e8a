"""reparameterize, gaussian_kl and sample_and_kl beside eager, torch.compile and JAX."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

import vae_fast
from benchmarks.case import OURS, Absence, Case, Contender, Outputs
from benchmarks.check import check_noise, check_sum, grads_or_nothing
from benchmarks.inputs import DTYPES, normal
from benchmarks.peers import Op, compiled, jax_contender, ours, torch_contender

# --- the peers' spellings ------------------------------------------------------------------------


def eager_reparameterize(mu, logvar):
    std = torch.exp(0.5 * logvar)
    return mu + std * torch.randn_like(std)


def eager_kl(mu, logvar):
    return -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())


def eager_sample_and_kl(mu, logvar):
    return eager_reparameterize(mu, logvar), eager_kl(mu, logvar)


def jax_reparameterize(key, mu, logvar):
    import jax
    import jax.numpy as jnp

    return mu + jnp.exp(0.5 * logvar) * jax.random.normal(key, mu.shape, mu.dtype)


def jax_kl(mu, logvar):
    import jax.numpy as jnp

    # A sum of bfloat16 is bfloat16 in JAX, too coarse for a loss: this is how one is written there.
    terms = 1 + logvar - jnp.square(mu) - jnp.exp(logvar)
    return -0.5 * jnp.sum(terms.astype(jnp.float32))


def jax_sample_and_kl(key, mu, logvar):
    return jax_reparameterize(key, mu, logvar), jax_kl(mu, logvar)


# --- set-ups -------------------------------------------------------------------------------------


def kl_terms(mu, logvar, *_):
    """In float64: the KL of each element and its gradients."""
    variance = torch.exp(logvar)
    return 0.5 * (variance + mu * mu - 1 - logvar), (mu, 0.5 * (variance - 1))


def _setup(op: str, shape: Sequence[int], pass_: str, dtype: str, device, modes) -> Case:
    shape, kind = tuple(shape), DTYPES[dtype]
    samples, kl = op != "gaussian_kl", op != "reparameterize"
    elements, size = math.prod(shape), kind.itemsize
    # The least traffic, in bytes per element of mu:
    #   reparameterize  value: mu, logvar in, z out = 3 s; backward: grad_z, logvar in, two out = 4 s
    #   gaussian_kl     value: mu, logvar in = 2 s; gradient, or both in one pass: two out = 4 s
    #   sample_and_kl   value: 3 s; backward: grad_z, mu, logvar in, two out = 5 s
    # Sampling can't have its backward pass before grad_z exists: both = value + backward.
    value, gradient, both = {
        "reparameterize": (3, 4, 7),
        "gaussian_kl": (2, 4, 4),
        "sample_and_kl": (3, 5, 8),
    }[op]
    per_element = {"value": value, "gradient": gradient, "both": both}[pass_] * size

    def inputs(seed: int) -> list[torch.Tensor]:
        mu = normal(seed, 0, shape, kind, device)
        logvar = normal(seed, 1, shape, kind, device, scale=0.5)
        return [mu, logvar, normal(seed, 2, shape, kind, device)] if samples else [mu, logvar]

    upstream = {
        "reparameterize": (2,),
        "gaussian_kl": (None,),
        "sample_and_kl": (2, None),
    }[op]
    call = Op(wrt=(0, 1), upstream=upstream, arguments=2)
    eager = {
        "reparameterize": eager_reparameterize,
        "gaussian_kl": eager_kl,
        "sample_and_kl": eager_sample_and_kl,
    }[op]
    jax_fn = {
        "reparameterize": jax_reparameterize,
        "gaussian_kl": jax_kl,
        "sample_and_kl": jax_sample_and_kl,
    }[op]

    def contenders() -> list[Contender | Absence]:
        return [
            ours(getattr(vae_fast, op), call, pass_),
            torch_contender("eager", eager, call, pass_),
            *compiled(eager, call, pass_, device, modes),
            # Under jit the backward pass of a sample can't be had without making the sample again.
            Absence("jax", "jax.jit has no backward pass by itself")
            if samples and pass_ == "gradient"
            else jax_contender(jax_fn, call, pass_, device, key=samples),
        ]

    def check(inputs: Sequence[torch.Tensor], outputs: Outputs) -> None:
        mu, logvar = inputs[:2]
        grads = grads_or_nothing(outputs, 2)
        total = outputs.values[-1] if kl and outputs.values else None
        if not samples:
            check_sum("the KL", (mu, logvar), total, grads, kl_terms)
            return
        z, above = outputs.values[0], inputs[2]
        check_noise(mu, logvar, z)

        # z determines the noise: dz/dmu = 1 and dz/dlogvar = (z - mu) / 2.
        def terms(mu, logvar, z, above):
            value, (slope_mu, slope_logvar) = kl_terms(mu, logvar)
            weight = 1.0 if kl else 0.0
            by_logvar = 0.5 * above * (z - mu) + weight * slope_logvar
            return value, (above + weight * slope_mu, by_logvar)

        check_sum("the KL", (mu, logvar, z, above), total, grads, terms)

    return Case(
        op, pass_, "x".join(map(str, shape)), dtype, elements, per_element * elements,
        device, inputs, contenders, check,
    )  # fmt: skip


def setup_reparameterize(shape, pass_, dtype, device, modes) -> Case:
    return _setup("reparameterize", shape, pass_, dtype, device, modes)


def setup_gaussian_kl(shape, pass_, dtype, device, modes) -> Case:
    return _setup("gaussian_kl", shape, pass_, dtype, device, modes)


def setup_sample_and_kl(shape, pass_, dtype, device, modes) -> Case:
    return _setup("sample_and_kl", shape, pass_, dtype, device, modes)


SETUPS = {
    "reparameterize": setup_reparameterize,
    "gaussian_kl": setup_gaussian_kl,
    "sample_and_kl": setup_sample_and_kl,
}

NAMES = (OURS, "eager", "compile", "jax")


def test_speed(checked, benchmark):
    benchmark.pedantic(checked.read, args=(checked.limit(8),), rounds=10, warmup_rounds=2)
