"""A model's parameters in one buffer, their gradients in another, and Adam over both.

The number of ops limits a small model's step: eight norms and eight updates cost more than their
arithmetic. Over one buffer, norm and update are one op each.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any
from typing import cast as cast_to

import torch
from torch import Tensor, nn

from vae_fast.moments import FLUSHED_EVERY, LEAST_EPS
from vae_fast.ops.parameter_buffers import ParameterBuffers

# Elements up to which a model is flattened. In larger models each op takes long anyway, and the
# second copy of the gradients (backward's and the buffer's) would cost too much memory.
LIMIT = 1 << 24
ALIGNED = 16  # elements: a cache line of float32


class FlatParameters:
    """Moves parameters into one buffer, of which their ``data`` then are views.

    Attributes:
        whole: all of them as one parameter; its gradient is ``gradients``.
        parameter_buffers: where layers find casts and may write gradients.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], cast: torch.dtype | None = None) -> None:
        self.parameters = list(parameters)
        self._begins, size = [], 0
        for p in self.parameters:
            self._begins.append(size)
            size += -(-p.numel() // ALIGNED) * ALIGNED
        like = self.parameters[0]
        self.whole = nn.Parameter(torch.zeros(size, dtype=like.dtype, device=like.device))
        self.whole.grad = self.zeros()
        for p, view in zip(self.parameters, self.views(self.whole.data), strict=True):
            view.copy_(p.data)
            p.data = view
        self._gradients = self.views(self.whole.grad)
        self._addresses = [place.data_ptr() for place in self._gradients]
        self._cast = None if cast is None else torch.zeros_like(self.whole.data, dtype=cast)
        casts: Iterable[Any] = ()
        if self._cast is not None:
            casts = zip(self.parameters, self.views(self._cast), strict=True)
        self.parameter_buffers = ParameterBuffers(
            dict(zip(self.parameters, self._gradients, strict=True)), dict(casts)
        )

    @staticmethod
    def fits(parameters: Sequence[nn.Parameter]) -> bool:
        """Whether these parameters can be flattened: few enough, dense, of one dtype and one
        device."""
        return (
            0 < sum(p.numel() for p in parameters) <= LIMIT
            and len({(p.dtype, p.device) for p in parameters}) == 1
            and all(type(p) is nn.Parameter and _is_dense(p) for p in parameters)
        )

    def zeros(self) -> Tensor:
        return torch.zeros_like(self.whole.data)

    def views(self, buffer: Tensor) -> list[Tensor]:
        """Each parameter's part of ``buffer``, in the parameter's shape and layout."""
        return [
            buffer.as_strided(p.shape, p.stride(), begin)
            for p, begin in zip(self.parameters, self._begins, strict=True)
        ]

    def prepare(self) -> ParameterBuffers:
        """Prepare a forward pass: cast the parameters, and mark all gradient buffers as free."""
        self.parameter_buffers.begin()
        if self._cast is not None:
            self._cast.copy_(self.whole.data)
        return self.parameter_buffers

    def collect(self) -> bool:
        """Copy the gradients that backward left in the parameters' ``grad`` into the buffer.

        False if some parameter has no gradient: the buffer must not be used then.
        """
        elsewhere = []
        for i, p in enumerate(self.parameters):
            if p.grad is None:
                return False
            if p.grad.data_ptr() != self._addresses[i]:
                elsewhere.append(i)
        if elsewhere:
            torch._foreach_copy_(
                [self._gradients[i] for i in elsewhere],
                [cast_to(Tensor, self.parameters[i].grad) for i in elsewhere],
            )
        return True

    def clear(self) -> None:
        """Remove all gradients: between steps no parameter has one."""
        for p in self.parameters:
            p.grad = None


def _is_dense(p: Tensor) -> bool:
    return p.is_contiguous() or torch.ops.aten.is_non_overlapping_and_dense(p)


class FlatAdam:
    """torch's fused Adam or AdamW over ``flat`` in one op, with the state of torch's optimizer.

    ``torch_optimizer`` holds the options and the state, as views of this object's buffers. Its
    ``step`` is not called.
    """

    def __init__(self, flat: FlatParameters, torch_optimizer: torch.optim.Optimizer) -> None:
        self.flat = flat
        self.torch_optimizer = torch_optimizer
        self.param_groups = torch_optimizer.param_groups
        self.defaults = torch_optimizer.defaults
        self.found_inf: Tensor | None = None
        self.grad_scale: Tensor | None = None
        adamw = isinstance(torch_optimizer, torch.optim.AdamW)
        self._take = torch._fused_adamw_ if adamw else torch._fused_adam_
        self._data = flat.whole.data  # needs no no_grad() to be changed in place
        self._steps = torch.zeros((), device=flat.whole.device)
        names = ["exp_avg", "exp_avg_sq"]
        names += ["max_exp_avg_sq"] if self.defaults["amsgrad"] else []
        self._buffers = {name: flat.zeros() for name in names}
        self._views = {name: flat.views(buffer) for name, buffer in self._buffers.items()}
        self._give_views()

    @staticmethod
    def serves(torch_optimizer: torch.optim.Optimizer) -> bool:
        """Whether this can replace the optimizer: one parameter group, fused, with supported
        options."""
        return (
            type(torch_optimizer) in (torch.optim.Adam, torch.optim.AdamW)
            and len(torch_optimizer.param_groups) == 1
            and torch_optimizer.defaults["fused"] is True
            and not torch_optimizer.defaults["differentiable"]
        )

    def step(self) -> None:
        """One step with ``flat``'s gradients; no step if ``found_inf`` is 1."""
        group = self.param_groups[0]
        self._steps.add_(1)
        beta1, beta2 = group["betas"]
        largest = self._buffers.get("max_exp_avg_sq")
        self._take(
            [self._data],
            [cast_to(Tensor, self.flat.whole.grad)],
            [self._buffers["exp_avg"]],
            [self._buffers["exp_avg_sq"]],
            [] if largest is None else [largest],
            [self._steps],
            lr=group["lr"],
            beta1=beta1,
            beta2=beta2,
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            amsgrad=group["amsgrad"],
            maximize=group["maximize"],
            grad_scale=self.grad_scale,
            found_inf=self.found_inf,
        )
        if self.found_inf is not None:
            self._steps.sub_(self.found_inf)  # a step that decides on its device reads nothing back
        elif self._data.is_cpu and self._steps.item() % FLUSHED_EVERY == 0:
            self._flush_subnormals(group["eps"])

    def _flush_subnormals(self, eps: float) -> None:
        if eps >= LEAST_EPS:
            for buffer in self._buffers.values():
                torch.hardshrink(buffer, torch.finfo(buffer.dtype).tiny, out=buffer)

    def zero_grad(self) -> None:
        self.flat.clear()

    def state_dict(self) -> dict[str, Any]:
        """The state_dict of torch's optimizer, in which each parameter counts its own steps."""
        state = self.torch_optimizer.state_dict()
        own = {i: {**s, "step": s["step"].clone()} for i, s in state["state"].items()}
        return {**state, "state": own}

    def takes(self, state: dict[str, Any]) -> bool:
        """Whether all parameters in ``state`` have taken the same number of steps, as they must
        here."""
        found = [state["state"].get(i) for i in range(len(self.flat.parameters))]
        return len({None if f is None else float(f["step"]) for f in found}) == 1

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load a state_dict of this or of torch's optimizer; ``takes`` must be true of it."""
        own = self.torch_optimizer
        own.load_state_dict(state)
        self.param_groups = own.param_groups
        loaded = [own.state.get(p, {}) for p in self.flat.parameters]
        self._steps.fill_(float(loaded[0].get("step", 0.0)))
        for name, views in self._views.items():
            for view, found in zip(views, loaded, strict=True):
                view.copy_(found[name]) if found else view.zero_()
        self._give_views()

    def unflattened(self) -> torch.optim.Optimizer:
        """torch's optimizer, to continue with parameter by parameter."""
        for state in self.torch_optimizer.state.values():
            state["step"] = self._steps.clone()
        # as in a new optimizer, which makes state for parameters with gradients
        if self._steps.item() == 0:
            self.torch_optimizer.state.clear()
        return self.torch_optimizer

    def _give_views(self) -> None:
        for i, p in enumerate(self.flat.parameters):
            views = {name: views[i] for name, views in self._views.items()}
            self.torch_optimizer.state[p] = {"step": self._steps, **views}
