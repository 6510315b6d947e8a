"""pythae's models (Chadebec et al. 2022): sampling, reconstruction, KL, IWAE's weights, beta-TCVAE, and
the trainer's Adam.

RHVAE, HVAE, SVAE and PoincareVAE have other latent spaces than Gaussian ones and are not changed.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vae_fast import reference_pairwise
from vae_fast.backend import _libraries
from vae_fast.functional import (
    bce_kl_loss,
    bernoulli_nll,
    bernoulli_nll_samples,
    gaussian_kl,
    reparameterize,
)
from vae_fast.functional.importance import negligible
from vae_fast.functional.pairwise import _ops_for
from vae_fast.ops.autograd import beyond_native, differentiable_again
from vae_fast.patches.core import Noise, Table, Target

if "cpu" in _libraries:
    from vae_fast.ops import pairwise
else:
    pairwise = None  # type: ignore[assignment]

Losses = tuple[Tensor, ...]


def _sample_gauss(noise: Noise, original: Callable[..., Any]) -> Callable[..., Any]:
    def sample(self: Any, mu: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
        if noise == "torch":
            eps = torch.randn_like(std)
            return torch.addcmul(mu, eps, std), eps
        return reparameterize(mu, scale=std, return_eps=True)

    return sample


# --- parts ---------------------------------------------------------------------------------------


def _recon(self: Any, recon_x: Tensor, x: Tensor) -> Tensor:
    """-log p(x | z) of each sample by the model's definition, (B,)."""
    made, data = recon_x.reshape(x.shape[0], -1), x.reshape(x.shape[0], -1)
    if self.model_config.reconstruction_loss == "bce":
        return bernoulli_nll(made, data, from_logits=False, reduction="none")
    return 0.5 * F.mse_loss(made, data, reduction="none").sum(-1)


def _recon_of_samples(self: Any, recon_x: Tensor, x: Tensor) -> Tensor:
    """The same of the K samples of each x, (B, K) or (B, M, K)."""
    data = x.reshape(len(x), *[1] * (recon_x.dim() - 2), -1).expand_as(recon_x)
    if self.model_config.reconstruction_loss == "bce":
        made, data = recon_x.reshape(-1, recon_x.shape[-1]), data.reshape(-1, recon_x.shape[-1])
        nll = bernoulli_nll(made, data, from_logits=False, reduction="none")
        return nll.view(recon_x.shape[:-1])
    return 0.5 * F.mse_loss(recon_x, data, reduction="none").sum(-1)


def _kl_of_samples(mu: Tensor, log_var: Tensor, z: Tensor) -> Tensor:
    """log q(z | x) - log p(z); log 2 pi cancels."""
    scaled = (z - mu) * torch.exp(-0.5 * log_var)
    return 0.5 * (z * z - log_var - scaled * scaled).sum(-1)


def _weighed(log_w: Tensor) -> Tensor:
    """Minus the sum of log-weights, each times its normalised weight, over dim 1."""
    weight = torch.softmax(log_w, 1).detach().masked_fill(negligible(log_w, 1), 0.0)
    return -(weight * log_w).sum(1)


def _where_supported(
    method: Callable[..., Any],
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Makes a loss_function that calls the original for losses that it does not support."""

    def replace(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def loss_function(self: Any, recon_x: Any, x: Tensor, *args: Any) -> Any:
            if self.model_config.reconstruction_loss not in ("bce", "mse"):
                return original(self, recon_x, x, *args)
            return method(self, recon_x, x, *args)

        return loss_function

    return replace


# --- losses --------------------------------------------------------------------------------------


def _elbo(self: Any, recon_x: Any, x: Tensor, mu: Tensor, log_var: Any, beta: float) -> Losses:
    if self.model_config.reconstruction_loss == "bce":
        made, data = recon_x.reshape(x.shape[0], -1), x.reshape(x.shape[0], -1)
        return tuple(
            bce_kl_loss(
                made, data, mu, log_var, beta=beta, from_logits=False, reduction="batchmean"
            )
        )
    made = F.mse_loss(recon_x.reshape(x.shape), x, reduction="sum")
    recon = made * (0.5 / x.shape[0])
    kl = gaussian_kl(mu, log_var, reduction="batchmean")
    return recon + beta * kl, recon, kl


def _vae(self: Any, recon_x: Any, x: Tensor, mu: Tensor, log_var: Any, z: Tensor) -> Losses:
    return _elbo(self, recon_x, x, mu, log_var, 1.0)


def _beta_vae(self: Any, recon_x: Any, x: Tensor, mu: Tensor, log_var: Any, z: Tensor) -> Losses:
    return _elbo(self, recon_x, x, mu, log_var, self.beta)


def _disentangled(
    self: Any, recon_x: Any, x: Tensor, mu: Tensor, log_var: Any, z: Tensor, epoch: Any
) -> Losses:
    recon = _recon(self, recon_x, x)
    kl = gaussian_kl(mu, log_var, reduction="none")
    capacity = self.C * min(epoch / (self.warmup_epoch + 1), 1)
    loss = recon + self.beta * torch.abs(kl - capacity)
    return loss.mean(0), recon.mean(0), kl.mean(0)


def _flow(
    self: Any,
    recon_x: Any,
    x: Tensor,
    mu: Tensor,
    log_var: Any,
    z0: Any,
    zk: Any,
    log_abs_det_jac: Any,
) -> Losses:
    recon = _recon(self, recon_x, x)
    scaled = (z0 - mu) * torch.exp(-0.5 * log_var)
    kl = 0.5 * (zk * zk - log_var - scaled * scaled).sum(1) - log_abs_det_jac
    return (recon + kl).mean(0), recon.mean(0), kl.mean(0)


def _iwae(self: Any, recon_x: Any, x: Tensor, mu: Tensor, log_var: Any, z: Tensor) -> Losses:
    recon, kl = _recon_of_samples(self, recon_x, x), _kl_of_samples(mu, log_var, z)
    return _weighed(-(recon + kl)).mean(), recon.mean(), kl.mean()


def _ciwae_bound(self: Any, log_w: Tensor) -> Tensor:
    return self.beta * -log_w.mean(-1) + (1 - self.beta) * _weighed(log_w)


def _ciwae(self: Any, recon_x: Any, x: Tensor, mu: Tensor, log_var: Any, z: Tensor) -> Losses:
    recon, kl = _recon_of_samples(self, recon_x, x), _kl_of_samples(mu, log_var, z)
    return _ciwae_bound(self, -(recon + kl)).mean(0), recon.mean(0), kl.mean(0)


def _miwae(self: Any, recon_x: Any, x: Tensor, mu: Tensor, log_var: Any, z: Tensor) -> Losses:
    recon, kl = _recon_of_samples(self, recon_x, x), _kl_of_samples(mu, log_var, z)
    return _weighed(-(recon + kl)).mean(-1).mean(0), recon.mean(0), kl.mean(0)


def _piwae(self: Any, recon_x: Any, x: Tensor, mu: Tensor, log_var: Any, z: Tensor) -> Losses:
    recon, kl = _recon_of_samples(self, recon_x, x), _kl_of_samples(mu, log_var, z)
    log_w = -(recon + kl)
    both = _weighed(log_w).mean(-1).mean(0), _weighed(log_w.reshape(len(x), -1)).mean(0)
    return *both, recon.mean(0), kl.mean(0)


# --- IWAE and CIWAE whole ------------------------------------------------------------------------


def _any_order(decoder: nn.Module) -> bool:
    """Whether a row's output does not depend on its position in the batch: the decoder's parts are
    torch's or pythae's, and draw no random numbers."""
    parts = list(decoder.modules())
    plain = all(type(m).__module__.startswith(("torch.nn.", "pythae.")) for m in parts)
    draws = nn.modules.dropout._DropoutNd, nn.RReLU
    return plain and not any(isinstance(m, draws) and m.training for m in parts)


def _samples_first(
    noise: Noise,
    name: str,
    bound: Callable[[nn.Module, Tensor], Tensor],
    dims: tuple[int, ...],
    original: Callable[..., Any],
) -> Callable[..., Any]:
    """A forward with the K sets of samples in the first dimension: the data are read K times, and not
    copied K times. The draws are those of (B, K, D).

    Args:
        bound: the loss of each sample, by its log-weights (B, K).
        dims: over which of (K, B) the model averages the terms that it shows.
    """

    @functools.wraps(original)
    def forward(self: Any, inputs: Any, **kwargs: Any) -> Any:
        known = original.__globals__[name]
        own = ("loss_function", "_sample_gauss")
        if (
            any(getattr(type(self), m) is not getattr(known, m) or m in vars(self) for m in own)
            or self.model_config.reconstruction_loss not in ("bce", "mse")
            or not _any_order(self.decoder)
        ):
            return original(self, inputs, **kwargs)
        x, samples = inputs["data"], self.n_samples
        encoded = self.encoder(x)
        mu, log_var = encoded.embedding, encoded.log_covariance
        std = torch.exp(0.5 * log_var)
        if noise == "torch":
            eps = torch.randn(len(mu), samples, mu.shape[1], dtype=std.dtype, device=std.device)
            eps = eps.transpose(0, 1).contiguous()
            z = torch.addcmul(mu, eps, std)
        else:
            z, eps = reparameterize(mu, scale=std, num_samples=samples, return_eps=True)
        made = self.decoder(z.reshape(-1, self.latent_dim))["reconstruction"]
        made, data = made.reshape(samples, len(x), -1), x.reshape(len(x), -1)
        if self.model_config.reconstruction_loss == "bce":
            recon = bernoulli_nll_samples(made, data, from_logits=False)
        else:
            recon = 0.5 * (made - data).square().sum(-1)
        # (z - mu) / std is eps, and no gradient goes through it.
        kl = 0.5 * (z * z - eps * eps - log_var).sum(-1)
        log_w = -(recon + kl).t()
        return original.__globals__["ModelOutput"](
            recon_loss=recon.mean(dims),
            reg_loss=kl.mean(dims),
            loss=bound(self, log_w).mean(),
            recon_x=made[0].reshape_as(x),
            z=z[0],
        )

    return forward


# --- the trainer ---------------------------------------------------------------------------------


def _set_optimizer(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def set_optimizer(self: Any) -> None:
        config = self.training_config
        given = dict(config.optimizer_params or {})
        kind = {"Adam": torch.optim.Adam, "AdamW": torch.optim.AdamW}.get(config.optimizer_cls)
        if kind is None or given.keys() & {"fused", "foreach", "capturable", "differentiable"}:
            original(self)
        else:  # on a CPU torch would update each parameter separately, in some ten ops
            self.optimizer = kind(
                self.model.parameters(), lr=config.learning_rate, fused=True, **given
            )

    return set_optimizer


# --- beta-TCVAE ----------------------------------------------------------------------------------


LOG_2PI = math.log(2 * math.pi)


def _column_weights(z: Tensor, dataset_size: int) -> tuple[Tensor, float]:
    """Logarithms of pythae's stratified weights: the first two columns (B, 2), and the other columns.

    pythae puts the weights into columns, with M = B - 1: the first column has 1 / N, except in the
    last row but one, the second (N - M) / (N M), and all others 1 / M.
    """
    n, m = dataset_size, len(z) - 1
    stratified = math.log((n - m) / (n * m))
    weights = z.new_full((len(z), 2), stratified)
    weights[:, 0] = -math.log(n)
    weights[m - 1, 0] = stratified
    return weights, -math.log(m)


def _tc(
    ops: Any, z: Tensor, mu: Tensor, log_var: Tensor, dataset_size: int, use_mss: bool,
    alpha: float, beta: float, gamma: float,
) -> Tensor:  # fmt: skip
    """alpha I(z; x) + beta TC + gamma sum_d KL(q(z_d) || p(z_d)) of each sample, (B,), as pythae has it."""
    density = ops.pair_density
    if not use_mss:
        offset = -math.log(len(z) * dataset_size)
        log_q, parts = density(z, mu, log_var, None, 1.0, 1.0, offset, True)
    else:
        weights, rest = _column_weights(z, dataset_size)
        whole, parts = density(z, mu[2:], log_var[2:], None, 1.0, 1.0, rest, True)
        scaled = (z.unsqueeze(1) - mu[:2]) * torch.exp(-0.5 * log_var[:2])
        columns = -0.5 * (scaled * scaled + log_var[:2] + LOG_2PI)  # (B, 2, D)
        log_q = torch.logsumexp(torch.cat([whole.unsqueeze(1), columns.sum(2) + weights], 1), 1)
        columns = columns + weights.unsqueeze(2)
        parts = torch.logsumexp(torch.cat([parts.unsqueeze(1), columns], 1), 1)
    log_prod_q = parts.sum(1)
    scaled = (z - mu) * torch.exp(-0.5 * log_var)
    # log q(z | x) and log p(z), each without its D log(2 pi) / 2.
    own = -0.5 * (scaled * scaled + log_var).sum(1)
    prior = -0.5 * (z * z).sum(1)
    constant = 0.5 * z.shape[1] * LOG_2PI
    return (
        alpha * (own - constant - log_q)
        + beta * (log_q - log_prod_q)
        + gamma * (log_prod_q - (prior - constant))
    )


class _StratifiedTC(torch.autograd.Function):
    """``_tc`` with use_mss, in native kernels and in float32 or float64, as one autograd node. With
    small ops, their nodes would take most of the time."""

    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        mu: Tensor,
        log_var: Any,
        dataset_size: Any,
        alpha: Any,
        beta: Any,
        gamma: Any,
    ) -> Any:
        weights, rest = _column_weights(z, dataset_size)
        whole, parts, state = pairwise._density(z, mu[2:], log_var[2:], None, 1.0, 1.0, rest, True)
        inverse = torch.exp(-0.5 * log_var)
        columns = (z.unsqueeze(1) - mu[:2]) * inverse[:2]
        of_columns = torch.addcmul(log_var[:2] + LOG_2PI, columns, columns).mul_(-0.5)
        sums = of_columns.sum(2).add_(weights)
        of_columns += weights.unsqueeze(2)
        log_q = torch.logsumexp(torch.cat([whole.unsqueeze(1), sums], 1), 1)
        log_parts = torch.logsumexp(torch.cat([parts.unsqueeze(1), of_columns], 1), 1)
        # Each piece's gradient, from its share of the sums.
        shares = [(whole - log_q).exp_(), (sums - log_q.unsqueeze(1)).exp_()]
        of_columns -= log_parts.unsqueeze(1)
        shares += [(parts - log_parts).exp_(), of_columns.exp_()]
        scaled = (z - mu) * inverse
        own = torch.addcmul(log_var, scaled, scaled).sum(1).mul_(-0.5)
        ctx.save_for_backward(z, mu, log_var, state, inverse, columns, scaled, *shares)
        ctx.given = (dataset_size, alpha, beta, gamma)
        constant = 0.5 * z.shape[1] * LOG_2PI
        prior = torch.linalg.vecdot(z, z).mul_(-0.5)
        value = own.mul_(alpha).sub_(prior, alpha=gamma).add_(log_q, alpha=beta - alpha)
        return value.add_(log_parts.sum(1), alpha=gamma - beta).add_((gamma - alpha) * constant)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        z, mu, log_var, *kept = ctx.saved_tensors
        size, alpha, beta, gamma = ctx.given
        if beyond_native(grad):

            def tc(z: Tensor, mu: Tensor, log_var: Tensor) -> Tensor:
                return _tc(reference_pairwise, z, mu, log_var, size, True, alpha, beta, gamma)

            return differentiable_again(tc, (z, mu, log_var), (grad,), ctx.needs_input_grad)
        state, inverse, columns, scaled, whole, sums, parts, of_columns = kept
        grad = grad.contiguous()
        of_log_q, of_parts = grad * (beta - alpha), (grad * (gamma - beta)).unsqueeze(1)
        dz, dmu, dlv, _ = pairwise._density_backward(
            whole * of_log_q, parts * of_parts, z, mu[2:], log_var[2:], None, state,
            1.0, 1.0, -math.log(len(z) - 1),
        )  # fmt: skip
        # d / d column_k, (B, 2, D); a column is -(s * s + log_var) / 2.
        each = of_columns * of_parts.unsqueeze(2)
        each += (sums * of_log_q.unsqueeze(1)).unsqueeze(2)
        moved = each * columns
        of_lv = torch.addcmul(each, moved, columns, value=-1.0).sum(0).mul_(-0.5)
        moved *= inverse[:2]
        first = grad.mul(alpha).unsqueeze(1)
        own = first * scaled
        dlv_own = torch.addcmul(first.expand_as(own), own, scaled, value=-1.0).mul_(-0.5)
        own *= inverse
        dz = dz.sub_(moved.sum(1)).sub_(own).addcmul_(z, grad.unsqueeze(1), value=gamma)
        own[:2] += moved.sum(0)
        own[2:] += dmu
        dlv_own[:2] += of_lv
        dlv_own[2:] += dlv
        return dz, own, dlv_own, None, None, None, None


def _beta_tc(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def loss_function(
        self: Any, recon_x: Any, x: Tensor, mu: Tensor, log_var: Any, z: Tensor, dataset_size: Any
    ) -> Any:
        usual = self.model_config.reconstruction_loss in ("bce", "mse") and z.dim() == 2
        known = original.__globals__["BetaTCVAE"]
        for method in ("_log_importance_weight_matrix", "_compute_log_gauss_density"):
            usual = usual and getattr(type(self), method) is getattr(known, method)
        # With fewer rows the weights differ; without data beyond the batch, they have log 0.
        if not usual or len(z) < 3 or (self.use_mss and dataset_size < len(z)):
            return original(self, recon_x, x, mu, log_var, z, dataset_size)
        made, data = recon_x.reshape(x.shape[0], -1), x.reshape(x.shape[0], -1)
        if self.model_config.reconstruction_loss == "bce":
            recon = bernoulli_nll(made, data, from_logits=False, reduction="batchmean")
        else:
            recon = F.mse_loss(made, data, reduction="sum") * (0.5 / len(data))
        ops, given = _ops_for(z), (dataset_size, self.alpha, self.beta, self.gamma)
        tensors = [t.contiguous() for t in (z, mu, log_var)]
        plain = len({t.dtype for t in tensors}) == 1 and z.dtype in (torch.float32, torch.float64)
        numbers = all(isinstance(value, (int, float)) for value in given)
        if (
            self.use_mss
            and ops is pairwise
            and plain
            and numbers
            and not torch.compiler.is_compiling()
        ):
            kl = _StratifiedTC.apply(*tensors, *given)
        else:
            kl = _tc(ops, z, mu, log_var, dataset_size, self.use_mss, *given[1:])
        kl = kl.mean(0)
        return recon + kl, recon, kl

    return loss_function


# --- the table -----------------------------------------------------------------------------------

_MODELS = "pythae.models."
_SAMPLERS = (
    "vae.vae_model.VAE",
    "beta_vae.beta_vae_model.BetaVAE",
    "disentangled_beta_vae.disentangled_beta_vae_model.DisentangledBetaVAE",
    "beta_tc_vae.beta_tc_vae_model.BetaTCVAE",
    "factor_vae.factor_vae_model.FactorVAE",
    "info_vae.info_vae_model.INFOVAE_MMD",
    "iwae.iwae_model.IWAE",
    "ciwae.ciwae_model.CIWAE",
    "miwae.miwae_model.MIWAE",
    "piwae.piwae_model.PIWAE",
    "msssim_vae.msssim_vae_model.MSSSIM_VAE",
    "vae_iaf.vae_iaf_model.VAE_IAF",
    "vae_lin_nf.vae_lin_nf_model.VAE_LinNF",
    "vamp.vamp_model.VAMP",
)
_LOSSES = (
    ("vae.vae_model.VAE", "805a7f82b413a1f6", _where_supported(_vae)),
    ("beta_vae.beta_vae_model.BetaVAE", "4ce879c878fd5a47", _where_supported(_beta_vae)),
    (
        "disentangled_beta_vae.disentangled_beta_vae_model.DisentangledBetaVAE",
        "b73bcb3eae073ebe",
        _where_supported(_disentangled),
    ),
    ("beta_tc_vae.beta_tc_vae_model.BetaTCVAE", "3de6b90cbcdd1a23", _beta_tc),
    ("iwae.iwae_model.IWAE", "81e4f8f49c6954ec", _where_supported(_iwae)),
    ("ciwae.ciwae_model.CIWAE", "b2f8b0b9cc878df1", _where_supported(_ciwae)),
    ("miwae.miwae_model.MIWAE", "7b7c4c9bc003ff56", _where_supported(_miwae)),
    ("piwae.piwae_model.PIWAE", "8672281411768343", _where_supported(_piwae)),
    ("vae_iaf.vae_iaf_model.VAE_IAF", "a6543dcc90508f4c", _where_supported(_flow)),
    ("vae_lin_nf.vae_lin_nf_model.VAE_LinNF", "a6543dcc90508f4c", _where_supported(_flow)),
)
_FORWARDS = (
    ("iwae.iwae_model.IWAE", "24cfb955c588c0ec", lambda self, log_w: _weighed(log_w), (0, 1)),
    ("ciwae.ciwae_model.CIWAE", "24cfb955c588c0ec", _ciwae_bound, (1,)),
)


def _targets(noise: Noise) -> list[Target]:
    sample = functools.partial(_sample_gauss, noise)
    found = [
        Target(f"{_MODELS}{name}._sample_gauss", ("4068c485169fa284",), sample)
        for name in _SAMPLERS
    ]
    found += [
        Target(f"{_MODELS}{name}.loss_function", (known,), replace)
        for name, known, replace in _LOSSES
    ]
    for name, known, bound, dims in _FORWARDS:
        whole = functools.partial(_samples_first, noise, name.split(".")[-1], bound, dims)
        found.append(Target(f"{_MODELS}{name}.forward", (known,), whole))
    trainer = "pythae.trainers.base_trainer.base_trainer.BaseTrainer.set_optimizer"
    found.append(Target(trainer, ("80453102d5888d6e",), _set_optimizer))
    return found


TABLE = Table("pythae", ("0.1.2", "0.2"), _targets)
