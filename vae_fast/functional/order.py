"""Detection of swapped arguments: a model's output in place of the data."""

from __future__ import annotations

import torch

_BYTES = (torch.uint8, torch.bool)


def check_order(
    made_name: str,
    made: torch.Tensor,
    data_name: str,
    data: torch.Tensor,
    call: str,
    elsewhere: str = "",
) -> None:
    """Raise if ``made`` looks like data, and ``data`` like a model's output.

    The loss of swapped arguments is a plausible number, and training lowers it. This detects the
    swap if ``made`` is bytes, or if only ``data`` has a gradient.

    Args:
        call: the correct call, for the message.
        elsewhere: what to call for the other order.

    Raises:
        TypeError: ``made`` is bytes and ``data`` is not.
        ValueError: ``data`` requires grad and ``made`` does not.
    """
    if not isinstance(made, torch.Tensor) or not isinstance(data, torch.Tensor):
        return
    hint = (
        f"the order is {call}, but {data_name} seems to stand in place of {made_name}: swap "
        f"{made_name} and {data_name}{elsewhere}"
    )
    if made.dtype in _BYTES and data.is_floating_point():
        raise TypeError(
            f"{made_name} must be float32, float64, bfloat16 or float16, got {made.dtype}, and "
            f"{data_name} is {data.dtype}; {hint}"
        )
    if torch.is_grad_enabled() and data.requires_grad and not made.requires_grad:
        raise ValueError(f"{data_name} requires grad and {made_name} does not; {hint}")
