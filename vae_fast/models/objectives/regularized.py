"""Regularised deterministic autoencoders (Ghosh et al. 2020)."""

from __future__ import annotations

import torch

from vae_fast.functional.squares import sum_of_squares
from vae_fast.models.call import Call
from vae_fast.models.objectives.common import Objective, Terms


class RAE(Objective):
    """-log p(x | z) + beta (embedding |z|^2 / 2 + decoder * R), equation 11.

    kl is the term that beta multiplies. ``--sampler gmm`` fits a density over z after training.

    Args:
        penalty: "l2" (RAE-L2): R = |theta|^2 of the decoder's parameters. "gp" (RAE-GP): R =
            |dE[x | z] / dz|^2, the squared Frobenius norm of the Jacobian, estimated without bias
            by one random projection per sample (Hutchinson 1989).
    """

    deterministic = True

    def __init__(self, *, penalty: str, embedding: float = 1e-2, decoder: float = 1e-4) -> None:
        super().__init__()
        self.penalty, self.embedding, self.decoder = penalty, embedding, decoder

    def terms(self, call: Call) -> Terms:
        model, x = call.model, call.x
        z = model.tracked_codes(x, *call.condition)
        if self.penalty == "gp" and not z.requires_grad:
            z = z.detach().requires_grad_(torch.is_grad_enabled())
        params = model.decode(z)
        recon = model.likelihood.nll(params, x, reduction="none")
        smooth = torch.zeros_like(recon)
        if self.penalty == "l2":
            squares = [sum_of_squares(p.to(recon.dtype)) for p in model.decoder.parameters()]
            smooth = smooth + torch.stack(squares).sum()
        elif torch.is_grad_enabled():
            made = model.as_input(model.likelihood.mean(params), x.dtype)
            sign = torch.where(call.normals(made, stream=0) > 0, 1, -1).to(made.dtype)
            slope = torch.autograd.grad(made, z, sign, create_graph=True)[0]
            smooth = slope.flatten(1).to(recon.dtype).square().sum(1)
        off = 0.5 * self.embedding * z.to(recon.dtype).square().sum(1) + self.decoder * smooth
        return recon + call.beta * off, recon, off
