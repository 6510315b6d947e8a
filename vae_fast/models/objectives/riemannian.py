"""The Riemannian Hamiltonian VAE: a learned metric (Chadebec, Mantoux & Allassonniere 2020)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vae_fast.functional import reparameterize
from vae_fast.functional.checks import check_count, check_counts
from vae_fast.functional.metric import Metric
from vae_fast.joined import of_first
from vae_fast.models.call import Call
from vae_fast.models.gaussian import log_density, standard_log_density
from vae_fast.models.objectives.common import Objective, Terms
from vae_fast.models.objectives.hamiltonian import slope, tempering_factors
from vae_fast.networks import mlp


class Riemannian(Objective):
    """``Hamiltonian`` with momenta from N(0, G(z)) and the generalised leapfrog.

    In training the metric's centres are the batch's posterior means, and a network gives its
    matrices. Their scale acts on z like the step's, and each leap gains from a longer step until
    the integration diverges. So the entries of L are bounded: within (-1, 1), and the diagonal
    within (1/e, e). Phase space is in float64, because G^-1 has eigenvalues from lambda to the
    number of close centres. The latest ``anchors`` of both are kept, and form the metric in
    evaluation and for ``--sampler metric``. The loss is -[log p(x, z_K) + log N(rho_K; 0, G(z_K))
    - log q(z_0 | x) - log N(gamma_0; 0, G(z_0))]. It is a negative ELBO if the implicit equations
    are solved exactly; ``iterations`` fixed-point steps approximate their solution.

    Args:
        input_shape: the shape of one sample; the metric's network flattens samples.
        leaps, step, temperature: as for ``Hamiltonian``, but with one learned step for all
            dimensions, so that the leapfrog preserves volume.
        scale: T.
        floor: lambda.
        anchors: the number of centres kept.
        hidden: hidden sizes of the metric's network.
        iterations: fixed-point steps for each implicit equation.
    """

    posteriors = "gaussian"

    places: Tensor
    diagonal: Tensor
    centers: Tensor
    matrices: Tensor
    kept: Tensor
    next: Tensor

    def __init__(
        self,
        latent_dim: int,
        input_shape: Sequence[int],
        *,
        leaps: int = 3,
        step: float = 0.01,
        temperature: float = 0.3,
        scale: float = 1.5,
        floor: float = 0.01,
        anchors: int = 500,
        hidden: Sequence[int] = (400,),
        iterations: int = 3,
    ) -> None:
        super().__init__()
        counts = {"leaps": leaps, "anchors": anchors, "iterations": iterations}
        for name, count in counts.items():
            check_count(name, count)
        if not (step > 0 and scale > 0 and floor > 0 and 0 < temperature <= 1):
            raise ValueError(
                "step, scale and floor are above 0, and temperature in (0, 1]: got "
                f"{step}, {scale}, {floor} and {temperature}"
            )
        self.leaps, self.temperature, self.scale, self.floor = leaps, temperature, scale, floor
        self.iterations = iterations
        self.log_step = nn.Parameter(torch.tensor([math.log(step)]))
        entries = latent_dim * (latent_dim + 1) // 2
        check_counts("hidden", hidden)
        self.network = mlp([math.prod(input_shape), *hidden, entries], activation="relu")
        row, column = torch.tril_indices(latent_dim, latent_dim)
        self.register_buffer("places", row * latent_dim + column, persistent=False)
        self.register_buffer("diagonal", row == column, persistent=False)
        # The initial metric has one centre at the origin, with the identity as its matrix.
        self.register_buffer("centers", torch.zeros(anchors, latent_dim))
        self.register_buffer("matrices", torch.eye(latent_dim).repeat(anchors, 1, 1))
        self.register_buffer("kept", (torch.arange(anchors) == 0).float())
        self.register_buffer("next", torch.zeros((), dtype=torch.int64))

    def factors(self, x: Tensor) -> Tensor:
        """L, (N, D, D), lower triangular with a positive diagonal, for x scaled by
        ``network_input``."""
        raw = torch.tanh(self.network(x.flatten(1)))
        entries = torch.where(self.diagonal, raw.exp(), raw)
        dim = self.centers.shape[1]
        flat = entries.new_zeros(len(x), dim * dim).index_copy(1, self.places, entries)
        return flat.unflatten(1, (dim, dim))

    def metric(self, z: Tensor) -> Metric:
        """The metric of the anchors, in z's dtype."""
        centers, matrices, kept = (t.to(z.dtype) for t in (self.centers, self.matrices, self.kept))
        return Metric(centers, matrices, kept, self.scale, self.floor)

    def terms(self, call: Call) -> Terms:
        call = call.repeatable()  # every force is of one density
        model, x, condition = call[:3]
        q, p = model.encode(x, *condition), model.prior(*condition)
        drawn = reparameterize(*q, noise_key=call.noise_key)
        noise, z = call.normals(drawn).double(), drawn.double()
        metric = self.metric(z)
        if self.training and torch.is_grad_enabled():
            lower = self.factors(model.network_input(x)).to(z.dtype)
            matrices = lower @ lower.transpose(1, 2)
            centers = q.mu.to(z.dtype)
            metric = metric._replace(
                centers=centers, matrices=matrices, weights=torch.ones_like(centers[:, 0])
            )
            self._keep(q.mu.detach(), matrices.detach())
        lower = _cholesky(metric.inverse(z))  # so that G = lower^-T lower^-1
        gamma = torch.linalg.solve_triangular(
            lower.transpose(1, 2), noise.unsqueeze(2), upper=True
        ).squeeze(2)
        start = standard_log_density(noise) + _log_diagonal(lower)
        moved, rho, recon = self.leapfrog(call, z, gamma, p, metric)
        lower = _cholesky(metric.inverse(moved))
        whitened = (lower.transpose(1, 2) @ rho.unsqueeze(2)).squeeze(2)
        end = standard_log_density(whitened) + _log_diagonal(lower)
        log_p = model.log_prior(moved.to(drawn.dtype), p)
        kl = log_density(drawn, *q) + (start - end).to(recon.dtype) - log_p
        return recon + call.beta * kl, recon, kl

    def leapfrog(
        self, call: Call, z: Tensor, gamma: Tensor, p: Any, metric: Metric
    ) -> tuple[Tensor, Tensor, Tensor]:
        """z_K, rho_K and -log p(x | z_K), by the generalised leapfrog with tempering (section
        3.3.2)."""
        rho, half = gamma / math.sqrt(self.temperature), torch.exp(self.log_step) / 2
        force, recon = slope(call, z, p)
        for cooling in tempering_factors(self.temperature, self.leaps):
            rho = self.first(rho, z, force, metric, half)
            z = self.move_position(rho, z, metric, half)
            force, recon = slope(call, z, p)
            rho = (rho - half * (force + metric.slope(z, rho, metric.inverse(z)))) * cooling
        return z, rho, recon

    def first(self, rho: Tensor, z: Tensor, force: Tensor, metric: Metric, half: Tensor) -> Tensor:
        """rho' = rho - half dH/dz (z, rho'), by fixed-point iteration."""
        inverse, new = metric.inverse(z), rho
        for _ in range(self.iterations):
            new = rho - half * (force + metric.slope(z, new, inverse))
        return new

    def move_position(self, rho: Tensor, z: Tensor, metric: Metric, half: Tensor) -> Tensor:
        """z' = z + half (G(z)^-1 + G(z')^-1) rho, by fixed-point iteration."""

        def speed(at: Tensor) -> Tensor:
            return (metric.inverse(at) @ rho.unsqueeze(2)).squeeze(2)

        before, new = speed(z), z
        for _ in range(self.iterations):
            new = z + half * (before + speed(new))
        return new

    @torch.no_grad()
    def _keep(self, centers: Tensor, matrices: Tensor) -> None:
        """Replace the oldest anchors by the first process's centres and matrices."""
        size = len(self.centers)
        centers, matrices = (of_first(t[-size:].contiguous()) for t in (centers, matrices))
        count = torch.arange(len(centers), device=centers.device)
        places = (self.next + count) % size
        self.centers.index_copy_(0, places, centers.to(self.centers.dtype))
        self.matrices.index_copy_(0, places, matrices.to(self.matrices.dtype))
        self.kept.index_fill_(0, places, 1.0)
        self.next.copy_((self.next + len(centers)) % size)


def _log_diagonal(lower: Tensor) -> Tensor:
    """log det of triangular matrices (N, D, D), (N,)."""
    return lower.diagonal(dim1=1, dim2=2).log().sum(1)


def _cholesky(matrices: Tensor) -> Tensor:
    """The lower triangular factors of (N, D, D). NaN gives NaN and no error: the step is skipped,
    like others of NaN."""
    return torch.linalg.cholesky_ex(matrices).L
