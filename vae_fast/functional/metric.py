"""A Riemannian metric of a space of vectors, from centres and a matrix at each."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Metric(NamedTuple):
    """G(z)^-1 = sum_i M_i exp(-|z - c_i|^2 / T^2) + floor I (Chadebec et al. 2020,
    equation 10).

    ``centers``: c, (K, D). ``matrices``: M_i = L_i L_i^T, (K, D, D). ``weights``: (K,), 0 for
    unused entries and 1 for the others. ``temperature``: T. ``floor``: lambda.
    """

    centers: Tensor
    matrices: Tensor
    weights: Tensor
    temperature: float
    floor: float

    def kernel(self, z: Tensor) -> Tensor:
        """exp(-|z - c_i|^2 / T^2) for z (N, D), (N, K)."""
        square = torch.cdist(z, self.centers, compute_mode="donot_use_mm_for_euclid_dist").square()
        return self.weights * torch.exp(-square / self.temperature**2)

    def inverse(self, z: Tensor) -> Tensor:
        """G(z)^-1, (N, D, D)."""
        eye = torch.eye(z.shape[1], dtype=z.dtype, device=z.device)
        return (self.kernel(z) @ self.matrices.flatten(1)).unflatten(
            1, eye.shape
        ) + self.floor * eye

    def slope(self, z: Tensor, rho: Tensor | None, inverse: Tensor) -> Tensor:
        """d/dz [log det G(z) + rho^T G(z)^-1 rho] / 2, (N, D); no second term without ``rho``."""
        flat = self.matrices.flatten(1).t()
        share = -torch.linalg.inv_ex(inverse).inverse.flatten(1) @ flat  # -tr(G M_i)
        if rho is not None:
            share = share + (rho.unsqueeze(2) * rho.unsqueeze(1)).flatten(1) @ flat
        share = self.kernel(z) * share / self.temperature**2
        return share @ self.centers - share.sum(1, keepdim=True) * z
