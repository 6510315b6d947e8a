"""Between backward and the optimizer: gradient clipping, and skipping of bad steps.

On a GPU the decision is made on the device. A fused optimizer receives it as ``found_inf`` and
``grad_scale``, the tensors that torch's gradient scaler uses, so the host does not wait. For
another optimizer the host reads the decision. On the CPU the decision is a Python number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vae_fast.backend import _libraries, get_backend
from vae_fast.moments import flush_subnormals
from vae_fast.train import sharded
from vae_fast.train.config import OptimizerConfig

if "cpu" in _libraries:
    from vae_fast.ops.norm import euclidean_norm

SETTLING = 50  # steps before the mean of norms is trusted
MOMENTUM = 0.98  # decay of the running mean of norms
LARGEST = torch.finfo(torch.float32).max


class Guard:
    """Skips steps that are not finite, or whose gradient norm is far above the running mean.

    After ``patience`` consecutive steps skipped for their norm alone, the next one is taken. Steps
    that are not finite are counted, and the trainer stops at a limit.
    """

    def __init__(self, config: OptimizerConfig, device: torch.device) -> None:
        self.config = config
        self.decides_on_device = device.type != "cpu"  # on the CPU, reading a value does not wait
        self.skipped_in_all = 0
        self.consecutive_not_finite = 0  # as of the last read
        self.longest_not_finite = 0  # the longest such series in the last read
        self._largest = torch.tensor(LARGEST, device=device)
        # Since the last read: each step's norm (NaN if the loss was not finite) and whether it was
        # skipped.
        self._norms: list[Tensor | float] = []
        self._skips: list[Tensor | bool] = []
        # State of the adaptive threshold: mean of norms, steps taken, consecutive skipped steps.
        self._usual = torch.zeros(3, device=device)

    @torch.no_grad()
    def __call__(
        self, optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor], loss: Tensor | None
    ) -> Tensor | bool:
        """Take the optimizer's step, or skip it; returns whether it was skipped."""
        norm, skipped = self.take(optimizer, parameters, loss)
        self.record(norm, skipped)
        return skipped

    def take(
        self,
        optimizer: torch.optim.Optimizer,
        parameters: Sequence[Tensor],
        loss: Tensor | None,
        loss_scale: Tensor | None = None,
        part: float = 1.0,
    ) -> tuple[Tensor, Tensor] | tuple[float, bool]:
        """Take the optimizer's step, or skip it, without recording the outcome for ``read``.

        Args:
            parameters: their gradients are examined.
            loss: examined too; None examines the gradients alone.
            loss_scale: the loss's factor before backward.
            part: the factor of the gradients after clipping, which the norm does not show.

        Returns:
            (norm, skipped): the gradient's norm, NaN if the loss was not finite, and whether the
            step was skipped; 0-d tensors on a GPU.
        """
        norm = gradient_norm([p.grad for p in parameters if p.grad is not None])
        if loss_scale is not None:
            norm = norm / loss_scale
        divisor = self._divisor(norm, loss_scale, part)
        if not self.decides_on_device:
            return self._take_on_host(optimizer, norm, loss, divisor)
        return self._take_on_device(optimizer, norm, loss, divisor)

    @torch.no_grad()
    def _take_on_device(
        self, optimizer: Any, norm: Tensor, loss: Tensor | None, divisor: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        if loss is not None:
            # 0 * loss is NaN if the loss is not finite, and NaN is below no limit.
            norm = torch.add(norm, loss, alpha=0)
        limit = self._limit() if self.config.skip_above > 0 else self._largest
        skipped = (norm <= limit).logical_not_()
        if self.config.skip_above > 0:
            self._learn(norm, skipped)
        _step(optimizer, skipped, divisor, on_device=True)
        return norm, skipped

    def _take_on_host(
        self, optimizer: Any, norm: Tensor, loss: Tensor | None, divisor: Tensor | None
    ) -> tuple[float, bool]:
        value = norm.item()
        if loss is not None and not math.isfinite(loss.item()):
            value = math.nan
        skipped = not value <= self.limit()
        self.learn(norm, skipped)
        if not skipped:
            _step(optimizer, None, divisor, on_device=False)
        return value, skipped

    def limit(self) -> float:
        """The norm above which this step is skipped, for runners that decide on the host."""
        return self._limit().item() if self.config.skip_above > 0 else LARGEST

    def learn(self, norm: Tensor | float, skipped: bool) -> None:
        """Update the threshold by the norm of a step that was taken or skipped, on the host."""
        if self.config.skip_above > 0:
            self._learn(torch.as_tensor(norm, dtype=torch.float32), torch.tensor(skipped))

    @torch.no_grad()
    def _divisor(self, norm: Tensor, loss_scale: Tensor | None, part: float) -> Tensor | None:
        """The divisor of the gradients, or None."""
        divisor = loss_scale
        if (clip := self.config.clip_norm) > 0:
            of_clip = (norm / clip).clamp_min_(1.0)
            divisor = of_clip if divisor is None else of_clip * divisor
        if part != 1.0:
            divisor = (torch.ones_like(norm) if divisor is None else divisor) / part
        return divisor

    def record(self, norm: Tensor | float, skipped: Tensor | bool) -> None:
        """Record what ``take`` returned, until ``read``."""
        self._norms.append(norm)
        self._skips.append(skipped)

    def read(self) -> dict[str, float | None]:
        """The mean norm of the steps taken since the last read, and the number of all skipped
        steps.

        This waits for the device.
        """
        norms, skips = _numbers(self._norms), _numbers(self._skips)
        self._norms, self._skips = [], []
        self.longest_not_finite = 0
        for norm in norms:
            self.consecutive_not_finite = (
                0 if math.isfinite(norm) else self.consecutive_not_finite + 1
            )
            self.longest_not_finite = max(self.longest_not_finite, self.consecutive_not_finite)
        self.skipped_in_all += int(sum(skips))
        taken = [norm for norm, skipped in zip(norms, skips, strict=True) if not skipped]
        return {
            "grad_norm": sum(taken) / len(taken) if taken else None,
            "skipped": self.skipped_in_all,
        }

    def state_dict(self) -> dict[str, Any]:
        return {
            "usual": self._usual,
            "norms": list(self._norms),
            "skips": list(self._skips),
            "skipped_in_all": self.skipped_in_all,
            "consecutive_not_finite": self.consecutive_not_finite,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._usual.copy_(state["usual"])
        self._norms = list(state["norms"])
        self._skips = list(state["skips"])
        self.skipped_in_all = state["skipped_in_all"]
        self.consecutive_not_finite = state["consecutive_not_finite"]

    def _limit(self) -> Tensor:
        """The norm above which this step is skipped."""
        mean, taken, in_row = self._usual.unbind()
        active = (taken >= SETTLING) & (in_row < self.config.patience)
        return torch.where(active, self.config.skip_above * mean, self._largest)

    def _learn(self, norm: Tensor, skipped: Tensor) -> None:
        """Update the mean of norms: first a plain mean, then an exponential moving average."""
        mean, taken, in_row = self._usual.unbind()
        in_row.add_(1).mul_(skipped)
        taken.add_(~skipped)
        weight = taken.clamp_min(1).reciprocal_().clamp_min_(1.0 - MOMENTUM)
        mean.copy_(torch.where(skipped, mean, torch.lerp(mean, norm, weight)))


def gradient_norm(gradients: Sequence[Tensor]) -> Tensor:
    """The Euclidean norm of all gradients together, a 0-d float32 tensor."""
    if len(gradients) == 1 and gradients[0].dim() == 1 and gradients[0].dtype == torch.float32:
        (whole,) = gradients
        if (
            type(whole) is Tensor
            and whole.is_cpu
            and "cpu" in _libraries
            and get_backend() != "reference"
        ):
            return euclidean_norm(whole)
        if not sharded.is_sharded(whole):
            return torch.linalg.vector_norm(whole)
    return sharded.norm(gradients)


def _numbers(values: Sequence[Tensor | float | bool]) -> list[float | bool]:
    """Values as Python numbers; tensors of one device are read in one transfer."""
    tensors = [v for v in values if isinstance(v, Tensor)]
    if tensors and len(tensors) == len(values) and len({t.device for t in tensors}) == 1:
        return torch.stack(tensors).tolist()
    return [v.item() if isinstance(v, Tensor) else v for v in values]


def _step(optimizer: Any, skipped: Tensor | None, scale: Tensor | None, *, on_device: bool) -> None:
    """Take the optimizer's step with the gradients divided by ``scale``, unless it is
    ``skipped``."""
    fused = bool(optimizer.defaults.get("fused"))
    if fused and on_device and skipped is not None:
        optimizer.found_inf = skipped.float()
    elif on_device and skipped is not None and skipped.item():
        return
    if fused:
        optimizer.grad_scale = scale
    elif scale is not None:
        groups = optimizer.param_groups
        torch._foreach_div_(
            [p.grad for group in groups for p in group["params"] if p.grad is not None], scale
        )
    optimizer.step()
    if not on_device and isinstance(optimizer, torch.optim.Optimizer):  # FlatAdam flushes its own
        flush_subnormals(optimizer)
