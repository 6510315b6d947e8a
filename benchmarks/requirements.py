"""The project's performance requirements, as rows with a required and a measured number."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from benchmarks.bench_bernoulli import BUFFER_KEPT as BUFFER
from benchmarks.bench_training import DROP_IN
from benchmarks.case import OURS
from benchmarks.results import Results, Row, fastest, gigabytes_per_second, ratio, timed
from benchmarks.suites import Spec, training


@dataclass(frozen=True)
class Requirement:
    """``measure`` is at least ``least`` for the worst of ``specs``.

    measure: "times": the peer's time over ours. "rate": elements per second. "share": our part of the
    bandwidth of the peer in the same row. "of copy": our part of the machine's speed of copying.
    "rate over": elements per second over those of ``base``. "memory": the peer's peak over ours.
    "GB under 1": a gigabyte over our peak.
    """

    what: str
    measure: str
    least: float
    specs: tuple[Spec, ...]
    peer: str = ""
    mine: str = OURS
    base: Spec | None = None


class Verdict(NamedTuple):
    requirement: Requirement
    measured: float | None
    why: str  # why there is no measurement


def _latents(pass_: str) -> tuple[Spec, ...]:
    return tuple(Spec("sample_and_kl", (1 << e,), pass_) for e in (16, 18, 20))


_LOSS = (Spec("bce_kl_loss", (1024, 64, 784), "both"),)
_SMALL = (Spec("sample_and_kl", (128, 20), "both"),)
_NLL = (Spec("bernoulli_nll", (1 << 20,), "both"),)
_LARGE = (Spec("bernoulli_nll", (1 << 26,), "both"),)
_LARGE_HALF = (Spec("bernoulli_nll", (1 << 26,), "both", "bfloat16", "uint8"),)


def _linear(dtype: str) -> tuple[Spec, ...]:
    return (Spec("linear_bernoulli_nll", (1024, 400, 784), "both", dtype),)


_IWAE = (Spec("iwae_bound", (50, 100, 784), "both"),)
_NB = (Spec("negative_binomial_nll", (128, 2000), "both"),)
_ZINB = (Spec("zero_inflated_negative_binomial_nll", (128, 2000), "both"),)
_GAUSSIAN, _LAPLACE = (
    (Spec(f"{name}_nll", (64, 1 << 16), "both"),) for name in ("gaussian", "laplace")
)
_CONTINUOUS = (Spec("continuous_bernoulli_nll", (64, 1 << 14), "both"),)
_LOGISTICS = (Spec("discretized_logistic_mixture_nll", (16, 3, 32, 32), "both"),)
# Inputs are the planes and an int64 target. A call may use the gradient's bytes and 5% of all these.
_LOGISTICS_INPUTS, _LOGISTICS_GRADIENT = 16 * 1024 * (400 + 24), 16 * 1024 * 400
_LOGISTICS_PEAK = _LOGISTICS_GRADIENT + 0.05 * (_LOGISTICS_INPUTS + _LOGISTICS_GRADIENT)
_CORRELATION_10, _CORRELATION_64 = (
    (Spec("total_correlation", (1024, d), "both"),) for d in (10, 64)
)
_MIXTURE = (Spec("mixture_log_density", (128, 500, 40), "both"),)
_NEAREST = (Spec("nearest_code", (4096, 1024, 64), "both"),)
_SMALL_SHAPE = (32, 32)
_SMALL_CALLS = tuple(
    Spec(op, _SMALL_SHAPE, "both")
    for op in (
        "bernoulli_nll", "gaussian_nll", "negative_binomial_nll", "categorical_nll",
        "reparameterize", "gaussian_kl", "sample_and_kl",
    )
)  # fmt: skip
_EPOCH = (Spec("epoch", (128, 60_000), "both"),)
_SHARDS = (Spec("shards", (128, 737_280), "both"),)
_OVERHEAD = (Spec("overhead", (128,), "both"),)
_BUSY = tuple(Spec("epoch", (128, 60_000, count), "both") for count in (2, 4, 16))
_SIZES = tuple(spec for spec in training() if spec.op == "sizes")
_SHORT_EPOCH = (Spec("short_epoch", (128, 60_000), "both"),)
_EPOCH_HALF = (Spec("epoch", (128, 60_000), "both", "bfloat16"),)

OPS: tuple[Requirement, ...] = (
    Requirement("bce_kl_loss, value and gradient, 1024x784 + 64", "times", 20, _LOSS, "eager"),
    Requirement("bce_kl_loss, value and gradient, 1024x784 + 64", "times", 4, _LOSS, "compile"),
    Requirement("sample_and_kl, value, 2^16 to 2^20", "times", 8, _latents("value"), "eager"),
    Requirement("sample_and_kl, value, 2^16 to 2^20", "times", 25, _latents("value"), "compile"),
    Requirement("sample_and_kl, both, 2^16 to 2^20", "times", 5, _latents("both"), "eager"),
    Requirement("sample_and_kl, both, 2^16 to 2^20", "times", 12, _latents("both"), "compile"),
    Requirement("sample_and_kl, both, 128x20", "times", 1.8, _SMALL, "eager"),
)

LIMITS: tuple[Requirement, ...] = (
    Requirement("bernoulli_nll, both, 2^20, buffer kept", "times", 40, _NLL, "eager", BUFFER),
    Requirement("bernoulli_nll, both, 2^20, buffer kept", "times", 5, _NLL, "compile", BUFFER),
    Requirement("bernoulli_nll, both, 2^20, buffer kept", "rate", 4e9, _NLL, mine=BUFFER),
    Requirement("bernoulli_nll, both, 2^26, buffer kept", "share", 0.85, _LARGE, "add(out=)", BUFFER),
    Requirement(
        "bernoulli_nll, both, 2^26, bfloat16 and uint8, over float32", "rate over", 1.5, _LARGE_HALF, mine=BUFFER,
        base=_LARGE[0],
    ),
    Requirement("sample_and_kl, value, 2^16 to 2^20", "times", 10, _latents("value"), "eager"),
    Requirement("sample_and_kl, value, 2^16 to 2^20", "times", 35, _latents("value"), "compile"),
    Requirement("sample_and_kl, value, 2^16 to 2^20", "rate", 2e9, _latents("value")),
    Requirement("sample_and_kl, both, 2^16 to 2^20", "times", 7, _latents("both"), "eager"),
    Requirement("sample_and_kl, both, 2^16 to 2^20", "times", 15, _latents("both"), "compile"),
    Requirement("linear_bernoulli_nll, float32", "times", 2.5, _linear("float32"), "eager"),
    Requirement("linear_bernoulli_nll, float32", "memory", 4, _linear("float32"), "eager"),
    Requirement("linear_bernoulli_nll, bfloat16", "times", 2.5, _linear("bfloat16"), "eager"),
    Requirement("linear_bernoulli_nll, bfloat16", "memory", 4, _linear("bfloat16"), "eager"),
    Requirement("iwae_bound, both, K=50, B=100, D=784", "times", 10, _IWAE, "eager"),
    Requirement("iwae_bound, both, K=50, B=100, D=784", "memory", 2.5, _IWAE, "eager"),
)  # fmt: skip

LIKELIHOODS: tuple[Requirement, ...] = (
    Requirement("nb, both, 128x2000, 85% zeros", "times", 12, _NB, "eager"),
    Requirement("nb, both, 128x2000, 85% zeros", "times", 5, _NB, "compile"),
    Requirement("zinb, both, 128x2000, 85% zeros", "times", 12, _ZINB, "eager"),
    Requirement("zinb, both, 128x2000, 85% zeros", "times", 5, _ZINB, "compile"),
    Requirement("gaussian, both, 2^22, buffer kept", "share", 0.85, _GAUSSIAN, "add(out=)", BUFFER),
    Requirement("gaussian, both, 2^22, buffer kept", "times", 6, _GAUSSIAN, "eager", BUFFER),
    Requirement("laplace, both, 2^22, buffer kept", "share", 0.85, _LAPLACE, "add(out=)", BUFFER),
    Requirement("laplace, both, 2^22, buffer kept", "times", 6, _LAPLACE, "eager", BUFFER),
    Requirement("continuous Bernoulli, both, 2^20", "times", 10, _CONTINUOUS, "eager"),
    Requirement("logistic mixture, both, 16x3x32x32, K=10", "times", 10, _LOGISTICS, "eager"),
    Requirement(
        "logistic mixture, gradient and 5% of memory", "GB under 1", 1e9 / _LOGISTICS_PEAK, _LOGISTICS
    ),
    Requirement("total correlation, both, 1024x10", "times", 12, _CORRELATION_10, "eager"),
    Requirement("total correlation, both, 1024x10", "times", 2, _CORRELATION_10, "compile"),
    Requirement("total correlation, both, 1024x10", "memory", 20, _CORRELATION_10, "eager"),
    Requirement("total correlation, both, 1024x64", "times", 12, _CORRELATION_64, "eager"),
    Requirement("total correlation, both, 1024x64", "times", 2, _CORRELATION_64, "compile"),
    Requirement("total correlation, both, 1024x64", "memory", 20, _CORRELATION_64, "eager"),
    Requirement("mixture density, both, 128x500x40", "times", 8, _MIXTURE, "eager"),
    Requirement("mixture density, both, 128x500x40", "times", 2, _MIXTURE, "compile"),
    Requirement("mixture density, both, 128x500x40", "memory", 20, _MIXTURE, "eager"),
    Requirement("nearest code, both, 4096x1024x64", "times", 1, _NEAREST, "eager"),
    Requirement("nearest code, both, 4096x1024x64", "times", 1, _NEAREST, "compile"),
    *(Requirement(f"{s.op}, both, 2^10", "times", 1, (s,), peer)
      for s in _SMALL_CALLS for peer in ("eager", "compile")),
    Requirement("bernoulli_nll, both, 2^10", "times", 1, _SMALL_CALLS[:1], "eager-logits"),
)  # fmt: skip

ENGINE: tuple[Requirement, ...] = (
    Requirement("epoch of the tutorial's VAE, float32", "times", 5, _EPOCH, "tutorial"),
    Requirement("epoch of the tutorial's VAE, float32", "times", 1.6, _EPOCH, "compile"),
    Requirement("epoch of the tutorial's VAE, float32", "times", 1.2, _EPOCH, "jax"),
    Requirement(
        "the tutorial's script, three names imported", "times", 2.5, _EPOCH, "tutorial", DROP_IN
    ),
    Requirement("the float32 epoch beside 2, 4, 16 busy processes", "times", 1, _BUSY, "jax"),
    Requirement("hidden 64, 400, 2000; batch 32, 128, 1024", "times", 1, _SIZES, "jax"),
    Requirement("epoch of the tutorial's VAE, bfloat16", "times", 10, _EPOCH_HALF, "tutorial"),
    Requirement("epoch of the tutorial's VAE, bfloat16", "times", 2, _EPOCH_HALF, "jax-float32"),
    Requirement("epoch of the tutorial's VAE, bfloat16", "times", 1.5, _EPOCH_HALF, "jax"),
    Requirement("engine's own time a step under 50 us: steps a second", "rate", 2e4, _OVERHEAD),
    Requirement("sprites, all of them, from shards", "times", 0.95, _SHARDS, "in memory"),
    Requirement("sprites, all of them, from shards", "GB under 1", 1, _SHARDS),
)

_84M = (Spec("autoencoder_kl_84m", (8,), "both", "bfloat16"),)
COMPILED = "ours (compiled)"

LARGE: tuple[Requirement, ...] = (
    Requirement("step of the 84 M autoencoder, bfloat16", "times", 1.3, _84M, "compile", COMPILED),
    Requirement(
        "step of the 84 M autoencoder, bfloat16", "memory", 1 / 0.7, _84M, "compile", COMPILED
    ),
)


def _of_copy(op: str, mine: str, *dtypes: str) -> Requirement:
    """At 2^24 and 2^26 elements, value and gradient, on a GPU."""
    specs = tuple(Spec(op, (1 << e,), "both", *dtypes) for e in (24, 26))
    what = f"{op}, both, from 2^24, {' and '.join(dtypes)}"
    return Requirement(what, "of copy", 0.85, specs, mine=mine)


# On a GPU: short, for a GPU that is lent for minutes. Measured only with --group gpu.
GPU: tuple[Requirement, ...] = (
    _of_copy("bernoulli_nll", BUFFER, "float32"),
    _of_copy("bernoulli_nll", BUFFER, "bfloat16", "uint8"),
    _of_copy("sample_and_kl", OURS, "float32"),
    _of_copy("sample_and_kl", OURS, "bfloat16"),
    Requirement("bce_kl_loss, value and gradient, 1024x784 + 64", "times", 1.5, _LOSS, "compile"),
    Requirement(
        "epoch of the tutorial's VAE in 30 ms: pixels a second", "rate", 1.568e9, _SHORT_EPOCH
    ),
    Requirement("epoch of the tutorial's VAE, float32", "times", 1.5, _SHORT_EPOCH, "compile"),
)

GROUPS = {
    "ops": OPS,
    "limits": LIMITS,
    "likelihoods": LIKELIHOODS,
    "engine": ENGINE,
    "large": LARGE,
    "gpu": GPU,
}


def specs(requirements: tuple[Requirement, ...]) -> list[Spec]:
    """The rows that requirements are about, each once."""
    wanted = [s for r in requirements for s in (*r.specs, *((r.base,) if r.base else ()))]
    return list(dict.fromkeys(wanted))


def key_of(spec: Spec) -> str:
    """The key of the row that a spec becomes (``Case.key``)."""
    if spec.op == "bce_kl_loss":
        samples, latent, features = spec.shape
        shape = f"{samples}x{features}+{latent}"
    else:
        shape = "x".join(map(str, spec.shape))
    parts = (spec.op, spec.pass_, shape, spec.dtype, spec.target)
    return "/".join(part for part in parts if part)


def judge(requirements: tuple[Requirement, ...], results: Results) -> Iterator[Verdict]:
    """Each requirement with what was measured: the worst of its rows, or why there is nothing."""
    rows = {row["key"]: row for row in results["rows"]}
    missing = results.get("missing", {})
    for requirement in requirements:
        measured, why = [], ""
        for spec in requirement.specs:
            key = key_of(spec)
            if key not in rows:
                why = missing.get(key, "not measured in this run")
                break
            value, why = _one(requirement, rows[key], rows, results.get("bandwidth", {}))
            if value is None:
                break
            measured.append(value)
        complete = len(measured) == len(requirement.specs)
        yield Verdict(requirement, min(measured) if complete else None, why)


def _one(
    r: Requirement, row: Row, rows: dict[str, Row], bandwidth: dict[str, float]
) -> tuple[float | None, str]:
    entries = timed(row)
    if r.mine not in entries:
        return None, _why(row, r.mine)
    mine = entries[r.mine]
    if r.measure == "rate":
        return row["elements"] / mine["median"], ""
    if r.measure == "rate over":
        base = rows.get(key_of(r.base)) if r.base else None
        if base is None or r.mine not in timed(base):
            return None, "its base is not measured"
        own_rate = row["elements"] / mine["median"]
        return own_rate / (base["elements"] / timed(base)[r.mine]["median"]), ""
    if r.measure == "GB under 1":
        if not mine.get("peak_bytes"):
            return None, "no peak memory was measured"
        return 1e9 / mine["peak_bytes"], ""
    if r.measure == "of copy":
        if not bandwidth.get("copy"):
            return None, "copying was not measured"
        return gigabytes_per_second(row, r.mine) / bandwidth["copy"], ""
    peer = fastest(row, r.peer)
    if peer is None:
        return None, _why(row, r.peer)
    if r.measure == "times":
        return ratio(row, peer, r.mine), ""
    if r.measure == "share":
        return gigabytes_per_second(row, r.mine) / gigabytes_per_second(row, peer), ""
    if r.measure == "memory":
        if not mine.get("peak_bytes") or not entries[peer].get("peak_bytes"):
            return None, "no peak memory was measured"
        return entries[peer]["peak_bytes"] / mine["peak_bytes"], ""
    raise ValueError(f"measure {r.measure!r} is unknown")


def _why(row: Row, name: str) -> str:
    entry = row["results"].get(name, {})
    for word in ("absent", "refused", "failed"):
        if word in entry:
            return f"{name} {word}: {entry[word]}"
    return f"{name} did not take part"
