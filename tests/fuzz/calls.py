"""A random call of each public function, and what float64 says about it."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import vae_fast
from tests.fuzz import likelihoods, pairwise
from tests.fuzz.draw import FLOATS, REDUCTIONS, Draw
from vae_fast import reference

Truth = Callable[..., tuple[Tensor, ...]]


@dataclass
class Call:
    """``function(**arguments)``, and ``truth(**arguments)``, which gives its outputs in float64.

    ``leaves``: the arguments whose gradients are compared. ``mixes``: whether an element of a
    gradient is a sum over others, as in a product. ``coarse``: an error allowed beside rounding, in
    units of the largest element, since float32 noise has fewer digits. ``same``: the outputs that
    have the inputs' dtype. The others are sums, in float32 or better.
    """

    function: Callable[..., Any]
    arguments: dict[str, Any]
    truth: Truth
    leaves: tuple[str, ...] = ()
    coarse: float = 0.0
    mixes: bool = False
    same: tuple[int, ...] = ()


# --- the truth, written a second time ------------------------------------------------------------


def reduced(terms: Tensor, reduction: str) -> Tensor:
    samples = terms.shape[0] if terms.dim() > 1 else 1
    rows = terms.reshape(samples, math.prod(terms.shape[1:])).sum(1) if terms.dim() > 1 else terms
    if reduction == "none":
        return rows if terms.dim() > 1 else terms.sum()
    return rows.sum() / (samples if reduction == "batchmean" else 1)


def as_unit(target: Tensor) -> Tensor:
    return target.double() / 255 if target.dtype == torch.uint8 else target.double()


def nll_terms(logits: Tensor, target: Tensor, from_logits: bool = True) -> Tensor:
    if from_logits:
        return F.binary_cross_entropy_with_logits(logits, as_unit(target), reduction="none")
    return F.binary_cross_entropy(logits, as_unit(target), reduction="none")


def kl_terms(mu: Tensor, logvar: Tensor, prior_mu=None, prior_logvar=None) -> Tensor:
    if prior_mu is None:
        return 0.5 * (torch.expm1(logvar) - logvar + mu**2)
    prior_mu, prior_logvar = prior_mu.expand_as(mu), prior_logvar.expand_as(mu)
    ratio, precision = logvar - prior_logvar, torch.exp(-prior_logvar)
    return 0.5 * (torch.expm1(ratio) - ratio + (mu - prior_mu) ** 2 * precision)


def sample(mu: Tensor, logvar: Tensor, noise_key: Tensor, num_samples: int | None = None) -> Tensor:
    shape = mu.shape if num_samples is None else (num_samples, *mu.shape)
    return mu + torch.exp(logvar / 2) * reference.normal(noise_key, tuple(shape), torch.float64)


# --- one generator for each public function ------------------------------------------------------


def gaussian(draw: Draw, shape=None, dtype=None) -> dict[str, Tensor]:
    shape = draw.shape() if shape is None else shape
    dtype = dtype or draw.one_of(FLOATS)
    return {"mu": draw.floats(shape, dtype), "logvar": draw.floats(shape, dtype)}


def prior(draw: Draw, given: dict[str, Tensor]) -> dict[str, Tensor]:
    """Half the time none; else of the same shape, or one that broadcasts to it."""
    if draw.chance(0.5):
        return {}
    mu = given["mu"]
    shape = draw.one_of((mu.shape, mu.shape[-1:], (1,)))
    return {name: draw.floats(shape, mu.dtype, 0.7) for name in ("prior_mu", "prior_logvar")}


def noisy(dtype: torch.dtype) -> float:
    return 0.0 if dtype == torch.float64 else 2e-3


def reparameterize(draw: Draw) -> Call:
    given = gaussian(draw)
    options = {"num_samples": draw.one_of((None, 1, 2, 5)), "noise_key": draw.key()}
    return Call(
        vae_fast.reparameterize, given | options,
        lambda **a: (sample(**a),), ("mu", "logvar"), noisy(given["mu"].dtype),
        same=(0,),
    )  # fmt: skip


def reparameterize_module(draw: Draw) -> Call:
    call = reparameterize(draw)
    module = vae_fast.Reparameterize(call.arguments.pop("num_samples"))
    call.truth = lambda **a: (sample(**a, num_samples=module.num_samples),)
    call.function = module
    return call


def split_moments(draw: Draw) -> Call:
    shape, dim = list(draw.shape(2, 4)), draw.one_of((0, 1, -1))
    shape[dim] *= 2
    options = {"dim": dim, "bounds": draw.one_of((None, (-30.0, 20.0), (-0.5, 0.5)))}

    def truth(parameters, dim, bounds):
        half = parameters.shape[dim] // 2
        first, second = parameters.narrow(dim, 0, half), parameters.narrow(dim, half, half)
        return first, second if bounds is None else second.clamp(*bounds)

    given = {"parameters": draw.floats(shape, draw.one_of(FLOATS))}
    return Call(vae_fast.split_moments, given | options, truth, ("parameters",), same=(0, 1))


def gaussian_kl(draw: Draw) -> Call:
    given = gaussian(draw)
    given |= prior(draw, given)
    reduction = draw.one_of(REDUCTIONS)
    return Call(
        vae_fast.gaussian_kl, given | {"reduction": reduction},
        lambda reduction, **a: (reduced(kl_terms(**a), reduction),), tuple(given),
    )  # fmt: skip


def sample_and_kl(draw: Draw) -> Call:
    given = gaussian(draw)
    given |= prior(draw, given)
    options = {"reduction": draw.one_of(REDUCTIONS), "noise_key": draw.key()}

    def truth(mu, logvar, noise_key, reduction, **prior):
        return sample(mu, logvar, noise_key), reduced(kl_terms(mu, logvar, **prior), reduction)

    return Call(
        vae_fast.sample_and_kl,
        given | options,
        truth,
        tuple(given),
        noisy(given["mu"].dtype),
        same=(0,),
    )


def scores(draw: Draw, shape, dtype) -> tuple[Tensor, bool]:
    """Logits or, a quarter of the time, probabilities."""
    if draw.chance(0.25):
        return draw.unit(shape, dtype, edge=0.02), False
    return draw.floats(shape, dtype, 3.0), True


def bernoulli_nll(draw: Draw) -> Call:
    shape, dtype = draw.shape(), draw.one_of(FLOATS)
    logits, from_logits = scores(draw, shape, dtype)
    arguments = {
        "logits": logits, "target": draw.target(shape, dtype),
        "reduction": draw.one_of(REDUCTIONS), "from_logits": from_logits,
    }  # fmt: skip

    def truth(logits, target, reduction, from_logits):
        return (reduced(nll_terms(logits, target, from_logits), reduction),)

    return Call(vae_fast.bernoulli_nll, arguments, truth, ("logits",))


def bernoulli_nll_samples(draw: Draw) -> Call:
    shape, dtype = draw.shape(2, 3), draw.one_of(FLOATS)
    sets = draw.one_of((1, 2, 5))
    arguments = {
        "logits": draw.floats((sets, *shape), dtype, 3.0), "target": draw.target(shape, dtype)
    }  # fmt: skip

    def truth(logits, target):
        return (nll_terms(logits, as_unit(target).expand_as(logits)).flatten(2).sum(2),)

    return Call(vae_fast.bernoulli_nll_samples, arguments, truth, ("logits",))


def _elbo(draw: Draw) -> tuple[dict[str, Tensor], bool]:
    shape, dtype = draw.shape(2, 4), draw.one_of(FLOATS)
    logits, from_logits = scores(draw, shape, dtype)
    given = {"logits": logits, "target": draw.target(shape, dtype)}
    return given | gaussian(draw, (shape[0], draw.one_of((1, 2, 20))), dtype), from_logits


def _elbo_truth(logits, target, mu, logvar, beta, reduction, from_logits):
    recon = reduced(nll_terms(logits, target, from_logits), reduction)
    kl = reduced(kl_terms(mu, logvar), reduction)
    return recon + float(beta) * kl, recon, kl


def bce_kl_loss(draw: Draw) -> Call:
    given, from_logits = _elbo(draw)
    beta = draw.one_of((1.0, 0.0, 2.5, torch.tensor(0.25)))
    options = {"beta": beta, "reduction": draw.one_of(REDUCTIONS), "from_logits": from_logits}
    return Call(vae_fast.bce_kl_loss, given | options, _elbo_truth, ("logits", "mu", "logvar"))


def bce_kl_module(draw: Draw) -> Call:
    call = bce_kl_loss(draw)
    options = {name: call.arguments.pop(name) for name in ("beta", "reduction", "from_logits")}
    call.function = vae_fast.BCEKLLoss(**options)
    call.truth = lambda **a: _elbo_truth(**a, **options)
    return call


def loss_function(draw: Draw) -> Call:
    shape, dtype = draw.shape(2, 2), draw.one_of(FLOATS)
    given = {"x": draw.target(shape, dtype), "x_hat": draw.unit(shape, dtype, edge=0.02)}
    given |= gaussian(draw, (shape[0], 5), dtype)

    def truth(x, x_hat, mu, logvar):
        return (nll_terms(x_hat, x, False).sum() + kl_terms(mu, logvar).sum(),)

    return Call(vae_fast.loss_function, given, truth, ("x_hat", "mu", "logvar"))


def linear_bernoulli_nll(draw: Draw) -> Call:
    dtype = draw.one_of(FLOATS)
    samples, width, features = (draw.random.randint(1, 60) for _ in range(3))
    arguments = {
        "hidden": draw.floats((samples, width), dtype),
        "weight": draw.floats((features, width), dtype, width**-0.5),
        "bias": draw.floats((features,), dtype) if draw.chance(0.7) else None,
        "target": draw.target((samples, features), dtype),
        "reduction": draw.one_of(REDUCTIONS),
    }

    def truth(hidden, weight, bias, target, reduction):
        return (reduced(nll_terms(F.linear(hidden, weight, bias), target), reduction),)

    leaves = ("hidden", "weight") + (("bias",) if arguments["bias"] is not None else ())
    # In half precision the products are rounded to it.
    coarse = 4 * torch.finfo(dtype).eps if dtype in FLOATS[2:] else 0.0
    return Call(vae_fast.linear_bernoulli_nll, arguments, truth, leaves, coarse, mixes=True)


def iwae_bound(draw: Draw) -> Call:
    dtype, sets, latent = draw.one_of(FLOATS[:2]), draw.one_of((1, 2, 7)), draw.one_of((1, 3, 20))
    shape = draw.shape(2, 3)
    given = {
        "logits": draw.floats((sets, *shape), dtype), "target": draw.target(shape, dtype),
        "z": draw.floats((sets, shape[0], latent), dtype),
    }  # fmt: skip
    given |= gaussian(draw, (shape[0], latent), dtype)

    def truth(logits, target, z, mu, logvar):
        nll = nll_terms(logits, as_unit(target).expand_as(logits)).flatten(2).sum(2)
        posterior = torch.distributions.Normal(mu, torch.exp(logvar / 2), validate_args=False)
        log_p = (-0.5 * z**2 - 0.5 * math.log(2 * math.pi)).sum(-1)
        log_weight = log_p - posterior.log_prob(z).sum(-1) - nll
        return torch.logsumexp(log_weight, 0) - math.log(len(z)), log_weight

    # The weights are exponentials of sums over a sample: an error of the sum is relative in them.
    coarse = 8 * torch.finfo(dtype).eps * math.prod(shape[1:])
    leaves = ("logits", "z", "mu", "logvar")
    return Call(vae_fast.iwae_bound, given, truth, leaves, coarse, mixes=True)


def group_norm_silu(draw: Draw) -> Call:
    dtype, shape = draw.one_of(FLOATS), list(draw.shape(2, 5))
    groups = draw.one_of((1, 2, 3, 8))
    # At least two elements a group: one's gradient is 0, and what rounding makes of that.
    shape[1] = min(max(shape[1], 2), 60) * groups
    given: dict[str, Any] = {"x": draw.floats(shape, dtype), "num_groups": groups}
    if draw.chance(0.8):
        given |= {name: draw.floats((shape[1],), dtype) for name in ("weight", "bias")}
    given["eps"] = draw.one_of((1e-5, 1e-3))

    def truth(x, num_groups, weight=None, bias=None, eps=1e-5):
        if x.numel() == 0:
            return (x,)
        grouped = x.reshape(len(x), num_groups, -1)
        mean, variance = grouped.mean(-1, True), grouped.var(-1, correction=0, keepdim=True)
        xhat = ((grouped - mean) / torch.sqrt(variance + eps)).view_as(x)
        if weight is not None:
            by_channel = (-1, *[1] * (x.dim() - 2))
            xhat = xhat * weight.view(by_channel) + bias.view(by_channel)
        return (F.silu(xhat),)

    leaves = ("x", "weight", "bias") if "weight" in given else ("x",)
    # A group's statistics reach each element; the deviation may be as small as sqrt(eps).
    coarse = 1e3 * torch.finfo(torch.promote_types(dtype, torch.float32)).eps
    return Call(vae_fast.group_norm_silu, given, truth, leaves, coarse, mixes=True, same=(0,))


def group_norm_module(draw: Draw) -> Call:
    call = group_norm_silu(draw)
    x, groups, eps = (call.arguments.pop(name) for name in ("x", "num_groups", "eps"))
    layer = vae_fast.GroupNormSiLU(groups, x.shape[1], eps, affine="weight" in call.arguments)
    layer = layer.to(x.dtype)
    of_op = call.truth
    call.truth = lambda input: of_op(input, groups, eps=eps)  # weights of 1, biases of 0
    call.function, call.arguments, call.leaves = layer, {"input": x}, ("input",)
    return call


def gather_batch(draw: Draw) -> Call:
    samples, shape = draw.random.randint(1, 20), draw.shape(1, 3)
    data = torch.randint(0, 256, (samples, *shape), generator=draw.generator, dtype=torch.uint8)
    mode = draw.one_of(("bytes", "scale", "binarize"))
    arguments = {
        "data": draw.laid_out(data), "index": draw.integers((draw.random.randint(0, 9),), samples),
        "mode": mode, "noise_key": draw.key(), "first_row": draw.one_of((0, 3, torch.tensor(5))),
    }  # fmt: skip

    def truth(data, index, mode, noise_key, first_row):
        rows = data[index].double()
        if mode == "binarize":
            first, columns = int(first_row), math.prod(data.shape[1:])
            words = reference.random_words(noise_key, (first + len(index)) * columns)
            words = words[first * columns :].view(rows.shape).double()
            return ((words * 255 < rows * 2.0**32).double(),)
        return (rows / 255 if mode == "scale" else rows,)

    return Call(vae_fast.gather_batch, arguments, truth)


def _of_sums(
    make: Callable[[Draw], tuple[Any, ...]], epsilons: float = 1e3
) -> Callable[[Draw], Call]:
    """A generator for sums over pairs, logarithms of sums, and parameters that rows share.

    In these, an error of the sum reaches each element, so more error is allowed.
    """

    def generator(draw: Draw) -> Call:
        function, arguments, truth, leaves = make(draw)
        dtype = next(v.dtype for v in arguments.values() if isinstance(v, Tensor))
        coarse = epsilons * torch.finfo(torch.promote_types(dtype, torch.float32)).eps
        return Call(function, arguments, truth, leaves, coarse, mixes=True)

    return generator


def _network(draw: Draw, make: Callable[[int, int, int], torch.nn.Module], first: str, truth):
    torch.manual_seed(draw.random.getrandbits(30))
    sizes = [draw.random.randint(1, 40) for _ in range(3)]
    module = make(*sizes)
    x = draw.unit((draw.random.randint(1, 20), sizes[0]), torch.float32)
    return Call(
        module,
        {first: x},
        lambda **a: truth(module, *a.values()),
        (first,),
        mixes=True,
        same=(0, 1, 2),
    )


def _double(layer: torch.nn.Linear, x: Tensor) -> Tensor:
    return F.linear(x, layer.weight.double(), layer.bias.double())


def _encoded(module, x):
    h = torch.relu(_double(module.fc1, x))
    return _double(module.fc_mu, h), _double(module.fc_logvar, h)


def _decoded(module, z):
    return (torch.sigmoid(_double(module.fc2, torch.relu(_double(module.fc1, z)))),)


def encoder(draw: Draw) -> Call:
    return _network(draw, vae_fast.Encoder, "x", _encoded)


def decoder(draw: Draw) -> Call:
    return _network(draw, vae_fast.Decoder, "z", _decoded)


def vae(draw: Draw) -> Call:
    """Compares the posterior, and the decoder at its mean, for torch.randn draws the module's z."""
    call = _network(draw, vae_fast.VAE, "x", None)
    module = call.function
    call.function = lambda x: (*module(x)[1:], module.decoder(module.encoder(x)[0]))

    def truth(x):
        mu, logvar = _encoded(module.encoder, x)
        return mu, logvar, *_decoded(module.decoder, mu)

    call.truth = truth
    return call


def loss_output(draw: Draw) -> Call:
    given = {name: draw.floats((3,), torch.float64) for name in ("loss", "recon", "kl")}
    return Call(
        vae_fast.LossOutput, given, lambda **a: tuple(a.values()), tuple(given), same=(0, 1, 2)
    )


def _no_tensor(function: Callable[..., Any], **arguments: Any) -> Callable[[Draw], Call]:
    """A function that returns nothing to compare: it must run, and not change other results."""

    def silent(**given: Any) -> tuple[Tensor, ...]:
        function(**given)
        return ()

    return lambda draw: Call(silent, arguments, lambda **a: ())


def new_key(draw: Draw) -> Call:
    def again():
        generators = [torch.Generator().manual_seed(seed) for _ in range(2)]
        one, other = (vae_fast.noise.new_key(generator=g) for g in generators)
        return (one == other).double()

    seed = draw.random.getrandbits(60)
    return Call(again, {}, lambda: (torch.ones(2, dtype=torch.float64),))


def data_loader(draw: Draw) -> Call:
    """An epoch, compared with torch's loader."""
    rows = draw.floats((draw.random.randint(1, 40), draw.random.randint(1, 9)), draw.one_of(FLOATS))
    seed, shuffle = draw.random.getrandbits(60), draw.chance(0.5)
    size = draw.random.randint(1, len(rows))
    data = torch.utils.data.TensorDataset(rows)

    def epoch(cls: type, drop_last: bool = draw.chance(0.5)) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(seed)
        loader = cls(data, size, shuffle, drop_last=drop_last, generator=generator)
        return tuple(batch.double() for (batch,) in loader)

    return Call(lambda: epoch(vae_fast.DataLoader), {}, lambda: epoch(torch.utils.data.DataLoader))


GENERATORS: dict[str, Callable[[Draw], Call]] = {
    "VAE": vae,
    "BCEKLLoss": bce_kl_module,
    "DataLoader": data_loader,
    "Decoder": decoder,
    "Encoder": encoder,
    "GroupNormSiLU": group_norm_module,
    "LossOutput": loss_output,
    "Reparameterize": reparameterize_module,
    "bce_kl_loss": bce_kl_loss,
    "bernoulli_nll": bernoulli_nll,
    "bernoulli_nll_samples": bernoulli_nll_samples,
    "empty_cache": _no_tensor(vae_fast.empty_cache),
    "gather_batch": gather_batch,
    "gaussian_kl": gaussian_kl,
    "group_norm_silu": group_norm_silu,
    "get_backend": _no_tensor(vae_fast.get_backend),
    "info": _no_tensor(vae_fast.info),
    "iwae_bound": iwae_bound,
    "linear_bernoulli_nll": linear_bernoulli_nll,
    "loss_function": loss_function,
    "noise.new_key": new_key,
    "reparameterize": reparameterize,
    "sample_and_kl": sample_and_kl,
    "split_moments": split_moments,
    # The weights of their gradients are exponentials of log-densities, of thousands of nats here.
    **{name: _of_sums(make, 1e4) for name, make in pairwise.GENERATORS.items()},
    **{name: _of_sums(make) for name, make in likelihoods.GENERATORS.items()},
    "set_backend": _no_tensor(lambda name: vae_fast.set_backend(name).__exit__(), name="auto"),
}


OF_OTHERS = {"Patch", "patch"}  # change other libraries, which tests of their own install


def public() -> set[str]:
    """The names of ``vae_fast.__all__`` that can be called; of its modules, their functions."""
    names = set()
    for name in set(vae_fast.__all__) - OF_OTHERS:
        value = getattr(vae_fast, name)
        if inspect.ismodule(value):
            names |= {
                f"{name}.{inner}" for inner, function in vars(value).items()
                if inspect.isfunction(function) and not inner.startswith(("_", "check_"))
                and function.__module__ == value.__name__
            }  # fmt: skip
        elif callable(value):
            names.add(name)
    return names


def without_generator() -> list[str]:
    return sorted(public() ^ set(GENERATORS))
