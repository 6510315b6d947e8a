"""The public functions: they check their arguments and pick native kernels or plain PyTorch.

Samples are dim 0 and every other dim is a feature; a 1-D tensor is one sample. Losses are in
nats. Inputs may be float32, float64, bfloat16 or float16, contiguous or not; sums are float32
(float64 for float64 inputs) and gradients have their input's dtype. Double backward raises.
"""

from __future__ import annotations

import math

import torch

from vae_fast import reference
from vae_fast.backend import _libraries, use_native
from vae_fast.noise import check_key, new_key
from vae_fast.types import GATHER_MODES, REDUCTIONS, GatherMode, LossOutput, Reduction

if "cpu" in _libraries:
    from vae_fast.ops import bce_kl as _bce_kl
    from vae_fast.ops import bernoulli as _bernoulli
    from vae_fast.ops import gather as _gather
    from vae_fast.ops import gaussian as _gaussian
    from vae_fast.ops import linear as _linear
    from vae_fast.ops import samples as _samples

_FLOATING = frozenset({torch.float32, torch.float64, torch.bfloat16, torch.float16})
_TARGETS = _FLOATING | {torch.uint8, torch.bool}
_REDUCTION_CODES = {name: code for code, name in enumerate(REDUCTIONS)}


def _reduction_code(reduction: str) -> int:
    code = _REDUCTION_CODES.get(reduction)
    if code is None:
        hint = (
            " (a mean over features would silently change beta; use 'batchmean')"
            if reduction == "mean"
            else ""
        )
        raise ValueError(
            f"reduction must be one of {', '.join(map(repr, REDUCTIONS))}, got {reduction!r}{hint}"
        )
    return code


def _check_floating(name: str, t: torch.Tensor) -> None:
    if not isinstance(t, torch.Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(t).__name__}")
    if t.dtype not in _FLOATING:
        raise TypeError(
            f"{name} must be float32, float64, bfloat16 or float16, got {t.dtype}: "
            f"convert it with {name}.float()"
        )


def _check_like(name: str, t: torch.Tensor, other_name: str, other: torch.Tensor) -> None:
    if t.shape != other.shape:
        raise ValueError(
            f"{name} has shape {tuple(t.shape)}, {other_name} has shape {tuple(other.shape)}: "
            "they must be equal"
        )
    if t.device != other.device:
        raise ValueError(
            f"{name} is on {t.device}, {other_name} on {other.device}: move them to one device"
        )


def _gaussian_pair(
    mu: torch.Tensor, logvar: torch.Tensor, mu_name: str = "mu", logvar_name: str = "logvar"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Check a Gaussian's parameters and bring them to one dtype."""
    if logvar is None:
        raise TypeError(f"{logvar_name} is missing: a Gaussian needs {mu_name} and {logvar_name}")
    _check_floating(mu_name, mu)
    _check_floating(logvar_name, logvar)
    _check_like(mu_name, mu, logvar_name, logvar)
    if mu.dtype != logvar.dtype:
        dtype = torch.promote_types(mu.dtype, logvar.dtype)
        mu, logvar = mu.to(dtype), logvar.to(dtype)
    return mu, logvar


def _with_prior(
    mu: torch.Tensor,
    logvar: torch.Tensor,
    prior_mu: torch.Tensor | None,
    prior_logvar: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """Check posterior and prior, broadcast the prior to the posterior, and unite their dtypes."""
    mu, logvar = _gaussian_pair(mu, logvar)
    if prior_mu is None and prior_logvar is None:
        return mu, logvar, None, None
    if prior_mu is None or prior_logvar is None:
        missing = "prior_mu" if prior_mu is None else "prior_logvar"
        raise TypeError(f"{missing} is missing: give prior_mu and prior_logvar, or neither")
    prior_mu, prior_logvar = _gaussian_pair(prior_mu, prior_logvar, "prior_mu", "prior_logvar")
    if prior_mu.device != mu.device:
        raise ValueError(
            f"prior_mu is on {prior_mu.device}, mu on {mu.device}: move them to one device"
        )
    if prior_mu.shape != mu.shape:
        try:
            prior_mu, prior_logvar = prior_mu.expand(mu.shape), prior_logvar.expand(mu.shape)
        except RuntimeError:
            raise ValueError(
                f"prior_mu has shape {tuple(prior_mu.shape)}, which does not broadcast to mu's "
                f"shape {tuple(mu.shape)}"
            ) from None
    if prior_mu.dtype != mu.dtype:
        dtype = torch.promote_types(prior_mu.dtype, mu.dtype)
        mu, logvar, prior_mu, prior_logvar = (
            t.to(dtype) for t in (mu, logvar, prior_mu, prior_logvar)
        )
    return mu, logvar, prior_mu, prior_logvar


def _bernoulli_pair(
    logits: torch.Tensor, target: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Check logits (or probabilities) and target; exotic dtype mixtures become one of ours."""
    _check_floating("logits", logits)
    if not isinstance(target, torch.Tensor):
        raise TypeError(f"target must be a tensor, got {type(target).__name__}")
    if target.dtype not in _TARGETS:
        raise TypeError(
            f"target must be floating (0..1), uint8 (0..255) or bool, got {target.dtype}: "
            "convert it with target.float() or target.to(torch.uint8)"
        )
    _check_like("logits", logits, "target", target)
    return logits, target


def reparameterize(
    mu: torch.Tensor,
    logvar: torch.Tensor,
    *,
    num_samples: int | None = None,
    noise_key: torch.Tensor | None = None,
) -> torch.Tensor:
    """Sample z = mu + exp(logvar / 2) * eps with eps ~ N(0, 1).

    The reparameterisation trick of Kingma & Welling 2014, section 2.4.

    Args:
        mu, logvar: (..., D), same shape; logvar is log sigma^2.
        num_samples: K draws per element, stacked in front; None for one draw without that dim.
        noise_key: int64 tensor of 2 elements that fixes eps (``vae_fast.noise.new_key``); drawn
            from torch's generator when None.

    Returns:
        z: (..., D), or (K, ..., D) with ``num_samples=K``; its dtype is what mu's and logvar's
        promote to.

    Raises:
        ValueError, TypeError: shapes, devices or dtypes that don't fit.
    """
    mu, logvar = _gaussian_pair(mu, logvar)
    if num_samples is not None and (not isinstance(num_samples, int) or num_samples < 1):
        raise ValueError(f"num_samples must be a positive integer or None, got {num_samples!r}")
    if noise_key is not None:
        noise_key = check_key(noise_key, mu.device)
    if not use_native(mu.device.type):
        return reference.reparameterize(mu, logvar, num_samples, noise_key)
    if noise_key is None:
        noise_key = new_key(mu.device)
    return _gaussian.reparameterize(mu, logvar, noise_key, num_samples)


def gaussian_kl(
    mu: torch.Tensor,
    logvar: torch.Tensor,
    prior_mu: torch.Tensor | None = None,
    prior_logvar: torch.Tensor | None = None,
    *,
    reduction: Reduction = "sum",
) -> torch.Tensor:
    """KL(N(mu, exp(logvar)) || p) in nats, to N(0, 1) or to the Gaussian given.

    Kingma & Welling 2014, appendix B: 0.5 * (exp(logvar) + mu^2 - 1 - logvar) per element.

    Args:
        mu, logvar: (B, ...), same shape; logvar is log sigma^2.
        prior_mu, prior_logvar: the prior's parameters, broadcast to mu's shape; both or neither.
        reduction: "sum", "batchmean" (sum over features, mean over samples) or "none" (B,).
    """
    code = _reduction_code(reduction)
    mu, logvar, prior_mu, prior_logvar = _with_prior(mu, logvar, prior_mu, prior_logvar)
    if not use_native(mu.device.type):
        return reference.gaussian_kl(mu, logvar, prior_mu, prior_logvar, reduction)
    return _gaussian.gaussian_kl(mu, logvar, prior_mu, prior_logvar, code)


def sample_and_kl(
    mu: torch.Tensor,
    logvar: torch.Tensor,
    prior_mu: torch.Tensor | None = None,
    prior_logvar: torch.Tensor | None = None,
    *,
    noise_key: torch.Tensor | None = None,
    reduction: Reduction = "sum",
) -> tuple[torch.Tensor, torch.Tensor]:
    """``reparameterize`` and ``gaussian_kl`` of the same Gaussian in one pass over it.

    Returns:
        (z, kl): z has mu's shape and the dtype that the inputs' promote to; kl is in nats, reduced
        as asked.
    """
    code = _reduction_code(reduction)
    mu, logvar, prior_mu, prior_logvar = _with_prior(mu, logvar, prior_mu, prior_logvar)
    if noise_key is not None:
        noise_key = check_key(noise_key, mu.device)
    if not use_native(mu.device.type):
        return reference.sample_and_kl(mu, logvar, prior_mu, prior_logvar, noise_key, reduction)
    if noise_key is None:
        noise_key = new_key(mu.device)
    return _gaussian.sample_and_kl(mu, logvar, prior_mu, prior_logvar, noise_key, code)


def bernoulli_nll(
    logits: torch.Tensor,
    target: torch.Tensor,
    *,
    reduction: Reduction = "sum",
    from_logits: bool = True,
) -> torch.Tensor:
    """-log Bernoulli(target | logits) in nats: binary cross-entropy, from logits.

    max(x, 0) - x t + log(1 + exp(-|x|)) per element, for t in [0, 1] (Loaiza-Ganem & Cunningham
    2019 discuss t that is not binary).

    Args:
        logits: (B, ...); with ``from_logits=False``, probabilities in [0, 1], and the result
            matches ``F.binary_cross_entropy`` with its clamps.
        target: same shape; floating in [0, 1], uint8 (x stands for x / 255) or bool.
        reduction: "sum", "batchmean" (sum over features, mean over samples) or "none" (B,).
    """
    code = _reduction_code(reduction)
    logits, target = _bernoulli_pair(logits, target)
    if not use_native(logits.device.type):
        return reference.bernoulli_nll(logits, target, reduction, from_logits)
    return _bernoulli.bernoulli_nll(logits, target, code, from_logits)


def bce_kl_loss(
    logits: torch.Tensor,
    target: torch.Tensor,
    mu: torch.Tensor,
    logvar: torch.Tensor,
    *,
    beta: float | torch.Tensor = 1.0,
    reduction: Reduction = "sum",
    from_logits: bool = True,
) -> LossOutput:
    """The negative ELBO of a Bernoulli VAE: ``bernoulli_nll + beta * gaussian_kl``, in one op.

    Kingma & Welling 2014, equation 10; beta as in Higgins et al. 2017.

    Args:
        logits, target: (B, ...), as for ``bernoulli_nll``.
        mu, logvar: (B, ...), as for ``gaussian_kl``; their own shape, the same B.
        beta: the KL's weight, a number or a 0-d tensor (which gets no gradient).
        reduction: "sum" (over everything, as the tutorial's loss), "batchmean" or "none".

    Returns:
        LossOutput(loss, recon, kl) in nats, recon and kl unweighted.
    """
    code = _reduction_code(reduction)
    logits, target = _bernoulli_pair(logits, target)
    mu, logvar = _gaussian_pair(mu, logvar)
    if mu.device != logits.device:
        raise ValueError(f"mu is on {mu.device}, logits on {logits.device}: move to one device")
    if reference.samples_of(mu) != reference.samples_of(logits):
        raise ValueError(
            f"logits has {reference.samples_of(logits)} samples (shape {tuple(logits.shape)}), "
            f"mu has {reference.samples_of(mu)} (shape {tuple(mu.shape)}): they must be equal"
        )
    if isinstance(beta, torch.Tensor):
        if beta.numel() != 1:
            raise ValueError(f"beta must be one number, got a tensor of {tuple(beta.shape)}")
        beta = beta.detach().reshape(())
    if not use_native(logits.device.type):
        return reference.bce_kl_loss(logits, target, mu, logvar, beta, reduction, from_logits)
    return _bce_kl.bce_kl_loss(logits, target, mu, logvar, beta, code, from_logits)


def linear_bernoulli_nll(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    target: torch.Tensor,
    *,
    reduction: Reduction = "sum",
) -> torch.Tensor:
    """``bernoulli_nll(linear(hidden, weight, bias), target)`` without the logits in memory.

    The last layer of a Bernoulli decoder and its loss in one op: chunks of samples that fit the
    cache go through the matrix product, the loss and the gradients' products, so that logits and
    their gradient are never whole.

    Args:
        hidden: (B, H), the last layer's input.
        weight, bias: (D, H) and (D,) or None, as ``torch.nn.Linear`` has them.
        target: (B, ...) with D features; floating in [0, 1], uint8 (x / 255) or bool.
        reduction: "sum", "batchmean" (sum over features, mean over samples) or "none" (B,).
    """
    code = _reduction_code(reduction)
    named = [("hidden", hidden), ("weight", weight)] + ([] if bias is None else [("bias", bias)])
    for name, t in named:
        _check_floating(name, t)
    if torch.is_autocast_enabled(hidden.device.type):  # as torch.nn.Linear does there
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
        with torch.autocast(hidden.device.type, enabled=False):
            return linear_bernoulli_nll(hidden, weight, bias, target, reduction=reduction)
    for name, t in named:
        if t.dtype != hidden.dtype or t.device != hidden.device:
            raise ValueError(
                f"{name} is {t.dtype} on {t.device}, hidden {hidden.dtype} on {hidden.device}: "
                "they must be equal"
            )
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            f"hidden must be (B, H) and weight (D, H), got {tuple(hidden.shape)} and "
            f"{tuple(weight.shape)}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(
            f"bias has shape {tuple(bias.shape)}, weight {tuple(weight.shape)}: bias must be "
            f"({weight.shape[0]},)"
        )
    if not isinstance(target, torch.Tensor):
        raise TypeError(f"target must be a tensor, got {type(target).__name__}")
    logits_shape = torch.Size((hidden.shape[0], weight.shape[0]))
    if target.dim() < 2 or target.flatten(1).shape != logits_shape:
        raise ValueError(
            f"target has shape {tuple(target.shape)}, the layer's output {tuple(logits_shape)}: "
            "samples and features must be equal"
        )
    target = target.flatten(1)
    _bernoulli_pair(hidden.new_empty(()).expand(logits_shape), target)
    if not use_native(hidden.device.type) or torch.compiler.is_compiling():
        return reference.linear_bernoulli_nll(hidden, weight, bias, target, reduction)
    if target.requires_grad:
        raise ValueError("target requires grad, which linear_bernoulli_nll has no gradient for")
    return _linear.linear_bernoulli_nll(hidden, weight, bias, target, code)


def bernoulli_nll_samples(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """-log p(target | logits_k) in nats for K sample sets, without repeating the target.

    What importance weighting needs of a Bernoulli decoder (Burda et al. 2015).

    Args:
        logits: (K, B, ...).
        target: (B, ...); floating in [0, 1], uint8 (x / 255) or bool.

    Returns:
        (K, B), float32 or better.
    """
    if not isinstance(target, torch.Tensor) or target.dim() < 2:
        raise ValueError("target must be a tensor (B, ...) with its features behind B")
    _check_floating("logits", logits)
    if logits.dim() != target.dim() + 1 or logits.shape[1:] != target.shape:
        raise ValueError(
            f"logits must be (K, B, ...) and target (B, ...), got {tuple(logits.shape)} and "
            f"{tuple(target.shape)}"
        )
    _bernoulli_pair(logits, target.expand_as(logits))
    if not use_native(logits.device.type) or target.requires_grad:
        return reference.bernoulli_nll_samples(logits, target)
    return _samples.bernoulli_nll_samples(logits, target)


def gather_batch(
    data: torch.Tensor,
    index: torch.Tensor,
    *,
    mode: GatherMode = "bytes",
    noise_key: torch.Tensor | None = None,
    first_row: int | torch.Tensor = 0,
) -> torch.Tensor:
    """A batch of a data set of bytes: the rows of ``data`` at ``index``, never copied to float unasked.

    ``"binarize"`` draws each pixel from Bernoulli(x / 255) (dynamic binarisation, Salakhutdinov &
    Murray 2008). The draws are a function of the noise key and of a pixel's place: pixel c of the
    batch's row r takes word (first_row + r) * columns + c of the key's noise, the same bits for
    every backend, instruction set, number of threads and device.

    Args:
        data: (N, ...) uint8 (0..255 stands for x / 255) or bool, resident on the device.
        index: (B,) int64 on the same device, each in [0, N).
        mode: "bytes" gives the rows as they are; "scale" float32, x / 255 correctly rounded (0 or 1
            of bool); "binarize" bool (bool data stay as they are).
        noise_key: of "binarize": int64 tensor of 2 elements (``vae_fast.noise.new_key``); drawn from
            torch's generator when None.
        first_row: of "binarize": the place of the batch's first row in a longer sequence, such as an
            epoch, whose rows share one key: the draws then don't depend on how the sequence is cut
            into batches. A number, or an int64 tensor of one element on the device, which a
            captured CUDA graph reads at each replay.

    Returns:
        (B, ...), contiguous; uint8 or bool as data is, float32, or bool.

    Raises:
        IndexError: an index outside [0, N), before anything is read. On a GPU that would make the
            host wait: there the kernel traps, which CUDA reports at the next synchronisation.
        TypeError, ValueError: dtypes, shapes or devices that don't fit.
    """
    if mode not in GATHER_MODES:
        raise ValueError(f"mode must be one of {', '.join(map(repr, GATHER_MODES))}, got {mode!r}")
    if not isinstance(data, torch.Tensor) or data.dtype not in (torch.uint8, torch.bool):
        found = data.dtype if isinstance(data, torch.Tensor) else type(data).__name__
        raise TypeError(f"data must be a uint8 (0..255) or bool tensor, got {found}")
    if not isinstance(index, torch.Tensor) or index.dtype != torch.int64 or index.dim() != 1:
        found = (
            f"{index.dtype} of shape {tuple(index.shape)}"
            if isinstance(index, torch.Tensor)
            else type(index).__name__
        )
        raise TypeError(f"index must be an int64 tensor (B,), got {found}")
    if data.dim() < 1 or index.device != data.device:
        raise ValueError(
            f"data must be (N, ...) on the index's device, got {tuple(data.shape)} on "
            f"{data.device} and an index on {index.device}"
        )
    if data.dtype == torch.bool and mode == "binarize":
        mode = "bytes"
    if noise_key is not None:
        noise_key = check_key(noise_key, data.device, "data")
    elif mode == "binarize":
        noise_key = new_key(data.device)
    native = use_native(data.device.type)
    if native and not data.is_contiguous():  # a view of the data: its rows alone are copied
        data, index = data.index_select(0, index), torch.arange(len(index), device=data.device)
        data = data.contiguous()
    if native:
        code = GATHER_MODES.index(mode)
        try:
            return _gather.gather_batch(data, index.contiguous(), code, noise_key, first_row)
        except RuntimeError:
            _check_index(index, len(data))
            raise
    if data.device.type == "cpu" and not torch.compiler.is_compiling():
        _check_index(index, len(data))
    return reference.gather_batch(data, index, mode, noise_key, first_row)


def _check_index(index: torch.Tensor, samples: int) -> None:
    """Raise IndexError for the first index outside [0, samples)."""
    bad = ((index < 0) | (index >= samples)).nonzero()
    if len(bad):
        place = int(bad[0])
        raise IndexError(
            f"index {int(index[place])}, at place {place} of {len(index)}, is outside the data, "
            f"which has samples 0 to {samples - 1}"
        )


def iwae_bound(
    logits: torch.Tensor,
    target: torch.Tensor,
    z: torch.Tensor,
    mu: torch.Tensor,
    logvar: torch.Tensor,
    *,
    dreg: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The K-sample bound of a Bernoulli VAE with a standard-normal prior.

    log (1/K) sum_k w_k with log w_k = log p(x | z_k) + log p(z_k) - log q(z_k | x): Burda et al.
    2015, equation 8. Its gradient weighs each sample's by the normalised weight, as a constant
    (equation 14). Beyond the logits' gradient nothing of the logits' size is made.

    Args:
        logits: (K, B, ...), the decoder's output for z.
        target: (B, ...); floating in [0, 1], uint8 (x / 255) or bool.
        z: (K, B, D), the samples that logits were decoded from (``reparameterize`` with
            ``num_samples=K``).
        mu, logvar: (B, D), the posterior that z was drawn from.
        dreg: doubly reparameterised gradients for the encoder (Tucker et al. 2018, equation 8);
            the decoder's are the same. Hooks z, so give each z to one bound only.

    Returns:
        (bound, log_weight): (B,) and (K, B) in nats; the loss is ``-bound``.
    """
    mu, logvar = _gaussian_pair(mu, logvar)
    _check_floating("z", z)
    if z.dim() != 3 or z.shape[1:] != mu.shape or z.shape[:2] != logits.shape[:2]:
        raise ValueError(
            f"z must be (K, B, D) for logits (K, B, ...) and mu (B, D), got {tuple(z.shape)}, "
            f"{tuple(logits.shape)} and {tuple(mu.shape)}"
        )
    nll = bernoulli_nll_samples(logits, target)
    dtype = nll.dtype
    q_mu, q_logvar = (mu.detach(), logvar.detach()) if dreg else (mu, logvar)
    wide = z.to(dtype)
    difference = wide - q_mu.to(dtype)
    q_logvar = q_logvar.to(dtype)
    # log p(z) - log q(z | x): log 2 pi cancels.
    log_ratio = 0.5 * (difference * difference * torch.exp(-q_logvar) + q_logvar - wide * wide).sum(
        -1
    )
    log_weight = log_ratio - nll
    bound = torch.logsumexp(log_weight, 0) - math.log(log_weight.shape[0])
    if dreg and z.requires_grad:
        # d bound / d z_k carries one normalised weight; the estimator needs its square for the
        # encoder, and the encoder is all that z's gradient reaches.
        weight = log_weight.detach().softmax(0).unsqueeze(-1).to(z.dtype)
        z.register_hook(lambda grad: grad * weight)
    return bound, log_weight
