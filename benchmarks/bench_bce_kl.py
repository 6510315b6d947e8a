"""bce_kl_loss, the whole loss of a Bernoulli VAE, beside eager (two spellings), torch.compile, JAX."""

from __future__ import annotations

from collections.abc import Sequence

import torch

import vae_fast
from benchmarks import bench_bernoulli as bernoulli
from benchmarks import bench_gaussian as gaussian
from benchmarks.case import OURS, Absence, Case, Contender, Outputs, WrongResult
from benchmarks.check import TOLERANCE, check_sum, close
from benchmarks.inputs import DTYPES, normal, pixels
from benchmarks.peers import Op, compiled, jax_contender, ours, torch_contender

# --- the peers' spellings ------------------------------------------------------------------------


def eager(logits, target, mu, logvar):
    return bernoulli.eager(logits, target) + gaussian.eager_kl(mu, logvar)


def eager_logits(logits, target, mu, logvar):
    return bernoulli.eager_logits(logits, target) + gaussian.eager_kl(mu, logvar)


def jax_logits(logits, target, mu, logvar):
    return bernoulli.jax_logits(logits, target) + gaussian.jax_kl(mu, logvar)


def our_loss(logits, target, mu, logvar):
    return vae_fast.bce_kl_loss(logits, target, mu, logvar).loss


# --- set-up --------------------------------------------------------------------------------------


def setup_bce_kl_loss(
    shape: Sequence[int],
    pass_: str,
    dtype: str,
    device: torch.device,
    modes: Sequence[str],
    target: str = "",
) -> Case:
    samples, latent, features = shape
    kind, target_kind = DTYPES[dtype], DTYPES[target or dtype]
    # The least traffic, in bytes, s for logits, mu and logvar, t for the target: an element of the
    # image takes s + t for the value and 2 s + t with its gradient (both in one pass), an element
    # of the latent 2 s for the value and 4 s with its two gradients. float32: 8 or 12, and 8 or 16.
    s, t = kind.itemsize, target_kind.itemsize
    pixel, dimension = (s + t, 2 * s) if pass_ == "value" else (2 * s + t, 4 * s)

    def inputs(seed: int) -> list[torch.Tensor]:
        return [
            normal(seed, 0, (samples, features), kind, device),
            pixels(seed, 1, (samples, features), target_kind, device),
            normal(seed, 2, (samples, latent), kind, device),
            normal(seed, 3, (samples, latent), kind, device, scale=0.5),
        ]

    call = Op(wrt=(0, 2, 3))

    def contenders() -> list[Contender | Absence]:
        mine: Contender | Absence = ours(our_loss, call, pass_)
        if pass_ == "gradient" and device.type == "cpu":
            mine = native_backward()  # as in bench_bernoulli
        return [
            mine,
            torch_contender("eager", eager, call, pass_),
            torch_contender("eager-logits", eager_logits, call, pass_),
            *compiled(eager_logits, call, pass_, device, modes),
            jax_contender(jax_logits, call, pass_, device),
        ]

    def check(inputs: Sequence[torch.Tensor], outputs: Outputs) -> None:
        if outputs.grads and len(outputs.grads) != 3:
            raise WrongResult(f"{len(outputs.grads)} gradients, where 3 are wanted")
        bce = check_sum("the BCE", inputs[:2], None, outputs.grads[:1], bernoulli.terms)
        kl = check_sum("the KL", inputs[2:], None, outputs.grads[1:], gaussian.kl_terms)
        if outputs.values:
            close("the loss", outputs.values[0].item(), bce + kl, TOLERANCE[kind])

    return Case(
        "bce_kl_loss", pass_, f"{samples}x{features}+{latent}", dtype, samples * features,
        samples * (features * pixel + latent * dimension), device, inputs, contenders, check,
        target=target,
    )  # fmt: skip


def native_backward() -> Contender | Absence:
    if vae_fast.backend.native_reason("cpu") is not None:
        return Absence(OURS, vae_fast.backend.native_reason("cpu"))
    backward, one = torch.ops.vae_fast.bernoulli_elbo_backward, torch.ones(())
    by_sum = vae_fast.types.REDUCTIONS.index("sum")
    return Contender(
        OURS,
        lambda tensors: backward(one, None, None, tensors[:1], *tensors[1:], 1.0, None, by_sum, 1),
        outputs=lambda grads: Outputs((), (*grads[0], *grads[1:])),
    )


SETUPS = {"bce_kl_loss": setup_bce_kl_loss}

NAMES = (OURS, "eager", "eager-logits", "compile", "jax")


def test_speed(checked, benchmark):
    benchmark.pedantic(checked.read, args=(checked.limit(8),), rounds=10, warmup_rounds=2)
