"""Linear layers and the ReLUs between them as one autograd function, on the CPU.

Products use the faster library (``ops.matmul``), in float32, or in bfloat16 under autocast. ReLU
and its gradient are in place. Weight gradients go to the step's buffers, those of
``ops.parameter_buffers``. For layers of the tutorial's size this saves a third of autograd's
overhead.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

from vae_fast.ops.autograd import beyond_native, differentiable_again
from vae_fast.ops.matmul import bias_grad, linear, product, weight_grad
from vae_fast.ops.parameter_buffers import current

Maybe = torch.Tensor | None
_relu_backward = torch.ops.aten.threshold_backward.grad_input


def compute_dtype(x: Tensor) -> torch.dtype | None:
    """The dtype in which ``mlp`` computes for x, given autocast; None if it does not serve x."""
    if not x.is_cpu or not x.is_floating_point():
        return None
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        return dtype if dtype == torch.bfloat16 and x.dtype != torch.float64 else None
    return x.dtype if x.dtype == torch.float32 else None


def serves(x: Tensor, parameters: Sequence[Maybe]) -> bool:
    """Whether ``mlp`` can replace plain PyTorch, which tracing and transforms rule out."""
    if type(x) is not torch.Tensor or compute_dtype(x) is None:
        return False
    for p in parameters:
        if p is not None and not (
            (type(p) is Parameter or type(p) is Tensor) and p.dtype == torch.float32 and p.is_cpu
        ):
            return False
    return not (
        forward_ad._current_level >= 0
        or torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch._C._are_functorch_transforms_active()
    )


class _MLP(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, relus: tuple[bool, ...], dtype: torch.dtype, *parameters: Maybe
    ) -> Any:
        buffers = current()
        casts = {} if buffers is None else buffers.casts
        weights, h, inputs = [], x.to(dtype), []
        for i, relu in enumerate(relus):
            weight, bias = (_cast(p, dtype, casts) for p in parameters[2 * i : 2 * i + 2])
            inputs.append(h)
            assert weight is not None  # only a bias may be missing
            weights.append(weight)
            h = linear(h, weight, bias, relu)
        ctx.save_for_backward(x, *parameters, *inputs, *([h] if relus[-1] else []))
        ctx.weights, ctx.buffers, ctx.relus, ctx.dtype = weights, buffers, relus, dtype
        return h

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, *rest = ctx.saved_tensors
        count, relus = len(ctx.relus), ctx.relus
        parameters, outputs = rest[: 2 * count], rest[2 * count :]
        if beyond_native(grad):

            def again(x: Tensor, _relus: None, _dtype: None, *parameters: Maybe) -> Tensor:
                return plain(x, relus, *parameters)

            inputs = x, None, None, *parameters
            autocast = None if ctx.dtype == torch.float32 else ctx.dtype
            return differentiable_again(again, inputs, (grad,), ctx.needs_input_grad, autocast)
        needs, buffers = ctx.needs_input_grad, ctx.buffers
        grads: list[Maybe] = [None] * len(parameters)
        grad = grad.contiguous()
        owned = False  # whether backward may write to grad
        for i in reversed(range(count)):
            if relus[i]:
                into = grad if owned else torch.empty_like(outputs[i + 1])
                grad = _relu_backward(grad, outputs[i + 1], 0, grad_input=into)
            weight, bias = parameters[2 * i : 2 * i + 2]
            if needs[2 * i + 3]:
                grads[2 * i] = weight_grad(grad, outputs[i], _place(buffers, weight))
            if bias is not None and needs[2 * i + 4]:
                grads[2 * i + 1] = bias_grad(grad, _place(buffers, bias))
            if not (needs[0] or any(needs[3 : 2 * i + 3])):
                break
            grad, owned = product(grad, ctx.weights[i]), True
        return (grad.to(x.dtype) if needs[0] else None), None, None, *grads


def _cast(parameter: Maybe, dtype: torch.dtype, casts: dict[Tensor, Tensor]) -> Maybe:
    if parameter is None or parameter.dtype == dtype:
        return parameter
    found = casts.get(parameter)
    return parameter.to(dtype) if found is None or found.dtype != dtype else found


def _place(buffers: Any, parameter: Tensor) -> Tensor:
    found = None if buffers is None else buffers.take(parameter)
    return torch.empty_like(parameter) if found is None else found


def plain(x: Tensor, relus: tuple[bool, ...], *parameters: Maybe) -> Tensor:
    """``mlp`` in plain PyTorch."""
    for i, relu in enumerate(relus):
        weight, bias = parameters[2 * i : 2 * i + 2]
        assert weight is not None
        x = F.linear(x, weight, bias)
        x = torch.relu(x) if relu else x
    return x


def mlp(x: Tensor, relus: tuple[bool, ...], parameters: Sequence[Maybe]) -> Tensor:
    """Linear layers with optional ReLUs, for arguments that ``serves`` accepts.

    Args:
        x: (N, in).
        relus: for each layer, whether ReLU follows.
        parameters: alternately weight (out, in) and bias (out,) or None of each layer.

    Returns:
        (N, out) in the dtype ``compute_dtype(x)``.
    """
    return _MLP.apply(x, relus, compute_dtype(x), *parameters)
