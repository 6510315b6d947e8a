"""Loss scaling for fp16, whose small gradients would be zero (Micikevicius et al. 2018).

This does what torch's GradScaler does, without reading values on the host: the guard decides on the
device whether a gradient overflowed.
"""

from __future__ import annotations

import torch
from torch import Tensor

START = 2.0**16
GROWTH, BACKOFF, INTERVAL = 2.0, 0.5, 2000  # torch's defaults


class LossScale:
    """A power of two that halves when gradients overflow and doubles after 2000 steps without
    overflow."""

    def __init__(self, device: torch.device) -> None:
        self.value = torch.full((), START, device=device)
        self._since = torch.zeros((), dtype=torch.int32, device=device)

    @torch.no_grad()
    def update(self, overflowed: Tensor) -> None:
        """``overflowed``: whether the last gradient was not finite, 0-d, bool."""
        torch._amp_update_scale_(
            self.value, self._since, overflowed.float(), GROWTH, BACKOFF, INTERVAL
        )

    def state_dict(self) -> dict[str, Tensor]:
        return {"value": self.value, "since": self._since}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.value.copy_(state["value"])
        self._since.copy_(state["since"])
