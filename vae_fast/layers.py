"""``torch.nn.Sequential`` that computes series of linear layers by the faster of the CPU's matrix
libraries.

The layers are torch's, so tools that quantise, prune, count, hook or replace them work as usual.
The container takes the fast path only for unchanged layers. On a GPU, under torch.compile, tracing
and function transforms, with the reference backend and in other dtypes it behaves as
``torch.nn.Sequential``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import activation, container, linear, module
from torch.nn.modules.module import _has_any_global_hook

from vae_fast.backend import get_backend, is_watched
from vae_fast.ops.mlp import mlp, serves

# The functions that the fast path replaces, and the modules that define them.
_TORCHS = tuple(
    (owner, name, vars(source))
    for owner, name, source in (
        (nn.Linear, "forward", linear),
        (nn.ReLU, "forward", activation),
        (nn.Sequential, "forward", container),
        (nn.Module, "__call__", module),
        (nn.Module, "_call_impl", module),
        (F, "relu", F),
    )
)
# Attributes that an unchanged layer does not have in its own dictionary.
_REPLACED = ("forward", "weight", "bias", "_call_impl", "_wrapped_call_impl", "_compiled_call_impl")


class MLP(nn.Sequential):
    """``torch.nn.Sequential`` that computes linear layers and the ReLUs between them in one
    function."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.jit.is_scripting():
            for layer in self:
                x = layer(x)
        elif torch.compiler.is_compiling() or type(x) is not Tensor or not _fast_path_allowed(x):
            x = super().forward(x)  # type: ignore[no-untyped-call]
        else:
            x = _in_runs(x, list(self._modules.values()))
        return x


def _fast_path_allowed(x: Tensor) -> bool:
    """Whether skipping the layers' calls is unobservable, as far as this does not depend on the
    layer."""
    return (
        x.is_cpu
        and x.dim() > 0
        and get_backend() != "reference"
        and not _has_any_global_hook()
        and not is_watched()
        and F.linear is torch._C._nn.linear
        and all(
            getattr(vars(o)[name], "__globals__", None) is source for o, name, source in _TORCHS
        )
    )


def _in_runs(x: Tensor, modules: list[nn.Module]) -> Tensor:
    while modules:
        relus, parameters = _leading_run(modules)
        if relus and serves(x, parameters):
            x = _through(x, relus, parameters)
            del modules[: len(relus) + sum(relus)]
        else:
            x = modules.pop(0)(x)
    return x


def _leading_run(modules: list[nn.Module]) -> tuple[tuple[bool, ...], list[Tensor | None]]:
    """For the linear layers at the start of ``modules``: whether a ReLU follows each, and their
    parameters."""
    relus: list[bool] = []
    parameters: list[Tensor | None] = []
    for layer in modules:
        if type(layer) is nn.Linear and _is_unmodified(layer):
            own = layer._parameters
            parameters += own["weight"], own["bias"]
            relus.append(False)
        elif type(layer) is nn.ReLU and relus and not relus[-1] and _is_unmodified(layer):
            relus[-1] = True
        else:
            break
    return tuple(relus), parameters


def _is_unmodified(layer: nn.Module) -> bool:
    """Whether a call of the layer is only its class's ``forward`` on its own parameters."""
    own = layer.__dict__
    return not any(name in own for name in _REPLACED) and not _has_hooks(layer)


def _has_hooks(module: nn.Module) -> bool:
    """Whether the module has hooks, so that it must be called."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def has_hooks(model: nn.Module) -> bool:
    """Whether any of the model's modules has hooks, or there are global hooks, or hooks on a
    parameter's gradient."""
    return (
        bool(_has_any_global_hook())
        or any(map(_has_hooks, model.modules()))
        or any(p._backward_hooks or p._post_accumulate_grad_hooks for p in model.parameters())
    )


def _through(x: Tensor, relus: tuple[bool, ...], parameters: Sequence[Tensor | None]) -> Tensor:
    first = parameters[0]
    assert first is not None  # a weight, where a bias may be missing
    features = first.shape[1]
    if x.shape[-1] != features:
        raise ValueError(
            f"x has {x.shape[-1]} features, shape {tuple(x.shape)}, and the layer takes {features}"
        )
    if x.dim() == 2:
        return mlp(x, relus, parameters)
    out = mlp(x.reshape(-1, features), relus, parameters)
    return out.view(*x.shape[:-1], out.shape[-1])
