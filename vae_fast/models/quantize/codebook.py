"""Vector quantisation by a learned codebook (van den Oord et al. 2017)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vae_fast.functional import nearest_code
from vae_fast.functional.checks import check_count
from vae_fast.functional.kmeans import count, kmeans
from vae_fast.joined import WideBuffers, joined_sum, of_first
from vae_fast.models.quantize.common import Quantized, Quantizer, rotated, straight_through

UPDATES = ("ema", "gradient")


class VQ(WideBuffers, Quantizer):
    """Replaces each of ``heads`` parts of a vector by the nearest of ``size`` codes.

    The loss is commitment * |z - sg(e)|^2, plus |sg(z) - e|^2 for update="gradient" (equation 3),
    summed over dimensions. The tensor of all distances is never made.

    Args:
        dim: the size of a vector; ``heads`` must divide it.
        size: codes in a codebook.
        update: "ema" makes a code the running mean of the vectors nearest to it (appendix A.1);
            "gradient" leaves it to the optimizer.
        decay: the decay of these means and of the codes' running counts.
        commitment: weight of the encoder's part of the loss.
        heads: parts of a vector, each with its own codebook, or all with one (``shared``).
        cosine: normalise vectors and codes to length 1 (Yu et al. 2022, ViT-VQGAN).
        rotation: the rotation trick (Fifty et al. 2024) instead of straight-through gradients.
        dead_below: a code whose running count of uses per batch falls below it is replaced by a
            random vector of the batch; 0 disables this.
        kmeans: iterations of k-means on the first training batch, which initialises the codes. 0:
            codes start as U(-1 / size, 1 / size), or with ``cosine`` uniformly on the sphere.
        epsilon: the Laplace smoothing of the counts in the running means.
    """

    codes: Tensor
    sums: Tensor
    counts: Tensor
    started: Tensor

    def __init__(
        self,
        dim: int,
        *,
        size: int = 512,
        update: str = "ema",
        decay: float = 0.99,
        commitment: float = 0.25,
        heads: int = 1,
        shared: bool = False,
        cosine: bool = False,
        rotation: bool = False,
        dead_below: float = 0.1,
        kmeans: int = 10,
        epsilon: float = 1e-5,
    ) -> None:
        super().__init__()
        check_count("size", size)
        check_count("heads", heads)
        if dim % heads:
            raise ValueError(f"heads must divide the vectors' {dim} dimensions, got {heads}")
        if update not in UPDATES:
            raise ValueError(f"update must be one of {', '.join(UPDATES)}, got {update!r}")
        if not 0 <= decay < 1 or commitment < 0 or dead_below < 0 or kmeans < 0:
            raise ValueError(
                "decay lies in [0, 1), and commitment, dead_below and kmeans are not negative: got "
                f"{decay}, {commitment}, {dead_below} and {kmeans}"
            )
        self.dim, self.size, self.heads, self.sizes = dim, size, heads, (size,) * heads
        self.decay, self.commitment, self.epsilon = decay, commitment, epsilon
        self.shared, self.cosine, self.rotation = shared, cosine, rotation
        self.dead_below, self.kmeans = dead_below, kmeans
        shape = (1 if shared else heads, size, dim // heads)
        if cosine:
            codes = F.normalize(torch.randn(shape), dim=-1)
        else:
            codes = torch.empty(shape).uniform_(-1 / size, 1 / size)
        if update == "gradient":
            self.codes = nn.Parameter(codes)
        else:
            self.register_buffer("codes", codes)
            self.register_buffer("sums", codes.clone())
        self.register_buffer("counts", torch.ones(shape[:2]))
        self.register_buffer("started", torch.tensor(kmeans == 0))
        self._waits = kmeans > 0  # for the first training batch

    @property
    def follows(self) -> bool:
        """Whether codes are running means instead of parameters."""
        return "codes" in self._buffers

    def forward(self, z: Tensor) -> Quantized:
        if z.dim() != 2 or z.shape[1] != self.dim:
            raise ValueError(f"z must be (M, {self.dim}), got shape {tuple(z.shape)}")
        dtype = z.dtype
        z = z.to(torch.promote_types(dtype, torch.float32))
        with torch.autocast(z.device.type, enabled=False):
            parts = z.unflatten(1, (self.heads, self.dim // self.heads))  # (M, H, d)
            if self.cosine:
                parts = F.normalize(parts, dim=-1)
            # (books, rows, d); a shared codebook is one book.
            rows = parts.flatten(0, 1).unsqueeze(0) if self.shared else parts.transpose(0, 1)
            learns = self.training and torch.is_grad_enabled()
            if learns and self._waits:
                # As a decorator, torch.compiler.disable would import the compiler with vae_fast.
                start = self._start
                if torch.compiler.is_compiling():
                    start = torch.compiler.disable(start)
                start(rows.detach())
            codes = self._normal(self.codes.to(z.dtype))
            index = torch.stack(
                [
                    nearest_code(row.detach(), book.detach())[0]
                    for row, book in zip(rows, codes, strict=True)
                ]
            )
            chosen = self._gathered(index, codes)
            if learns:
                self._follow(rows.detach(), index)
        q = chosen.detach()
        loss = self.commitment * (parts - q).square().sum((1, 2))
        if not self.follows:
            loss = loss + (parts.detach() - chosen).square().sum((1, 2))
        found = (rotated if self.rotation else straight_through)(parts, q)
        index = index.view(z.shape[0], self.heads) if self.shared else index.t()
        return Quantized(found.flatten(1).to(dtype), index, loss)

    def lookup(self, codes: Tensor) -> Tensor:
        index = codes.reshape(1, -1) if self.shared else codes.t()
        return self._gathered(index, self._normal(self.codes)).flatten(1)

    def _normal(self, codes: Tensor) -> Tensor:
        return F.normalize(codes, dim=-1) if self.cosine else codes

    def _gathered(self, index: Tensor, codes: Tensor) -> Tensor:
        """The codes at ``index`` (books, rows), (M, H, d)."""
        found = torch.stack([F.embedding(i, book) for i, book in zip(index, codes, strict=True)])
        if self.shared:
            return found.view(-1, self.heads, self.dim // self.heads)
        return found.transpose(0, 1)

    @torch.no_grad()
    def _follow(self, rows: Tensor, index: Tensor) -> None:
        """Update counts and codes by a batch: rows (books, rows, d), with codes ``index``."""
        size, wide = self.size, self.counts.dtype
        counts = joined_sum(torch.stack([count(i, size, wide) for i in index]))
        self.counts.lerp_(counts, 1 - self.decay)
        if self.follows:
            # An embedding's gradient is the sum of the rows assigned to each code.
            grad = torch.ops.aten.embedding_dense_backward
            sums = [grad(r, i, size, -1, False) for r, i in zip(rows, index, strict=True)]
            self.sums.lerp_(joined_sum(torch.stack(sums).to(wide)), 1 - self.decay)
            total = self.counts.sum(-1, keepdim=True)
            smooth = (self.counts + self.epsilon) / (total + size * self.epsilon) * total
            self.codes.copy_(self._normal(self.sums / smooth.unsqueeze(-1)))
        if self.dead_below > 0:
            self._replace(rows)

    def _replace(self, rows: Tensor) -> None:
        """Replace rarely used codes by rows of the batch, without waiting for the device."""
        books, m = rows.shape[:2]
        if m == 0:
            return
        drawn = torch.randint(m, (books, self.size), device=rows.device)
        new = torch.stack([F.embedding(i, r) for i, r in zip(drawn, rows, strict=True)])
        new = of_first(new.to(self.codes.dtype))
        dead = self.counts.lt(self.dead_below).unsqueeze(-1)
        self.codes.copy_(torch.where(dead, new, self.codes))
        self.counts.clamp_min_(self.dead_below)
        if self.follows:
            wide = new.to(self.sums.dtype) * self.dead_below
            self.sums.copy_(torch.where(dead, wide, self.sums))

    @torch.no_grad()
    def _start(self, rows: Tensor) -> None:
        """Initialise the codes by k-means on the first process's rows, unless the result is not
        finite. This waits for the device, once."""
        for book, part in enumerate(rows):
            if len(part) == 0:
                return
            codes = kmeans(part, self.size, self.kmeans, self._normal)
            codes = of_first(codes.contiguous())
            if not bool(codes.isfinite().all()):
                return
            self.codes[book].copy_(codes)
            if self.follows:
                index = nearest_code(part, codes)[0]
                counts = joined_sum(count(index, self.size, part.dtype))
                self.counts[book].copy_(counts)
                self.sums[book].copy_(codes * counts.unsqueeze(1))
        self.started.fill_(True)
        self._waits = False

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *arguments: object
    ) -> None:
        super()._load_from_state_dict(state_dict, prefix, *arguments)
        self._waits = not bool(self.started)
