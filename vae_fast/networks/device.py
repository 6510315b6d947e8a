"""Where a network's parameters are."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def device_and_dtype(module: nn.Module) -> tuple[torch.device, torch.dtype]:
    """The device and dtype of a module's first parameter; the CPU and torch's default dtype for a
    module without parameters, such as a quantised one."""
    parameter = _first_parameter(module)
    if parameter is None:
        return torch.device("cpu"), torch.get_default_dtype()
    return parameter.device, parameter.dtype


def _first_parameter(module: nn.Module) -> Tensor | None:
    """next(module.parameters()) or None, in a tenth of the time, for use at every step."""
    for parameter in module._parameters.values():
        if parameter is not None:
            return parameter
    for child in module._modules.values():
        found = None if child is None else _first_parameter(child)
        if found is not None:
            return found
    return None
