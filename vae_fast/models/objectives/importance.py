"""Combinations of K-sample bounds: MIWAE, PIWAE and CIWAE (Rainforth et al. 2018)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vae_fast.functional.checks import check_count
from vae_fast.functional.importance import log_mean_exp, negligible
from vae_fast.models.call import Call
from vae_fast.models.gaussian import WeightedSamples
from vae_fast.models.interface import Model
from vae_fast.models.objectives.common import Objective, Terms
from vae_fast.networks.separate_gradients import frozen


class Samples(Objective):
    """The base of objectives with ``estimates`` (M) bounds of ``samples`` (K) draws each."""

    def __init__(self, *, samples: int = 8, estimates: int = 8) -> None:
        super().__init__()
        check_count("samples", samples)
        check_count("estimates", estimates)
        self.samples, self.estimates = samples, estimates

    def weights(self, call: Call) -> WeightedSamples:
        return call.model.weighted_samples(
            call.x,
            *call.condition,
            num_samples=self.samples * self.estimates,
            beta=call.beta,
            noise_key=call.noise_key,
        )

    def mean_bound(self, log_weight: Tensor) -> Tensor:
        """The mean of M K-sample bounds, (N,), from log weights (M K, N) (equation 10)."""
        parts = log_weight.unflatten(0, (self.estimates, self.samples)).transpose(0, 1)
        return log_mean_exp(parts, 0).mean(0)


class MIWAE(Samples):
    """-(1/M) sum_m log (1/K) sum_k w_mk, in nats. The encoder's gradient has less noise than with
    one bound of M K samples, and the bound is tighter than the ELBO."""

    def terms(self, call: Call) -> Terms:
        found = self.weights(call)
        return -self.mean_bound(found.log_weight), found.nll.mean(0).detach(), found.kl.detach()


class PIWAE(Samples):
    """One bound of M K samples trains the decoder and a learned prior; MIWAE trains the encoder.

    The loss has the value of the former. Both bounds have the same samples and so the same
    log-weights. They differ in the weight of each sample's gradient, c for the one bound and e for
    the mean. A sample's gradient passes through the decoder on its own, so it is multiplied by e / c
    at z, on its way from the decoder to the encoder.
    """

    def terms(self, call: Call) -> Terms:
        model, x, condition = call[:3]
        own = [p for part in encoders(model) for p in part.parameters()]
        known = {id(p) for p in own}
        count = self.samples * self.estimates
        with frozen([p for p in model.parameters() if id(p) not in known]):
            q, p = model.encode(x, *condition), model.prior(*condition)
            z, log_q = model.drawn(q, num_samples=count, noise_key=call.noise_key)
            log_p = model.log_prior(z, p)
        with frozen(own):
            decoded = z.view_as(z)
            nll = model.nll_of_draws(x, decoded, *condition, **model.nll_options(call.noise_key))
            log_p_of_prior = model.log_prior(z.detach(), model.prior(*condition))
        log_w = (call.beta * (log_p - log_q) - nll).detach()
        c = log_w.softmax(0).masked_fill(negligible(log_w, 0), 0.0)
        groups = log_w.unflatten(0, (self.estimates, self.samples))
        e = groups.softmax(1).masked_fill(negligible(groups, 1), 0.0).flatten(0, 1)
        e = e / self.estimates
        # If a group's weights are far smaller than another's, its c is 0 and e / c has no value. The
        # floor changes the decoder's gradient by less than its rounding.
        floored = torch.maximum(c, e * _precision(decoded) ** 1.5)
        if decoded.requires_grad:
            ratio = (e / floored.clamp_min(torch.finfo(e.dtype).tiny)).unsqueeze(-1)
            decoded.register_hook(lambda gradient: gradient * ratio.to(gradient.dtype))
        slope = floored * nll - call.beta * (e * (log_p - log_q) + c * log_p_of_prior)
        slope = slope.sum(0)
        loss = -log_mean_exp(log_w, 0) + (slope - slope.detach())
        return loss, nll.mean(0).detach(), (log_q - log_p).mean(0).detach()


class CIWAE(Samples):
    """mix * (-ELBO) + (1 - mix) * (-IWAE's bound), in nats, of the same K samples (equation 12)."""

    def __init__(self, *, samples: int = 8, mix: float = 0.5) -> None:
        super().__init__(samples=samples, estimates=1)
        if not 0 <= mix <= 1:
            raise ValueError(f"mix must be between 0 and 1, got {mix}")
        self.mix = mix

    def terms(self, call: Call) -> Terms:
        found = self.weights(call)
        log_w = found.log_weight
        loss = -self.mix * log_w.mean(0) - (1 - self.mix) * log_mean_exp(log_w, 0)
        return loss, found.nll.mean(0).detach(), found.kl.detach()


def encoders(model: Model) -> list[nn.Module]:
    """The modules of a model that compute its posterior."""
    names = ("encoder", "head", "posterior")
    found = [getattr(model, name, None) for name in names]
    return [part for part in found if isinstance(part, nn.Module)]


def _precision(t: Tensor) -> float:
    """The relative rounding of t's dtype, or of autocast's if autocast is on."""
    device = t.device.type
    autocast = torch.is_autocast_enabled(device)
    return torch.finfo(torch.get_autocast_dtype(device) if autocast else t.dtype).eps
