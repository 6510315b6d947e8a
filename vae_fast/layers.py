"""Linear layers that go to the faster of the CPU's matrix libraries, by torch's own names.

Same parameters, same initial weights, same state_dict and, to float32's rounding, same results as
``torch.nn.Linear`` and a ``torch.nn.Sequential`` of such. On a GPU, under torch.compile, tracing
and function transforms, with the reference backend and in other dtypes they are those.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from vae_fast.backend import get_backend
from vae_fast.ops.mlp import mlp, serves


class Linear(nn.Linear):
    """``torch.nn.Linear`` through the faster matrix library; see ``vae_fast.ops.matmul``."""

    def forward(self, x: Tensor) -> Tensor:
        if _at_once(x, [self]):
            return _through(x, [self], (False,))
        return super().forward(x)


class MLP(nn.Sequential):
    """``torch.nn.Sequential`` that takes linear layers and the ReLUs between them in one go."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling() or not x.is_cpu:
            return super().forward(x)
        modules = list(self._modules.values())
        while modules:
            layers, relus = _leading_run(modules)
            if layers and _at_once(x, layers):
                x = _through(x, layers, relus)
                del modules[: len(layers) + sum(relus)]
            else:
                x = modules.pop(0)(x)
        return x


def _leading_run(modules: list[nn.Module]) -> tuple[list[nn.Linear], tuple[bool, ...]]:
    """The linear layers that ``modules`` begins with, and after which of them there is a ReLU."""
    layers: list[nn.Linear] = []
    relus: list[bool] = []
    for module in modules:
        if type(module) is Linear and not _has_hooks(module):
            layers.append(module)
            relus.append(False)
        elif type(module) is nn.ReLU and layers and not relus[-1] and not _has_hooks(module):
            relus[-1] = True
        else:
            break
    return layers, tuple(relus)


def _has_hooks(module: nn.Module) -> bool:
    """Whether somebody wants to know of the module's calls: it then has to be called."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or _has_any_global_hook()
    )


def _parameters(layers: list[nn.Linear]) -> list[Tensor | None]:
    return [p for layer in layers for p in (layer.weight, layer.bias)]


def _at_once(x: Tensor, layers: list[nn.Linear]) -> bool:
    return get_backend() != "reference" and x.dim() > 0 and serves(x, _parameters(layers))


def _through(x: Tensor, layers: list[nn.Linear], relus: tuple[bool, ...]) -> Tensor:
    if x.shape[-1] != layers[0].in_features:
        raise ValueError(
            f"x has {x.shape[-1]} features, shape {tuple(x.shape)}, and the layer takes "
            f"{layers[0].in_features}"
        )
    out = mlp(x if x.dim() == 2 else x.reshape(-1, x.shape[-1]), relus, *_parameters(layers))
    return out if x.dim() == 2 else out.view(*x.shape[:-1], out.shape[-1])
