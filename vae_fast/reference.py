"""Every op in plain PyTorch: the readable truth, the fallback, and the benchmarks' baseline.

The functions take arguments that ``vae_fast.functional`` has checked. Half-precision inputs are
computed in float32; sums are float32, or float64 for float64 inputs; autograd differentiates this
code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from vae_fast.likelihoods.bernoulli import BERNOULLI
from vae_fast.likelihoods.spec import Spec
from vae_fast.types import GatherMode, LossOutput, TermsReduction

_MASK32 = 0xFFFFFFFF
_PHILOX_M0, _PHILOX_M1 = 0xD2511F53, 0xCD9E8D57
_PHILOX_W0, _PHILOX_W1 = 0x9E3779B9, 0xBB67AE85
PHILOX_ROUNDS = 10


def compute_dtype(*tensors: torch.Tensor | None) -> torch.dtype:
    """float64 if any input is float64, else float32: the dtype of arithmetic and sums."""
    if any(t is not None and t.dtype == torch.float64 for t in tensors):
        return torch.float64
    return torch.float32


# --- noise ---------------------------------------------------------------------------------------


def philox(counter: list[torch.Tensor], key: list[torch.Tensor]) -> list[torch.Tensor]:
    """Philox4x32-10 (Salmon et al. 2011): four counter words and two key words to four words.

    Each word is an int64 tensor holding a value in [0, 2**32); products wrap in int64, and their
    halves are recovered with shifts and masks.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(PHILOX_ROUNDS):
        p0, p1 = c0 * _PHILOX_M0, c2 * _PHILOX_M1
        c0, c1, c2, c3 = (
            ((p1 >> 32) & _MASK32) ^ c1 ^ k0,
            p1 & _MASK32,
            ((p0 >> 32) & _MASK32) ^ c3 ^ k1,
            p0 & _MASK32,
        )
        k0, k1 = (k0 + _PHILOX_W0) & _MASK32, (k1 + _PHILOX_W1) & _MASK32
    return [c0, c1, c2, c3]


def random_words(key: torch.Tensor, n: int, first: int | torch.Tensor = 0) -> torch.Tensor:
    """``n`` 32-bit words of ``key``'s noise from element ``first`` on, as int64: element i uses word
    i mod 4 of counter i div 4. The key's first int64 is Philox's key, its second the counter's
    upper half.
    """
    skipped = first % 4
    block = torch.arange((n + 6) // 4, dtype=torch.int64, device=key.device) + first // 4
    philox_key, stream = key[0], key[1]
    of_counter = philox(
        [
            block & _MASK32,
            (block >> 32) & _MASK32,
            (stream & _MASK32).expand_as(block),
            ((stream >> 32) & _MASK32).expand_as(block),
        ],
        [philox_key & _MASK32, (philox_key >> 32) & _MASK32],
    )
    words = torch.stack(of_counter, dim=-1).reshape(-1)
    if isinstance(skipped, torch.Tensor):
        return words[torch.arange(n, device=key.device) + skipped]
    return words[skipped : skipped + n]


def normal(key: torch.Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Standard normals of ``key`` by Box-Muller: words (0, 1) of a counter give two, (2, 3) two.

    u = (w + 1/2) / 2**32 in (0, 1] for the radius. The angle's word is split into a quadrant and
    a signed rest, so that the arguments of sin and cos stay within a quarter of pi.
    """
    n = math.prod(shape)
    pairs = random_words(key, n + (-n) % 4).reshape(-1, 2)
    u = pairs[:, 0].to(dtype) * 2.0**-32 + 2.0**-33
    radius = torch.sqrt(-2.0 * torch.log(u))
    quadrant = (pairs[:, 1] + 2**29) >> 30
    rest = (pairs[:, 1] - (quadrant << 30)).to(dtype) * (2.0 * math.pi / 2**32)
    sin, cos = torch.sin(rest), torch.cos(rest)
    odd = (quadrant & 1) == 1
    x, y = torch.where(odd, sin, cos), torch.where(odd, cos, sin)
    x = torch.where(((quadrant + 1) & 2) != 0, -x, x)
    y = torch.where((quadrant & 2) != 0, -y, y)
    return torch.stack([radius * x, radius * y], dim=-1).reshape(-1)[:n].reshape(shape)


# --- reductions ----------------------------------------------------------------------------------


def samples_of(t: torch.Tensor) -> int:
    """Samples are dim 0, all other dims are features; a 1-D tensor is one sample."""
    return t.shape[0] if t.dim() >= 2 else 1


def reduce(
    values: torch.Tensor, reduction: TermsReduction, has_samples: bool | None = None
) -> torch.Tensor:
    """Sum elementwise ``values`` as ``reduction`` asks. A 1-D tensor is one sample."""
    if has_samples is None:
        has_samples = values.dim() >= 2
    if reduction == "none" and has_samples:
        return values.flatten(1).sum(1) if values.dim() >= 2 else values
    total = values.sum()
    return total / values.shape[0] if reduction == "batchmean" and has_samples else total


# --- Gaussian: sampling and KL -------------------------------------------------------------------


def reparameterize(
    mu: torch.Tensor,
    logvar: torch.Tensor,
    num_samples: int | None = None,
    noise_key: torch.Tensor | None = None,
) -> torch.Tensor:
    """z = mu + exp(logvar / 2) * eps (Kingma & Welling 2014, section 2.4)."""
    dtype = compute_dtype(mu, logvar)
    shape = mu.shape if num_samples is None else (num_samples, *mu.shape)
    if noise_key is None:
        eps = torch.randn(shape, dtype=dtype, device=mu.device)
    else:
        eps = normal(noise_key, tuple(shape), dtype)
    z = mu.to(dtype) + torch.exp(0.5 * logvar.to(dtype)) * eps
    return z.to(mu.dtype)


def gaussian_kl_terms(
    mu: torch.Tensor,
    logvar: torch.Tensor,
    prior_mu: torch.Tensor | None = None,
    prior_logvar: torch.Tensor | None = None,
) -> torch.Tensor:
    """KL(N(mu, exp(logvar)) || prior) of each element, in nats; the prior is N(0, 1) unless given.

    Kingma & Welling 2014, appendix B, for the standard normal.
    """
    dtype = compute_dtype(mu, logvar)
    mu, logvar = mu.to(dtype), logvar.to(dtype)
    if prior_mu is None or prior_logvar is None:
        return 0.5 * (torch.exp(logvar) - 1.0 - logvar + mu * mu)
    difference = mu - prior_mu.to(dtype)
    log_ratio = logvar - prior_logvar.to(dtype)
    # Scaled before it is squared, so that it overflows only if the result does.
    mahalanobis = (difference * torch.exp(-0.5 * prior_logvar.to(dtype))).square()
    return 0.5 * (torch.exp(log_ratio) - 1.0 - log_ratio + mahalanobis)


def gaussian_kl(
    mu: torch.Tensor,
    logvar: torch.Tensor,
    prior_mu: torch.Tensor | None = None,
    prior_logvar: torch.Tensor | None = None,
    reduction: TermsReduction = "sum",
) -> torch.Tensor:
    return reduce(gaussian_kl_terms(mu, logvar, prior_mu, prior_logvar), reduction)


def sample_and_kl(
    mu: torch.Tensor,
    logvar: torch.Tensor,
    prior_mu: torch.Tensor | None = None,
    prior_logvar: torch.Tensor | None = None,
    noise_key: torch.Tensor | None = None,
    reduction: TermsReduction = "sum",
) -> tuple[torch.Tensor, torch.Tensor]:
    z = reparameterize(mu, logvar, noise_key=noise_key)
    return z, gaussian_kl(mu, logvar, prior_mu, prior_logvar, reduction)


# --- likelihoods ---------------------------------------------------------------------------------


def as_probability(target: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """uint8 0..255 stands for 0..1, bool for 0 or 1 (any byte but 0); floats keep their values."""
    if target.dtype == torch.bool:
        return (target.view(torch.uint8) != 0).to(dtype)
    return target.to(dtype) / 255.0 if target.dtype == torch.uint8 else target.to(dtype)


def as_target(spec: Spec, target: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A target in the units of the likelihood's terms: bytes are counts, levels or x / 255."""
    if target.dtype == torch.uint8 and spec.target not in ("unit", "real"):
        return target.to(dtype)
    return as_probability(target, dtype)


def nll_terms(spec: Spec, params: Sequence[torch.Tensor], target: torch.Tensor) -> torch.Tensor:
    """-log p(target) in nats of each element (of each position, for a likelihood over planes).

    ``params`` broadcast to the target, or are one tensor with all of them stacked in its dim 1.
    """
    dtype = compute_dtype(*params)
    params = [p.to(dtype) for p in params]
    if len(params) == 1 and len(spec.params) > 1:
        params = params[0].chunk(len(spec.params), dim=1)
    return spec.terms(*params, as_target(spec, target, dtype))


def nll(
    spec: Spec,
    params: Sequence[torch.Tensor],
    target: torch.Tensor,
    reduction: TermsReduction = "sum",
) -> torch.Tensor:
    terms = nll_terms(spec, params, target)
    if spec.planes == 0 and terms.dim() > target.dim():  # K sets of samples: (K, B, ...)
        return terms.flatten(2).sum(2)
    return reduce(terms, reduction, spec.planes > 0 or target.dim() >= 2)


def elbo(
    spec: Spec,
    params: Sequence[torch.Tensor],
    target: torch.Tensor,
    mu: torch.Tensor,
    logvar: torch.Tensor,
    beta: float | torch.Tensor = 1.0,
    reduction: TermsReduction = "sum",
) -> LossOutput:
    if any((p.dtype == torch.float64) != (mu.dtype == torch.float64) for p in params):
        params, mu, logvar = [p.double() for p in params], mu.double(), logvar.double()
    recon = nll(spec, params, target, reduction)
    kl = gaussian_kl(mu, logvar, reduction=reduction).reshape(recon.shape)
    if isinstance(beta, torch.Tensor):
        beta = beta.to(kl)  # or a float64 beta would make the loss float64
    return LossOutput(recon + beta * kl, recon, kl)


def linear_bernoulli_nll(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    target: torch.Tensor,
    reduction: TermsReduction = "sum",
) -> torch.Tensor:
    return nll(BERNOULLI, [F.linear(hidden, weight, bias)], target, reduction)


# --- normalisation -------------------------------------------------------------------------------


def group_norm(
    x: torch.Tensor,
    groups: int,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
    silu: bool,
) -> torch.Tensor:
    """In the layout of x. Half precision is computed in float32 on the CPU; on a GPU, where it would
    keep twice the bytes for backward, torch's kernels take the statistics in float32 anyway.
    """
    given, x = x, x if x.is_cuda else x.to(compute_dtype(x))
    weight, bias = (None if t is None else t.to(x.dtype) for t in (weight, bias))
    if x.numel() == 0:  # torch's norm takes no empty maps
        for t in (weight, bias):
            x = x if t is None else x * t.view(-1, *[1] * (x.dim() - 2))
        return (F.silu(x) if silu else x).to(given.dtype)
    if weight is None and bias is not None:  # torch 2.13 has no gradient of a bias alone
        weight = torch.ones_like(bias)
    if torch.is_grad_enabled() and not x.requires_grad:  # there torch 2.13 crashes in channels-last
        x = x.contiguous()
    with torch.autocast(x.device.type, enabled=False):
        y = torch.group_norm(x, groups, weight, bias, eps)
        y = (F.silu(y) if silu else y).to(given.dtype)
    # On a GPU, torch before 2.14 or so gives back a contiguous tensor for a channels-last one.
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.dim())
    if last is None or given.is_contiguous() or not given.is_contiguous(memory_format=last):
        return y.contiguous()
    return y.contiguous(memory_format=last)


# --- gathering -----------------------------------------------------------------------------------


def gather_batch(
    data: torch.Tensor,
    index: torch.Tensor,
    mode: GatherMode = "bytes",
    noise_key: torch.Tensor | None = None,
    first_row: int | torch.Tensor = 0,
) -> torch.Tensor:
    batch = data.index_select(0, index)
    if mode == "scale":
        return as_probability(batch, torch.float32)
    if mode == "bytes" or data.dtype == torch.bool:
        return batch
    # Pixel i takes word i: 255 w / 2^32 is uniform in [0, 255), and below x with probability x/255.
    columns = batch[0].numel() if len(batch) else 0
    assert noise_key is not None  # binarising takes a key
    words = random_words(noise_key, batch.numel(), first_row * columns)
    return ((words * 255) >> 32).reshape(batch.shape) < batch
