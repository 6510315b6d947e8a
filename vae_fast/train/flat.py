"""A model's parameters in one buffer and their gradients in another, and Adam over both.

A small model's step is bound by the number of ops: the norm of eight gradients and eight updates
cost more than the arithmetic in them. Over one buffer each is one op.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vae_fast.ops.parameter_buffers import ParameterBuffers

# Elements up to which a model is flattened: beyond, ops are long, and a second copy of the
# gradients (backward's own, and the buffer's) is memory that large models need for other things.
LIMIT = 1 << 24
ALIGNED = 16  # elements: a cache line of float32, and more of anything wider


class FlatParameters:
    """Moves parameters into one buffer: their ``data`` are views of it from then on.

    Attributes:
        whole: all of them as one parameter, whose gradient is ``gradients``.
        places: where layers that ask may put their gradients, and find casts.
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
        casts = [] if cast is None else zip(self.parameters, self.views(self._cast), strict=True)
        self.parameter_buffers = ParameterBuffers(
            dict(zip(self.parameters, self._gradients, strict=True)), dict(casts)
        )

    @staticmethod
    def fits(parameters: Sequence[nn.Parameter]) -> bool:
        """Whether these can be flattened: few enough, dense, and of one dtype and device."""
        return (
            0 < sum(p.numel() for p in parameters) <= LIMIT
            and len({(p.dtype, p.device) for p in parameters}) == 1
            and all(type(p) is nn.Parameter and _is_dense(p) for p in parameters)
        )

    def zeros(self) -> Tensor:
        return torch.zeros_like(self.whole.data)

    def views(self, buffer: Tensor) -> list[Tensor]:
        """``buffer``'s part of each parameter, in the parameter's shape and layout."""
        return [
            buffer.as_strided(p.shape, p.stride(), begin)
            for p, begin in zip(self.parameters, self._begins, strict=True)
        ]

    def prepare(self) -> ParameterBuffers:
        """For a forward pass: the parameters' casts as they are now, and all places free."""
        self.parameter_buffers.begin()
        if self._cast is not None:
            self._cast.copy_(self.whole.data)
        return self.parameter_buffers

    def collect(self) -> bool:
        """Bring what backward left in the parameters' ``grad`` into the buffer.

        False if some parameter has none: the buffer is then not to be used.
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
                [self.parameters[i].grad for i in elsewhere],
            )
        return True

    def clear(self) -> None:
        """Between steps no parameter has a gradient."""
        for p in self.parameters:
            p.grad = None


def _is_dense(p: Tensor) -> bool:
    return p.is_contiguous() or torch.ops.aten.is_non_overlapping_and_dense(p)


class FlatAdam:
    """torch's fused Adam or AdamW over ``flat`` in one op, with the state of torch's own.

    ``torch_optimizer`` holds that state, as views of buffers here, and the options; its own
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
        """Whether this can take the optimizer's steps: one group, fused, and nothing odd."""
        return (
            type(torch_optimizer) in (torch.optim.Adam, torch.optim.AdamW)
            and len(torch_optimizer.param_groups) == 1
            and torch_optimizer.defaults["fused"] is True
            and not torch_optimizer.defaults["differentiable"]
        )

    def step(self) -> None:
        """One step by ``flat``'s gradients; none where ``found_inf`` is 1."""
        group = self.param_groups[0]
        self._steps.add_(1)
        beta1, beta2 = group["betas"]
        largest = self._buffers.get("max_exp_avg_sq")
        self._take(
            [self._data],
            [self.flat.whole.grad],
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
            self._steps.sub_(self.found_inf)

    def zero_grad(self) -> None:
        self.flat.clear()

    def state_dict(self) -> dict[str, Any]:
        """As torch's, where each parameter counts its own steps."""
        state = self.torch_optimizer.state_dict()
        own = {i: {**s, "step": s["step"].clone()} for i, s in state["state"].items()}
        return {**state, "state": own}

    def takes(self, state: dict[str, Any]) -> bool:
        """Whether all parameters have taken as many steps in ``state``, as they do together."""
        found = [state["state"].get(i) for i in range(len(self.flat.parameters))]
        return len({None if f is None else float(f["step"]) for f in found}) == 1

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Of this or of torch's optimizer, where ``takes`` allows it."""
        own = self.torch_optimizer
        own.load_state_dict(state)
        self.param_groups = own.param_groups
        loaded = [own.state.get(p, {}) for p in self.flat.parameters]
        self._steps.fill_(float(loaded[0].get("step", 0.0)))
        for name, views in self._views.items():
            for view, found in zip(views, loaded, strict=True):
                view.copy_(found[name]) if found else view.zero_()
        self._give_views()

    def apart(self) -> torch.optim.Optimizer:
        """torch's optimizer, to go on with by itself, parameter by parameter."""
        for state in self.torch_optimizer.state.values():
            state["step"] = self._steps.clone()
        if self._steps.item() == 0:  # as a new one: state is made for parameters with gradients
            self.torch_optimizer.state.clear()
        return self.torch_optimizer

    def _give_views(self) -> None:
        for i, p in enumerate(self.flat.parameters):
            views = {name: views[i] for name, views in self._views.items()}
            self.torch_optimizer.state[p] = {"step": self._steps, **views}
