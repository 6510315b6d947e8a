"""Which rows a suite has: ops at shapes, passes and dtypes."""

from __future__ import annotations

from dataclasses import dataclass

SUITES = ("standard", "sizes", "training", "large", "models", "must-show", "all")

# (samples, latent dimensions, features): a small MLP on 28x28 images, a larger batch, and a
# convolutional VAE on 64x64 colour images.
STANDARD = ((128, 20, 784), (1024, 64, 784), (256, 128, 3 * 64 * 64))

# Images people use, (samples, features), with a batch that such images are trained with.
IMAGES = ((128, 784), (128, 3 * 32 * 32), (64, 3 * 64 * 64), (16, 3 * 256 * 256))

EXPONENTS = (10, 12, 14, 16, 18, 20, 22, 24, 26, 27)
QUICK_EXPONENTS = (10, 14, 18, 22)

# Shapes: cells by genes, images of bytes, and tensors larger than caches.
LIKELIHOODS = {
    "negative_binomial": (128, 2000),
    "zero_inflated_negative_binomial": (128, 2000),
    "gaussian": (64, 1 << 16),
    "laplace": (64, 1 << 16),
    "continuous_bernoulli": (64, 1 << 14),
    "discretized_logistic_mixture": (16, 3, 32, 32),
}

GAUSSIAN = ("reparameterize", "gaussian_kl", "sample_and_kl")


@dataclass(frozen=True)
class Spec:
    """The specification of a row: what its ``setup_`` function is called with.

    shape: (n,) or (samples, features), and (samples, latent, features) for a loss with both terms.
    """

    op: str
    shape: tuple[int, ...]
    pass_: str
    dtype: str = "float32"
    target: str = ""  # dtype of the target, where there is one and it is not the logits'


# A first look: a row of each kind at the shapes of a small VAE.
QUICK = (
    ("bernoulli_nll", (1024, 784)),
    ("bce_kl_loss", (1024, 64, 784)),
    ("sample_and_kl", (1024, 64)),
    ("iwae_bound", (50, 100, 784)),
    ("zero_inflated_negative_binomial_nll", (128, 2000)),
    ("total_correlation", (1024, 10)),
    ("step", (128,)),
)


def standard(quick: bool = False) -> list[Spec]:
    """Each op at the standard shapes, values and values with gradients; ``quick`` has a few."""
    if quick:
        return [Spec(op, shape, "both") for op, shape in QUICK]
    specs = []
    for pass_ in ("value", "both"):
        for samples, latent, features in STANDARD:
            specs += [Spec(op, (samples, latent), pass_) for op in GAUSSIAN]
            specs.append(Spec("bernoulli_nll", (samples, features), pass_))
            specs.append(Spec("bce_kl_loss", (samples, latent, features), pass_))
    specs += [Spec("linear_bernoulli_nll", (1024, 400, 784), "both", d) for d in _FLOATS]
    specs.append(Spec("iwae_bound", (50, 100, 784), "both"))
    specs += [Spec(f"{name}_nll", shape, "both") for name, shape in LIKELIHOODS.items()]
    specs += [Spec("total_correlation", (1024, d), "both") for d in (10, 64)]
    specs.append(Spec("mixture_log_density", (128, 500, 40), "both"))
    specs += [Spec("mmd", (256, 64), "both"), Spec("nearest_code", (4096, 1024, 64), "both")]
    for op in ("group_norm_silu", "group_norm_silu_last"):  # contiguous maps, and channels-last
        specs += [Spec(op, (8, 128, 64, 64), "both", d) for d in _FLOATS]
    specs += [Spec("gather", (128, 784), "value", d) for d in ("uint8", "float32", "bool")]
    return sorted(specs, key=lambda s: (s.op, s.pass_))


def sizes(quick: bool = False) -> list[Spec]:
    """From 2^10 to 2^27 elements, the shapes people use, each pass, float32, bfloat16 and uint8."""
    specs = []
    exponents = QUICK_EXPONENTS if quick else EXPONENTS
    passes = ("both",) if quick else ("value", "gradient", "both")
    for pass_ in passes:
        for e in exponents:
            specs += [Spec("bernoulli_nll", (1 << e,), pass_, *d) for d in _DTYPES]
            specs += [Spec("sample_and_kl", (1 << e,), pass_, dtype) for dtype in _FLOATS]
        for shape in IMAGES:
            specs += [Spec("bernoulli_nll", shape, pass_, *d) for d in _DTYPES]
    return specs


_FLOATS = ("float32", "bfloat16")
_DTYPES = (("float32", ""), ("bfloat16", ""), ("float32", "uint8"), ("bfloat16", "uint8"))


# (batch, hidden features, images). Batches are whole, because JAX leaves out a smaller last one. There
# are at least 60, because the engine also takes an epoch's first step eagerly, to compare it.
SIZES = (
    *((32, hidden, 20_480) for hidden in (64, 400, 2000)),
    *((128, hidden, 20_480) for hidden in (64, 2000)),
    *((1024, hidden, 61_440) for hidden in (64, 400, 2000)),
)


def training() -> list[Spec]:
    """The tutorial's VAE: one step of 128 images, one epoch of 60,000, alone, beside busy processes,
    and with batches and hidden layers of other sizes (batch, hidden), and steps from shards."""
    count = 60_000
    return [
        Spec("step", (128,), "both"),
        Spec("overhead", (128,), "both"),
        Spec("epoch", (128, count), "both"),
        Spec("epoch", (128, count), "both", "bfloat16"),
        *(Spec("epoch", (128, count, busy), "both") for busy in (2, 4, 16)),
        *(Spec("sizes", sizes, "both") for sizes in SIZES),
        Spec("shards", (128, 1 << 16), "both"),
    ]


def large() -> list[Spec]:
    """A step of each autoencoder in examples/; the larger ones want a GPU, and say so."""
    return [
        Spec("autoencoder_kl", (64,), "both"),
        Spec("autoencoder_kl", (64,), "both", "bfloat16"),
        Spec("autoencoder_kl_22m", (64,), "both", "bfloat16"),
        Spec("autoencoder_kl_84m", (8,), "both", "bfloat16"),
    ]


def models() -> list[Spec]:
    """A step of every model that pythae has too."""
    from benchmarks.pythae_models import PAIRS

    return [Spec(f"model {name}", (128,), "both") for name in PAIRS]
