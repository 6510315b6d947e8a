"""The native step: forward, backward, guard, optimizer and moving average in one call.

It serves MLPs around a Gaussian latent with an elementwise likelihood, on a CPU, in float32 or bf16
(operands of products rounded to bfloat16, as autocast does). It computes the eager step, with the
eager step's noise, and rounds differently in the last places. Its bits do not depend on the number
of threads.

torch's tensors always hold the weights, moments and moving average, so they may be read, saved and
compared between any two steps. The step keeps packed copies of the weights. It packs them again
after other code has written to the weights, which torch's version counters show.
"""

from __future__ import annotations

import ctypes
import itertools
import math
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from vae_fast.backend import get_backend, library, native_reason
from vae_fast.layers import MLP, has_hooks
from vae_fast.models import likelihoods
from vae_fast.models.ae import AE
from vae_fast.models.conditions import Attributes, Labels
from vae_fast.models.cvae import CVAE
from vae_fast.models.interface import Model, conditioning_of, part_of
from vae_fast.models.likelihoods.standardized import standardized
from vae_fast.models.vae import BetaVAE
from vae_fast.noise import new_key
from vae_fast.train.average import WeightAverage
from vae_fast.train.flat import FlatAdam
from vae_fast.train.guard import LARGEST

MOST_LAYERS = 16
_ACTIVATIONS = {nn.ReLU: 1, nn.SiLU: 2}  # csrc/step/plan.h, Activation
# csrc/ops/args.h, DType
_DTYPES = {torch.float32: 0, torch.uint8: 4, torch.bool: 5}
_COUNTS = _DTYPES | {
    torch.float64: 1,
    torch.bfloat16: 2,
    torch.float16: 3,
    torch.int8: 6,
    torch.int16: 7,
    torch.int32: 8,
    torch.int64: 9,
}


class StepTerms(NamedTuple):
    """The results of a step: terms in nats per sample; the gradient's norm, NaN if the loss is not
    finite."""

    loss: float
    recon: float
    kl: float
    norm: float
    skipped: bool


@dataclass
class _Layer:
    linear: nn.Linear
    after: int = 0
    condition: int = 0


@dataclass
class _Param:
    """A parameter of the likelihood: its source and its transformation (csrc/step/plan.h,
    Param)."""

    source: int = 0  # the network, a constant, or one learned parameter for all samples
    transform: int = 0  # v, exp(v) or least + softplus(v - least), times factor
    factor: float = 1.0
    least: float = 0.0
    plane: int = 0
    value: float = 0.0
    place: int = 0
    count: int = 0


class Parts(NamedTuple):
    """The parts of a model that steps are written for.

    Attributes:
        encoder_layers: how many of the layers belong to the encoder.
        likelihood: the model's, or the one behind its standardization.
        params: the source and the transformation of each parameter of the likelihood.
        learned: the model parameters among those.
        places: where each model parameter begins in the flat buffers, by id.
    """

    layers: list[_Layer]
    encoder_layers: int
    likelihood: Any
    params: list[_Param]
    learned: list[nn.Parameter]
    places: dict[int, int]


class Refusal(Exception):
    """The reason why a model has no native step."""


def build(
    model: Model,
    optimizer: Any,
    *,
    average: WeightAverage | None = None,
    clip_norm: float = 0.0,
    bf16: bool = False,
) -> NativeStep | str:
    """The native step of ``model``, or a sentence that says why it has none.

    Args:
        optimizer: a ``FlatAdam`` over all of the model's parameters.
        average: updated after each step, also after skipped ones, as in the eager step.
        clip_norm: gradients with a larger norm are scaled down to it; 0 for no clipping.
        bf16: operands of products are rounded to bfloat16.
    """
    try:
        return NativeStep(model, optimizer, average, clip_norm, bf16)
    except Refusal as why_not:
        return str(why_not)


class NativeStep:
    """Made by ``build``; calling ``step`` trains the model by one batch."""

    def __init__(
        self,
        model: Model,
        optimizer: Any,
        average: WeightAverage | None,
        clip_norm: float,
        bf16: bool = False,
    ) -> None:
        if (reason := native_reason("cpu")) is not None:
            raise Refusal(reason)
        _need(get_backend() != "reference", "the backend is 'reference'")
        parts = take_apart(model, optimizer)
        flat, layers, places = optimizer.flat, parts.layers, parts.places
        _need(
            flat.whole.dtype == torch.float32 and flat.whole.is_cpu,
            f"the model's weights are {flat.whole.dtype} on {flat.whole.device}",
        )
        self.model, self.optimizer, self.average = model, optimizer, average
        self.clip_norm, self.bf16 = clip_norm, bf16
        self.condition = conditioning_of(model)
        self.columns = standardized(model.likelihood)
        spec = parts.likelihood.spec
        self._dtypes = _COUNTS if spec.target == "count" else _DTYPES
        self._native = library().Step(
            {
                "layers": [
                    {
                        "in": layer.linear.in_features,
                        "out": layer.linear.out_features,
                        "condition": layer.condition,
                        "weight": places[id(layer.linear.weight)],
                        "bias": -1 if layer.linear.bias is None else places[id(layer.linear.bias)],
                        "after": layer.after,
                    }
                    for layer in layers
                ],
                "encoder_layers": parts.encoder_layers,
                "latent": model.latent_dim,
                "sampled": type(model) is not AE,
                "columns": math.prod(model.input_shape),
                "condition": 0 if self.condition is None else self.condition.features,
                "likelihood": library().step_likelihoods().index(spec.name),
                "params": [asdict(p) for p in parts.params],
                "bf16": bf16,
            }
        )
        self._watched = [*flat.parameters, flat.whole, optimizer._data]
        self._versions: list[int] = []

    def step(
        self,
        images: Tensor,
        labels: Tensor | None = None,
        *,
        lr: float,
        beta: float = 1.0,
        index: Tensor | None = None,
        check_index: bool = True,
        binary_key: Tensor | None = None,
        first_row: int = 0,
        noise_key: Tensor | None = None,
        limit: float = LARGEST,
        average_weight: float = 0.0,
        weight: float = 1.0,
        part: float = 1.0,
        update: bool = True,
    ) -> StepTerms:
        """Take one step. The noise is what the eager step would draw here.

        Args:
            images: a batch (B, *input_shape), or with ``index`` all data: contiguous float32, uint8
                (x / 255) or bool; counts may have other dtypes.
            labels: the batch's labels (``index`` is not applied to them).
            index: (B,) int64, rows of ``images``.
            check_index: False if all are known to be within ``images``.
            binary_key: draw each pixel from Bernoulli(x / 255), as ``gather_batch`` does with this
                ``noise_key`` and ``first_row``.
            noise_key: the key of eps; None draws one from torch's generator.
            limit: a step whose gradient has a larger norm is skipped.
            average_weight: the weight of the new weights in the moving average.
            weight: the loss's factor before backward.
            part: as in ``Share.part``; the given ``lr`` is shortened already.
            update: False computes the gradients, times ``part``, into ``flat``'s buffer and changes
                nothing else.
        """
        samples = len(images) if index is None else len(index)
        self._check(images, index, binary_key, samples, check_index)
        if self.columns is not None:
            images, index = self._standardized(images, index), None
        condition = self._condition(labels, samples)
        sampled = type(self.model) is not AE
        if sampled and noise_key is None:
            noise_key = new_key("cpu")
        self._refresh()
        optimizer, flat = self.optimizer, self.optimizer.flat
        group = optimizer.param_groups[0]
        beta1, beta2 = (float(b) for b in group["betas"])
        number = float(optimizer._steps) + 1
        buffers = optimizer._buffers
        average = None if self.average is None else self.average._averages[-1]
        taken = self._native.take(
            {
                "samples": samples,
                "data": images.data_ptr(),
                "dtype": self._dtypes[images.dtype],
                "index": None if index is None else index.data_ptr(),
                "binary_key": None if binary_key is None else binary_key.data_ptr(),
                "first_row": first_row,
                "condition": None if condition is None else condition.data_ptr(),
                "key": tuple(noise_key.tolist()) if sampled and noise_key is not None else (0, 0),
                "beta": float(beta),
                "scale": weight * part / samples,
                "weights": optimizer._data.data_ptr(),
                "gradients": flat.whole.grad.data_ptr(),
                "first": buffers["exp_avg"].data_ptr(),
                "second": buffers["exp_avg_sq"].data_ptr(),
                "average": None if average is None else average.data_ptr(),
                "average_weight": float(average_weight),
                "lr": float(lr),
                "beta1": beta1,
                "beta2": beta2,
                "eps": float(group["eps"]),
                "weight_decay": float(group["weight_decay"]),
                "bias1": 1.0 - beta1**number,
                "bias2": 1.0 - beta2**number,
                "decoupled": isinstance(optimizer.torch_optimizer, torch.optim.AdamW),
                "maximize": bool(group["maximize"]),
                "clip": float(self.clip_norm) * part,
                "limit": float(limit) * part,
                "update": update,
            }
        )
        terms = StepTerms(*taken)
        if update and not terms.skipped:
            optimizer._steps.add_(1)
        if not sampled and self.model.training:
            cast(AE, self.model)._follow(self._z(samples))
        if self.columns is not None:  # the density of x, not of its standardized value
            terms = terms._replace(recon=terms.recon + float(self.columns.log_volume(images)))
        return terms._replace(loss=terms.recon + beta * terms.kl, norm=terms.norm / part)

    def _standardized(self, images: Tensor, index: Tensor | None) -> Tensor:
        rows = images if index is None else images.index_select(0, index)
        assert self.columns is not None  # asked for such models alone
        return self.columns.standardized(rows).float().contiguous()

    def takes(self, dtype: torch.dtype) -> bool:
        """Whether images may be of ``dtype``."""
        return dtype in self._dtypes

    def weights_changed(self) -> None:
        """Call this after writing to the weights in a way that torch's version counters do not
        show."""
        self._native.weights_changed()

    def _refresh(self) -> None:
        versions = [t._version for t in self._watched]
        if versions != self._versions:
            self._native.weights_changed()
            self._versions = versions

    def _check(
        self,
        images: Tensor,
        index: Tensor | None,
        binary_key: Tensor | None,
        samples: int,
        check_index: bool,
    ) -> None:
        if tuple(images.shape[1:]) != self.model.input_shape:
            raise ValueError(
                f"x has shape {tuple(images.shape)}, but the model was built for "
                f"(N, {', '.join(map(str, self.model.input_shape))})"
            )
        if images.dtype not in self._dtypes or not images.is_cpu or not images.is_contiguous():
            raise TypeError(
                "the native step takes contiguous float32, uint8 or bool images on the CPU, got "
                f"{images.dtype} on {images.device}, strides {images.stride()}"
            )
        if samples == 0:
            raise ValueError("the native step needs at least one sample, and the batch is empty")
        if binary_key is not None and images.dtype == torch.float32:
            raise TypeError(
                "binarising takes uint8 or bool images, and these are float32: give uint8 (0..255)"
            )
        if index is None:
            return
        if index.dtype != torch.int64 or index.dim() != 1 or not index.is_contiguous():
            raise TypeError(
                f"index must be a contiguous int64 vector, got {index.dtype} of shape "
                f"{tuple(index.shape)}"
            )
        if not check_index:
            return
        low, high = (int(i) for i in torch.aminmax(index))
        if low < 0 or high >= len(images):
            raise IndexError(
                f"index {low if low < 0 else high} is outside the data's {len(images)} samples"
            )

    def _condition(self, labels: Tensor | None, samples: int) -> Tensor | None:
        if self.condition is None:
            return None
        if labels is None:
            raise ValueError("this model is conditional: give it labels or attributes y after x")
        if len(labels) != samples:
            raise ValueError(
                f"there are {samples} samples, but {len(labels)} labels: they must be equal"
            )
        seen = cast(CVAE, self.model).condition_features(labels)
        return (seen.bfloat16().float() if self.bf16 else seen).contiguous()

    def _z(self, samples: int) -> Tensor:
        """The codes of the latest step, (samples, latent_dim)."""
        address, stride = self._native.z()
        latent = self.model.latent_dim
        rows = (ctypes.c_float * (samples * stride)).from_address(address)
        return torch.frombuffer(bytearray(rows), dtype=torch.float32).view(samples, stride)[
            :, :latent
        ]


def take_apart(model: Model, optimizer: Any) -> Parts:
    """The parts of ``model``; raises if its step needs more than these."""
    _need(isinstance(optimizer, FlatAdam), "the optimizer is not Adam or AdamW over one buffer")
    _need(not optimizer.defaults["amsgrad"], "the optimizer uses amsgrad")
    _need(not has_hooks(model), "the model's forward pass has hooks, which it cannot call")
    kind = type(model)
    _need(kind in (BetaVAE, AE, CVAE), f"{kind.__name__} is not a VAE, CVAE or AE of vae_fast")
    for part in ("learned_prior", "objective", "posterior"):
        _need(
            part_of(model, part) is None, f"it has no code for the model's {part.replace('_', ' ')}"
        )
    layers, encoder_layers = _layers_of(model)
    flat = optimizer.flat
    places = dict(zip(map(id, flat.parameters), flat._begins, strict=True))
    columns = standardized(model.likelihood)
    p_x: Any = model.likelihood if columns is None else columns.inner
    params, learned = _params_of(p_x, places)
    used = [p for layer in layers for p in (layer.linear.weight, layer.linear.bias)]
    used = [*(p for p in used if p is not None), *learned]
    _need(len(set(map(id, used))) == len(used), "two layers share a weight")
    _need(
        {id(p) for p in used} == set(places) and all(p.is_contiguous() for p in used),
        "some parameters are frozen, or belong neither to a linear layer nor to the likelihood",
    )
    _need(len(layers) <= MOST_LAYERS, f"the model has more than {MOST_LAYERS} linear layers")
    return Parts(layers, encoder_layers, p_x, params, learned, places)


def _need(condition: bool, why_not: str) -> None:
    if not condition:
        raise Refusal(why_not)


def _layers_of(model: Model) -> tuple[list[_Layer], int]:
    """The model's linear layers in order, and the number of the encoder's."""
    encoder = _chain(model.encoder, "the encoder")
    decoder = _chain(model.decoder, "the decoder")
    if type(model) is CVAE:
        _need(model.prior_network is None, "the prior is learned")
        condition = model.condition
        _need(
            type(condition) in (Labels, Attributes), "the model is conditioned on more than labels"
        )
        head = _chain(model.head, "the head")
        head[0].condition = decoder[0].condition = condition.features
        encoder += head
    sizes = [math.prod(model.input_shape)]
    for layer in encoder:
        _need(
            layer.linear.in_features == sizes[-1] + layer.condition, "the layers' sizes do not fit"
        )
        sizes.append(layer.linear.out_features)
    per_latent = 1 if type(model) is AE else 2
    _need(
        sizes[-1] == per_latent * model.latent_dim,
        "the encoder's output does not have the latent's size",
    )
    _need(encoder[-1].after == 0 and decoder[-1].after == 0, "an activation follows a last layer")
    size = model.latent_dim
    for layer in decoder:
        _need(layer.linear.in_features == size + layer.condition, "the layers' sizes do not fit")
        size = layer.linear.out_features
    parameters = model.likelihood.parameters_per_element * math.prod(model.input_shape)
    _need(size == parameters, "the decoder's output does not have the likelihood's size")
    return encoder + decoder, len(encoder)


def _chain(network: nn.Module, name: str) -> list[_Layer]:
    """Linear layers, each with the activation that follows it."""
    layers: list[_Layer] = []
    for module in _flattened(network):
        kind = type(module)
        if type(module) is nn.Linear:
            layers.append(_Layer(module))
        elif kind in _ACTIVATIONS and layers and layers[-1].after == 0:
            layers[-1].after = _ACTIVATIONS[kind]
        elif kind is not nn.Flatten and kind is not nn.Unflatten:
            raise Refusal(
                f"{name} has {kind.__name__}, and only linear layers with ReLU or SiLU are taken"
            )
    _need(bool(layers), f"{name} has no linear layer")
    return layers


def plain_layers(model: Model) -> tuple[list[nn.Module], list[nn.Module]] | None:
    """A VAE's encoder and decoder as torch's linear layers and activations over (N, features); None
    if they contain anything else."""
    try:
        _layers_of(model)
    except Refusal:
        return None
    parts = map(_flattened, (model.encoder, model.decoder))
    encoder, decoder = (
        [m for m in part if not isinstance(m, (nn.Flatten, nn.Unflatten))] for part in parts
    )
    return encoder, decoder


def _flattened(network: nn.Module) -> list[nn.Module]:
    if type(network) in (nn.Sequential, MLP):
        return list(itertools.chain.from_iterable(map(_flattened, cast(nn.Sequential, network))))
    return [network]


def _params_of(p_x: Any, places: dict[int, int]) -> tuple[list[_Param], list[nn.Parameter]]:
    """The source and transformation of each of the likelihood's parameters, as its ``given``
    computes them, and the parameters learned for all samples. ``places``: each parameter's offset
    in the flat buffers, by id."""
    kind = type(p_x)
    learned: list[nn.Parameter] = []

    def network(plane: int, **options: Any) -> _Param:
        return _Param(source=0, plane=plane, **options)

    def of_all_samples(parameter: nn.Parameter, **options: Any) -> _Param:
        _need(id(parameter) in places, "a parameter of the likelihood is frozen")
        learned.append(parameter)
        place, count = places[id(parameter)], parameter.numel()
        return _Param(source=2, place=place, count=count, **options)

    def floored(least: float) -> dict[str, Any]:
        return {"transform": 2, "least": least}

    def refused() -> Refusal:
        return Refusal(f"the likelihood {kind.__name__} has no native step")

    if kind is likelihoods.Gaussian:
        _need(not p_x._waits, "the likelihood's scale is set by the first batch")
        floor = {"factor": 0.5, **floored(p_x.min_logvar)}
        log_scale = {
            "fixed": lambda: _Param(source=1, value=0.5 * float(p_x.logvar)),
            "shared": lambda: of_all_samples(p_x.logvar, **floor),
            "learned": lambda: network(1, **floor),
        }[p_x.variance]()
        params = [network(0), log_scale]
    elif kind is likelihoods.Laplace:
        params = [network(0), _Param(source=1, value=math.log(p_x.scale))]
    elif kind is likelihoods.StudentT:
        floor = floored(p_x.min_log_scale)
        params = [network(0), network(1, **floor), _Param(source=1, value=p_x.df)]
    elif kind in (likelihoods.NegativeBinomial, likelihoods.ZeroInflatedNegativeBinomial):
        if p_x.dispersion == "per_element":
            params = [network(0), network(1, transform=1)]
        else:
            params = [network(0), of_all_samples(p_x.log_dispersion, transform=1)]
        if len(p_x.spec.params) > 2:
            params.append(network(p_x.parameters_per_element - 1))
    elif kind in AS_GIVEN and not p_x.spec.planes:
        params = [network(plane) for plane in range(len(p_x.spec.params))]
    else:
        raise refused()
    if p_x.spec.name not in library().step_likelihoods():
        raise refused()
    return params, learned


# Likelihoods whose parameters are the decoder's outputs, unchanged.
AS_GIVEN = (
    likelihoods.Bernoulli,
    likelihoods.ContinuousBernoulli,
    likelihoods.DiscretizedLogistic,
    likelihoods.Poisson,
    likelihoods.OfSpec,
)
