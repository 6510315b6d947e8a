"""Linear layers that go to the faster of the CPU's matrix libraries, by torch's own names.

Same parameters, same initial weights, same state_dict and, to float32's rounding, same results as
``torch.nn.Linear`` and a ``torch.nn.Sequential`` of such. On a GPU, under torch.compile, tracing
and function transforms, with the reference backend and in other dtypes they are those.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from vae_fast.backend import get_backend
from vae_fast.ops.mlp import mlp, serves


class Linear(nn.Linear):
    """``torch.nn.Linear`` through the faster matrix library; see ``vae_fast.ops.matmul``."""

    def forward(self, x: Tensor) -> Tensor:
        parameters = self.weight, self.bias
        if _at_once(x, parameters):
            return _through(x, (False,), parameters)
        return super().forward(x)


class MLP(nn.Sequential):
    """``torch.nn.Sequential`` that takes linear layers and the ReLUs between them in one go."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling() or not x.is_cpu or _has_any_global_hook():
            return super().forward(x)
        modules = list(self._modules.values())
        while modules:
            relus, parameters = _leading_run(modules)
            if relus and _at_once(x, parameters):
                x = _through(x, relus, parameters)
                del modules[: len(relus) + sum(relus)]
            else:
                x = modules.pop(0)(x)
        return x


def _leading_run(modules: list[nn.Module]) -> tuple[tuple[bool, ...], list[Tensor | None]]:
    """Of the linear layers that ``modules`` begins with: whether ReLU follows, and parameters."""
    relus: list[bool] = []
    parameters: list[Tensor | None] = []
    for module in modules:
        if type(module) is Linear and not _has_hooks(module):
            own = module._parameters
            parameters += own["weight"], own["bias"]
            relus.append(False)
        elif type(module) is nn.ReLU and relus and not relus[-1] and not _has_hooks(module):
            relus[-1] = True
        else:
            break
    return tuple(relus), parameters


def _has_hooks(module: nn.Module) -> bool:
    """Whether somebody wants to know of the module's calls: it then has to be called."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def has_hooks(model: nn.Module) -> bool:
    """Whether somebody wants to know of the calls of any of the model's modules, or of all modules."""
    return bool(_has_any_global_hook()) or any(map(_has_hooks, model.modules()))


def _at_once(x: Tensor, parameters: Sequence[Tensor | None]) -> bool:
    return x.is_cpu and x.dim() > 0 and get_backend() != "reference" and serves(x, parameters)


def _through(x: Tensor, relus: tuple[bool, ...], parameters: Sequence[Tensor | None]) -> Tensor:
    features = parameters[0].shape[1]
    if x.shape[-1] != features:
        raise ValueError(
            f"x has {x.shape[-1]} features, shape {tuple(x.shape)}, and the layer takes {features}"
        )
    if x.dim() == 2:
        return mlp(x, relus, parameters)
    out = mlp(x.reshape(-1, features), relus, parameters)
    return out.view(*x.shape[:-1], out.shape[-1])
