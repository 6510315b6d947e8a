"""The semi-supervised VAE M2 (Kingma, Rezende, Mohamed & Welling 2014), built on the CVAE."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from vae_fast.functional import gaussian_kl, reparameterize
from vae_fast.models.call import Call, streams_of
from vae_fast.models.conditions import Labels
from vae_fast.models.cvae import CVAE
from vae_fast.models.gaussian import (
    WeightedSamples,
    log_density,
    split_gaussian,
    standard_log_density,
)
from vae_fast.reference import reduce
from vae_fast.types import LossOutput


class SSVAE(CVAE):
    """q(y | x) q(z | x, y), p(y) uniform, p(z) = N(0, 1), p(x | z, y).

    Labels y are integers (N,); -1 marks an unlabelled sample. Each sample is decoded under every
    class, so the expectation over q(y | x) is exact, and shapes do not depend on the labels.
    ``encode`` and ``reconstruct`` take the class probabilities q(y | x) in place of a missing y.

    Args:
        classifier: the encoder's features (N, features) to (N, num_classes) logits of q(y | x).
            It shares the encoder with q(z | x, y), unlike the paper's, and so needs few labels.
        alpha: weight of the labelled samples' cross-entropy in nats (equation 9). The paper uses
            0.1 times the ratio of all training samples to labelled ones.
    """

    condition: Labels

    takes_objective = takes_posterior = False

    def __init__(
        self,
        encoder: nn.Module,
        head: nn.Module,
        decoder: nn.Module,
        condition: Labels,
        classifier: nn.Module,
        *,
        alpha: float = 10.0,
        **options: Any,
    ) -> None:
        super().__init__(encoder, head, decoder, condition, None, **options)
        self.classifier = classifier
        self.alpha = alpha

    @property
    def num_classes(self) -> int:
        return self.condition.features

    def condition_from(self, x: Tensor, y: Tensor | None) -> tuple[Any, ...]:
        """(y,), or (q(y | x),) if y is None."""
        return (self.predict(x) if y is None else y,)

    def predict(self, x: Tensor) -> Tensor:
        """q(y | x), (N, num_classes)."""
        return self.classifier(self.encoder(self.network_input(x))).softmax(-1)

    def diagnostics(self, x: Tensor, y: Tensor | None = None) -> dict[str, Tensor]:
        """Whether the most probable class is y, for each labelled sample."""
        if y is None:
            return {}
        return {"accuracy": (self.predict(x).argmax(1) == y)[y >= 0].float()}

    def loss(self, x: Tensor, y: Tensor | None = None, **options: Any) -> LossOutput:  # type: ignore[override]  # y comes after x
        unknown = torch.full(x.shape[:1], -1, device=x.device)
        return super().loss(x, unknown if y is None else y, **options)

    def own_loss(self, call: Call) -> LossOutput:
        """Labelled: L(x, y) + alpha * cross-entropy; unlabelled: E_q(y|x)[L(x, y)] - H(q(y | x)).

        In nats (equations 6 to 9), with L(x, y) = -log p(x | z, y) - log p(y) + KL(q(z) || p(z)).
        recon is the first term of L; kl is the rest, and -H.
        loss = recon + beta * kl + alpha * cross-entropy. free_bits > 0 raises ValueError.
        """
        call.refuse(free_bits="is not defined for a mixture over classes; use beta")
        x, (y,) = call.x, call.condition
        h = self.encoder(self.network_input(x))
        nll, kl, _ = self._under_every_class(x, h, noise_key=call.noise_key)
        log_q = self.classifier(h).log_softmax(-1)
        labelled = (y >= 0).unsqueeze(1)
        one_hot = self.condition.one_hot(y, log_q.dtype)
        weight = torch.where(labelled, one_hot, log_q.exp())
        negative_entropy = torch.where(labelled, 0.0, log_q.exp() * log_q)
        recon = weight * nll.t()
        kl = weight * (kl.t() + math.log(self.num_classes)) + negative_entropy
        cross_entropy = -(labelled * one_hot * log_q)
        total = recon + call.beta * kl + self.alpha * cross_entropy
        return LossOutput(*(reduce(t, call.reduction) for t in (total, recon, kl)))

    def weighted_samples(  # type: ignore[override]  # y comes after x
        self,
        x: Tensor,
        y: Tensor | None = None,
        *,
        num_samples: int,
        noise_key: Tensor | None = None,
        **options: Any,
    ) -> WeightedSamples:
        """The CVAE's for integer labels y; otherwise log w = log sum_y p(y) w_y, over all classes.

        Class probabilities, such as those of ``predict``, count as no y. Without y, ``kl`` includes
        KL(q(y | x) || p(y)), so nll + kl is equation 7. Labels of -1 raise ValueError.
        """
        if y is not None and not y.is_floating_point():
            if (y < 0).any():
                raise ValueError(
                    f"{int((y < 0).sum())} of {len(y)} labels are -1, unknown: give the samples "
                    "without labels in a call of their own, with y=None"
                )
            options = {"num_samples": num_samples, "noise_key": noise_key, **options}
            return super().weighted_samples(x, y, **options)
        keys = [None if noise_key is None else streams_of(noise_key, i) for i in range(num_samples)]
        h = self.encoder(self.network_input(x))
        draws = [self._under_every_class(x, h, noise_key=key) for key in keys]
        log_q = self.classifier(h).log_softmax(-1).t()
        q = log_q.exp()
        log_weight = torch.stack([w.logsumexp(0) for *_, w in draws]) - math.log(self.num_classes)
        nll = torch.stack([(q * nll).sum(0) for nll, *_ in draws])
        kl = (q * (draws[0][1] + log_q + math.log(self.num_classes))).sum(0)
        return WeightedSamples(log_weight, nll, kl)

    def _under_every_class(
        self, x: Tensor, h: Tensor, noise_key: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """-log p(x | z, y), KL(q(z | x, y) || p(z)) and log p(x, z | y) - log q(z | x, y).

        Each is (num_classes, N). ``h`` is the encoder's features of x.
        """
        k, n = self.num_classes, x.shape[0]
        y = self.condition_features(self.condition.classes).unsqueeze(1).expand(k, n, k)
        h = torch.cat([h.expand(k, *h.shape), y], dim=-1).flatten(0, 1)
        q = split_gaussian(self.head(h))
        z = reparameterize(*q, noise_key=noise_key)
        kl = gaussian_kl(*q, reduction="none").view(k, n)
        params = self.run_decoder(torch.cat([z, y.flatten(0, 1)], dim=-1)).unflatten(0, (k, n))
        nll = self.likelihood.nll_samples(params, x)
        log_ratio = standard_log_density(z) - log_density(z, *q)
        return nll, kl, log_ratio.view(k, n) - nll
