"""A step of few launches on a GPU, written out: for the models that the native step takes on a CPU.

Autograd's step of the tutorial's VAE is 43 launches. This one is 20. Bias and ReLU are in a product's
epilogue. Gradients are written directly to the optimizer's buffer, and mu and logvar stay in one tensor.
One launch has value and gradient of the likelihood, one has all biases' gradients, the norm, the guard's
decision and the metrics, and one has Adam and the moving average. The step draws the eager step's noise,
and rounds differently.

In bf16 and fp16, products take and give that dtype, as under autocast. One launch casts all weights, and
one brings back all their gradients. The sample, the sums and the optimizer are in float32; each operand
that passes between the two takes one more launch. In fp16 the gradients of products are multiplied by the
loss's scale, and these launches divide by it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from vae_fast.backend import get_backend, native_reason
from vae_fast.data.rows import Rows
from vae_fast.models.ae import AE
from vae_fast.models.likelihoods.standardized import standardized
from vae_fast.noise import new_key
from vae_fast.train import rng
from vae_fast.train.distributed import Share
from vae_fast.train.guard import MOMENTUM, SETTLING
from vae_fast.train.native import AS_GIVEN, Parts, Refusal, take_apart
from vae_fast.train.native_runner import replaced_in

if TYPE_CHECKING:
    from vae_fast.train.step import Step

_aten = torch.ops.aten
RELU, SILU = 1, 2  # csrc/step/plan.h, Activation
# The largest relative difference between loss and gradients and the eager step's. A ReLU whose input is 0
# up to rounding may be on in one step and off in the other.
OF_LOSS, OF_GRADIENT = 1e-4, 1e-2
OF_LOSS_IN_HALF, OF_GRADIENT_IN_HALF = 1e-3, 5e-2
# Scales of the fp16 loss for the comparison: at a run's first scales gradients overflow.
COMPARED_SCALES = (2.0**12, 2.0**6, 1.0)
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class _LayerValues(NamedTuple):
    """What backward needs of a layer: its input, and the activation's input and output."""

    x: Tensor
    before: Tensor | None
    after: Tensor


class MergedStep:
    """``take`` is ``Step.take`` in few launches. Made by ``merged``."""

    def __init__(self, step: Step, parts: Parts) -> None:
        self._step, self._parts = step, parts
        self._update = step.updates[0]
        self._optimizer = self._update.optimizer
        self._model: Any = step.model
        self._sampled = type(step.model) is not AE
        flat = self._optimizer.flat
        self._gradients = dict(
            zip(map(id, flat.parameters), flat.views(flat.whole.grad), strict=True)
        )
        self._dtype = DTYPES.get(step.config.precision)  # of products; None is float32
        if self._dtype is not None:  # all weights, and the products' gradients
            self._half, self._half_grad = (flat.zeros().to(self._dtype) for _ in range(2))
        # For each parameter: the tensor that products read, and the one that gets the gradient.
        self._operands, self._targets = (
            dict(zip(map(id, flat.parameters), views, strict=True))
            for views in (
                (flat.parameters, self._gradients.values())
                if self._dtype is None
                else (flat.views(self._half), flat.views(self._half_grad))
            )
        )
        linears = [layer.linear for layer in parts.layers]
        self._biases = [m.bias for m in linears if m.bias is not None]
        plain = [*(m.weight for m in linears), *parts.learned]
        self._every: dict[int, Tensor] = {}  # the rows of a batch in their order, by their number
        self._ranges = [n for p in plain for n in (parts.places[id(p)], p.numel())]

    @torch.no_grad()
    def take(self, share: Share) -> tuple[Tensor, Tensor]:
        """A whole step, on tensors of the device alone; the norm, and 1 where it was skipped. An
        epoch's small last batch, whose gradient has a factor, takes the step that is not merged."""
        step, optimizer = self._step, self._optimizer
        if share.part != 1.0:
            with torch.enable_grad():
                norm, skipped = step.take(share.gathered())
            return norm, skipped
        outcome = self._differentiate(share, optimizer._steps, self._guard._usual, step.meter._sums)
        group = optimizer.param_groups[0]
        average = None if step.average is None else step.average._averages[-1]
        now = step.schedule_values
        torch.ops.vae_fast.step_update(
            optimizer._data,
            optimizer.flat.whole.grad,
            optimizer._buffers["exp_avg"],
            optimizer._buffers["exp_avg_sq"],
            average,
            outcome,
            now.lr,
            now.average_weight,
            *group["betas"],
            group["eps"],
            group["weight_decay"],
            isinstance(optimizer.torch_optimizer, torch.optim.AdamW),
            group["maximize"],
        )
        if self._update.scale is not None:
            self._update.scale.update((outcome[0] * 0.0).ne(0))  # infinity and NaN become NaN
        return outcome[0], outcome[1]

    def differs(self, share: Share) -> str:
        """What differs between this batch's loss and gradients and the eager step's; "" if nothing.

        All state is as before afterwards. This waits for the device.
        """
        step, device = self._step, self._step.device
        whole = self._optimizer.flat.whole
        before = rng.state(device)
        buffers = [(b, b.clone()) for b in self._model.buffers()]

        def go_back() -> None:
            rng.restore(before, device)
            for buffer, value in buffers:
                buffer.copy_(value)

        scale = None if self._update.scale is None else self._update.scale.value
        of_run = None if scale is None else scale.clone()
        for compared in (1.0,) if scale is None else COMPARED_SCALES:
            if scale is not None:
                scale.fill_(compared)
            wanted = step.differentiate(share.gathered(), step.phases[0], self._update).loss.item()
            gradient = whole.grad / compared
            self._optimizer.zero_grad()
            go_back()
            if gradient.isfinite().all():
                break
        whole.grad.zero_()  # else the eager step's gradients would hide missing ones
        sums = torch.zeros_like(step.meter._sums)
        with torch.no_grad():
            outcome = self._differentiate(
                share, self._optimizer._steps.clone(), self._guard._usual.clone(), sums
            )
        go_back()
        if scale is not None and of_run is not None:
            scale.copy_(of_run)
        of_loss, of_gradient = (
            (OF_LOSS, OF_GRADIENT)
            if self._dtype is None
            else (OF_LOSS_IN_HALF, OF_GRADIENT_IN_HALF)
        )
        found = sums[0].item() / len(share.images)
        if not abs(found - wanted) <= of_loss * abs(wanted):
            return f"loss ({found:.6g}, and {wanted:.6g})"
        distance, length = (whole.grad - gradient).norm().item(), gradient.norm().item()
        if not distance <= of_gradient * length:
            return f"gradient (by {distance:.2g} of {length:.2g})"
        if not abs(outcome[0].item() - length) <= of_gradient * length:
            return f"gradient's norm ({outcome[0].item():.6g}, and {length:.6g})"
        return ""

    @property
    def _guard(self) -> Any:
        return self._update.guard

    def _differentiate(self, share: Share, steps: Tensor, usual: Tensor, sums: Tensor) -> Tensor:
        """Everything before the optimizer: fills its gradients; returns ``step_decide``'s outcome."""
        model, layers, ops = self._model, self._parts.layers, torch.ops.vae_fast
        split, beta = self._parts.encoder_layers, self._step.schedule_values.beta
        x, target = self._input(share.images)
        weight = float(share.weight)
        condition = (
            model.condition_features(share.labels) if any(a.condition for a in layers) else None
        )
        if self._dtype is not None:
            self._half.copy_(self._optimizer._data)
            x = x.to(self._dtype)
            condition = None if condition is None else condition.to(self._dtype)
        key = new_key(x.device) if self._sampled else None

        encoded = list(self._forward(layers[:split], x, condition))
        z = encoded[-1].after
        if self._sampled:
            heads = z if self._dtype is None else z.float()
            z = ops.step_sample(heads, key)
            z = z if self._dtype is None else z.to(self._dtype)
        decoded = list(self._forward(layers[split:], z, condition))
        recon, grad, learned = self._likelihood(decoded[-1].after, target, weight)

        columns: list[Tensor] = []
        grad = self._backward(layers[split:], decoded, grad, columns, to_input=True)
        if self._sampled:
            grad = self._wide(grad)
            grad = ops.step_sample_backward(grad, heads, key, beta, weight / len(x))
        self._backward(layers[:split], encoded, grad, columns, to_input=False)
        if not self._sampled and model.training:
            model._follow(z)
        if self._dtype is not None:
            self._wide(self._half_grad, out=self._optimizer.flat.whole.grad)
        for place, own in learned:
            place.copy_(own)

        config = self._guard.config
        numbers = [config.clip_norm, config.skip_above, config.patience, SETTLING, 1.0 - MOMENTUM]
        return ops.step_decide(
            self._optimizer.flat.whole.grad,
            self._ranges,
            columns,
            [self._parts.places[id(bias)] for bias in reversed(self._biases)],
            recon,
            heads if self._sampled else None,
            beta,
            steps,
            usual,
            sums,
            len(x),
            [float(n) for n in numbers],
            *self._optimizer.param_groups[0]["betas"],
        )

    def _wide(self, grad: Tensor, out: Tensor | None = None) -> Tensor:
        """A product's gradient in float32, without the loss's scale."""
        if self._dtype is None:
            return grad
        if self._update.scale is not None:  # with a dimension, so that it is divided in float32
            return torch.div(grad, self._update.scale.value.view(1), out=out)
        return grad.float() if out is None else out.copy_(grad)

    def _narrow(self, grad: Tensor) -> Tensor:
        """The inverse of ``_wide``."""
        if self._dtype is None or grad.dtype == self._dtype:
            return grad
        if self._update.scale is None:
            return grad.to(self._dtype)
        out = torch.empty_like(grad, dtype=self._dtype)
        return torch.mul(grad, self._update.scale.value, out=out)

    def _input(self, images: Tensor | Rows) -> tuple[Tensor, Tensor]:
        """The encoder's input, (N, features), and the likelihood's target."""
        if isinstance(images, Tensor) and images.dtype in (torch.uint8, torch.bool):
            count = len(images)
            if count not in self._every:
                self._every[count] = torch.arange(count, device=images.device)
            images = Rows(images.contiguous(), self._every[count])
        if standardized(self._model.likelihood) is not None:
            images = images.gathered() if isinstance(images, Rows) else images
            return self._model.network_input(images).flatten(1), images
        target = self._model.likelihood.spec.target
        if isinstance(images, Rows) and target in ("unit", "real"):  # of x / 255
            x = images.gathered("scale")
            return x.flatten(1), x
        if isinstance(images, Rows):
            batch = images.gathered()
            x = self._model.network_input(batch) if target == "count" else images.gathered("scale")
            return x.flatten(1), batch
        return self._model.network_input(images).flatten(1), images

    def _likelihood(
        self, params: Tensor, target: Tensor, weight: float
    ) -> tuple[Tensor, Tensor, list[tuple[Tensor, Tensor]]]:
        """-log p, the mean over the batch, and the gradients of ``weight`` times that: for ``params``,
        and for each of the likelihood's own parameters, with its buffer."""
        from vae_fast.ops.likelihood import BATCHMEAN, in_accepted_dtype, ops_of

        p_x, learned = self._model.likelihood, self._parts.learned
        # The kernels of data in [0, 1] read bfloat16. fp16's gradient has to be scaled before it is
        # rounded.
        if self._dtype is not None and not (
            self._dtype == torch.bfloat16 and self._parts.likelihood.spec.target == "unit"
        ):
            params = params.float()
        if type(p_x) in AS_GIVEN and len(p_x.spec.params) == 1:
            target = in_accepted_dtype(target, params.dtype)
            op = ops_of(p_x.spec.name).nll_with_grad
            value, (grad,) = op([params.view(target.shape)], target, BATCHMEAN, weight, 1)
            return value, grad.flatten(1), []
        channels, *rest = self._model.input_shape
        with torch.enable_grad():
            leaf = params.requires_grad_()
            stacked = leaf.view(len(leaf), channels * p_x.parameters_per_element, *rest)
            value = p_x.nll(stacked, target, reduction="batchmean")
            grad, *own = torch.autograd.grad(value * weight, [leaf, *learned])
        places = [self._gradients[id(parameter)] for parameter in learned]
        return value.detach(), grad, list(zip(places, own, strict=True))

    def _backward(
        self,
        layers: list[Any],
        ran: list[_LayerValues],
        grad: Tensor,
        columns: list[Tensor],
        *,
        to_input: bool,
    ) -> Tensor:
        """Computes the weights' gradients, and appends to ``columns`` the terms of each bias's
        gradient, last layer first. Returns the gradient of the first layer's input, if wanted."""
        wide = grad if grad.dtype == torch.float32 else None
        grad = self._narrow(grad)
        for i in reversed(range(len(layers))):
            layer, (x, before, after) = layers[i], ran[i]
            if layer.after == RELU:
                grad = _aten.threshold_backward(grad, after, 0)
            elif layer.after == SILU:
                grad = _aten.silu_backward(grad, before)
            weight = layer.linear.weight
            torch.mm(grad.t(), x, out=self._targets[id(weight)])
            if layer.linear.bias is not None:
                columns.append(self._wide(grad) if wide is None else wide)
            wide = None
            if i > 0 or to_input:
                operand = self._operands[id(weight)]
                grad = torch.mm(grad, operand[:, : x.shape[1] - layer.condition])
        return grad

    def _forward(
        self, layers: list[Any], x: Tensor, condition: Tensor | None
    ) -> Iterator[_LayerValues]:
        for layer in layers:
            if layer.condition and condition is not None:
                x = torch.cat([x, condition], dim=1)
            weight = self._operands[id(layer.linear.weight)].t()
            bias, before = layer.linear.bias, None
            bias = None if bias is None else self._operands[id(bias)]
            if bias is not None and layer.after == RELU:
                after = torch._addmm_activation(bias, x, weight)
            else:
                after = torch.mm(x, weight) if bias is None else torch.addmm(bias, x, weight)
                if layer.after == SILU:
                    before, after = after, _aten.silu(after)
                elif layer.after == RELU:
                    after = _aten.relu(after)
            yield _LayerValues(x, before, after)
            x = after


def merged(step: Step) -> MergedStep | str:
    """``step`` in few launches, or a sentence that says why its launches are not merged."""
    config, update = step.config, step.updates[0]
    if (reason := native_reason(step.device.type)) is not None:
        return reason
    if get_backend() == "reference":
        return "the backend is 'reference'"
    if config.compile:
        return "the networks are to run under torch.compile"
    if config.objective.free_bits > 0:
        return "free bits are not supported"
    if changed := replaced_in(step.model):
        return f"{changed} is not its class's"
    if update.flat is not None and update.flat.whole.dtype != torch.float32:
        return f"the weights are {update.flat.whole.dtype}"
    if step.average is not None and len(step.average._averages) != 1:
        return "the moving average is of more than one buffer"
    try:
        return MergedStep(step, take_apart(step.model, update.optimizer))
    except Refusal as why_not:
        return str(why_not)
