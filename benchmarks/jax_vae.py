"""The tutorial's VAE in JAX: an epoch as one jitted scan over resident uint8 images."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks.case import Absence

PIXELS, LATENT = 784, 20


def contender(
    images: np.ndarray, batch: int, dtype: str, device: torch.device, hidden: int = 400
) -> Callable[[None], float] | Absence:
    """A function that trains for one epoch and returns its mean loss in nats per sample.

    ``dtype`` is that of the matrix products; weights and Adam's moments stay float32. An epoch
    leaves out the last, smaller batch: a scan's batches are all alike.
    """
    if importlib.util.find_spec("jax") is None:
        return Absence("jax", "jax is not installed: pip install jax")
    import jax
    import jax.numpy as jnp

    if device.type == "cuda" and jax.default_backend() != "gpu":
        return Absence("jax", "this jax has no GPU support")

    sizes = {
        "hidden": (PIXELS, hidden),
        "mu": (hidden, LATENT),
        "logvar": (hidden, LATENT),
        "back": (LATENT, hidden),
        "logits": (hidden, PIXELS),
    }
    kind = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}[dtype]
    steps = len(images) // batch
    data = jnp.asarray(images.reshape(len(images), -1))

    def initial(key: Any) -> dict[str, tuple[Any, Any]]:
        weights = {}
        for name, (n_in, n_out) in sizes.items():
            key, for_weight, for_bias = jax.random.split(key, 3)
            bound = n_in**-0.5
            weights[name] = (
                jax.random.uniform(for_weight, (n_in, n_out), minval=-bound, maxval=bound),
                jax.random.uniform(for_bias, (n_out,), minval=-bound, maxval=bound),
            )
        return weights

    def objective(weights: Any, x: Any, key: Any) -> Any:
        def linear(name: str, h: Any) -> Any:
            weight, bias = weights[name]
            return h.astype(kind) @ weight.astype(kind) + bias.astype(kind)

        h = jax.nn.relu(linear("hidden", x))
        mu, logvar = (linear(name, h).astype(jnp.float32) for name in ("mu", "logvar"))
        z = mu + jnp.exp(0.5 * logvar) * jax.random.normal(key, mu.shape)
        logits = linear("logits", jax.nn.relu(linear("back", z))).astype(jnp.float32)
        recon = jnp.sum(jax.nn.softplus(logits) - logits * x)
        kl = -0.5 * jnp.sum(1 + logvar - jnp.square(mu) - jnp.exp(logvar))
        return recon + kl

    def adam(weights: Any, first: Any, second: Any, grads: Any, count: Any) -> tuple[Any, Any, Any]:
        first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, first, grads)
        second = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, second, grads)
        by_first, by_second = 1 - 0.9**count, 1 - 0.999**count
        weights = jax.tree.map(
            lambda w, m, v: w - 1e-3 * (m / by_first) / (jnp.sqrt(v / by_second) + 1e-8),
            weights, first, second,
        )  # fmt: skip
        return weights, first, second

    def step(state: Any, rows: Any) -> tuple[Any, Any]:
        weights, first, second, count, key = state
        key, noise = jax.random.split(key)
        x = data[rows].astype(jnp.float32) / 255
        loss, grads = jax.value_and_grad(objective)(weights, x, noise)
        count = count + 1
        weights, first, second = adam(weights, first, second, grads, count)
        return (weights, first, second, count, key), loss

    def epoch(state: Any) -> tuple[Any, Any]:
        *rest, key = state
        key, for_order = jax.random.split(key)
        order = jax.random.permutation(for_order, len(images))[: steps * batch]
        state, losses = jax.lax.scan(step, (*rest, key), order.reshape(steps, batch))
        return state, jnp.sum(losses) / (steps * batch)

    weights = initial(jax.random.key(0))
    zeros = jax.tree.map(jnp.zeros_like, weights)
    also = jax.tree.map(jnp.zeros_like, weights)
    state = (weights, zeros, also, jnp.zeros(()), jax.random.key(1))
    call = jax.jit(epoch, donate_argnums=0)

    def run(_: None) -> float:
        nonlocal state
        state, loss = call(state)
        return float(loss)

    return run
