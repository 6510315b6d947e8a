"""A contender whose result is wrong is refused before it is timed, and named."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

import vae_fast
from benchmarks import bench_bce_kl, bench_bernoulli, bench_gaussian, bench_iwae, bench_linear
from benchmarks.case import OURS, Absence, Contender, Outputs, WrongResult
from benchmarks.check import check_noise, close
from benchmarks.measure import check, measure_case
from benchmarks.peers import Op, jax_contender, torch_contender
from benchmarks.timing import Budget

CPU = torch.device("cpu")
SHORT = Budget(rounds=3, reading=1e-5, row=0.1, least=2, warm_up=1e-5)


def nll_case(pass_="both", dtype="float32", target=""):
    return bench_bernoulli.setup_bernoulli_nll((16, 50), pass_, dtype, CPU, [], target)


def loss_case(pass_="both"):
    return bench_bce_kl.setup_bce_kl_loss((16, 4, 50), pass_, "float32", CPU, [])


def latent_case(op="sample_and_kl", pass_="both", samples=64):
    return bench_gaussian.SETUPS[op]((samples, 20), pass_, "float32", CPU, [])


def linear_case(pass_, dtype="float32"):
    return bench_linear.setup_linear_bernoulli_nll((64, 40, 50), pass_, dtype, CPU, [])


def accepts(case, contender):
    inputs = case.inputs(0)
    check(case, contender, inputs, contender.own(inputs))
    return True


def wrong_nll(fn, pass_="both"):
    return torch_contender("wrong", fn, Op(wrt=(0,)), pass_)


@pytest.mark.parametrize("pass_", ["value", "both"])
@pytest.mark.parametrize(
    "case",
    [
        nll_case,
        lambda p: nll_case(p, "bfloat16", "uint8"),
        loss_case,
        lambda p: latent_case("reparameterize", p),
        lambda p: latent_case("gaussian_kl", p),
        lambda p: latent_case("sample_and_kl", p),
        lambda p: linear_case(p),
        lambda p: linear_case(p, "bfloat16"),
        lambda p: bench_iwae.setup_iwae_bound((5, 8, 50), p, "float32", CPU, []),
    ],
    ids=[
        "bernoulli_nll",
        "bernoulli_nll-half",
        "bce_kl_loss",
        "sample",
        "kl",
        "sample_and_kl",
        "linear",
        "linear-half",
        "iwae",
    ],
)
def test_every_available_contender_is_right(case, pass_):
    case = case(pass_)
    names = {c.name for c in case.contenders() if isinstance(c, Contender) and accepts(case, c)}
    assert {"eager"} <= names


@pytest.mark.parametrize(
    "wrong",
    [
        lambda x, t: F.binary_cross_entropy_with_logits(x, t),  # a mean, not a sum
        lambda x, t: F.binary_cross_entropy_with_logits(x, t, reduction="sum") * 1.001,
        lambda x, t: F.binary_cross_entropy_with_logits(x, 1 - t, reduction="sum"),
        lambda x, t: F.binary_cross_entropy_with_logits(x, t, reduction="sum") * float("nan"),
    ],
    ids=["mean", "scale", "target", "nan"],
)
@pytest.mark.parametrize("pass_", ["value", "both"])
def test_a_wrong_loss_is_refused(wrong, pass_):
    with pytest.raises(WrongResult):
        accepts(nll_case(pass_), wrong_nll(wrong, pass_))


def test_a_right_value_with_a_wrong_gradient_is_refused():
    def half_a_gradient(x, t):
        right = F.binary_cross_entropy_with_logits(x, t, reduction="sum")
        return 0.5 * right + 0.5 * right.detach()

    assert accepts(nll_case("value"), wrong_nll(half_a_gradient, "value"))
    with pytest.raises(WrongResult, match="gradient 0"):
        accepts(nll_case("both"), wrong_nll(half_a_gradient))
    with pytest.raises(WrongResult, match="gradient 0"):
        accepts(nll_case("gradient"), wrong_nll(half_a_gradient, "gradient"))


def test_one_wrong_element_is_enough():
    def gap(grad):
        grad = grad.clone()
        grad[3, 7] = 0
        return grad

    def with_a_gap(x, t):
        x = x.clone()
        x.register_hook(gap)
        return F.binary_cross_entropy_with_logits(x, t, reduction="sum")

    with pytest.raises(WrongResult, match="gradient 0"):
        accepts(nll_case(), wrong_nll(with_a_gap))


def test_the_backward_pass_alone_is_checked_too():
    for case in (nll_case("gradient"), loss_case("gradient"), latent_case(pass_="gradient")):
        for contender in case.contenders():
            assert isinstance(contender, Absence) or accepts(case, contender)


def test_a_loss_without_its_kl_is_refused():
    case = loss_case("value")
    wrong = torch_contender(
        "wrong", lambda x, t, m, v: bench_bernoulli.eager(x, t), Op((0,)), "value"
    )
    with pytest.raises(WrongResult, match="the loss"):
        accepts(case, wrong)


@pytest.mark.parametrize(
    ("sample", "what"),
    [
        (lambda mu, std: mu, "mean square"),  # no noise
        (lambda mu, std: mu + std * torch.rand_like(mu), "mean"),  # uniform
        (lambda mu, std: mu + std**2 * torch.randn_like(mu), "mean square"),  # variance for sigma
        (lambda mu, std: mu + std * torch.randn(1), "."),  # one draw for all
    ],
    ids=["none", "uniform", "variance", "one"],
)
def test_wrong_noise_is_refused(sample, what):
    def wrong(mu, logvar):
        return sample(mu, torch.exp(0.5 * logvar)), bench_gaussian.eager_kl(mu, logvar)

    call = Op(wrt=(0, 1), upstream=(2, None), arguments=2)
    with pytest.raises(WrongResult, match=what):
        case = latent_case(pass_="value", samples=2000)  # enough draws to tell
        accepts(case, torch_contender("wrong", wrong, call, "value"))


def test_good_noise_is_accepted_at_any_size():
    for shape in ((8,), (1000, 20)):
        mu, logvar = torch.randn(shape), torch.randn(shape)
        check_noise(mu, logvar, vae_fast.reparameterize(mu, logvar))


def test_nan_is_not_close():
    with pytest.raises(WrongResult):
        close("x", float("nan"), 1.0, 0.1)


def test_a_refused_contender_has_no_time_and_the_others_do():
    case, ran = nll_case(), []
    right = case.contenders

    def run(state):
        ran.append(1)
        return torch.zeros(()), torch.zeros(16, 50)

    wrong = Contender("wrong", run, outputs=lambda out: Outputs((out[0],), (out[1],)))
    row = measure_case(replace(case, contenders=lambda: [*right(), wrong]), SHORT)
    assert "refused" in row["results"]["wrong"]
    assert "median" not in row["results"]["wrong"]
    assert len(ran) == 1  # called by the check alone, never timed
    assert row["results"]["eager"]["median"] > 0
    assert row["results"][OURS]["median"] > 0


def test_a_peer_that_fails_is_named_and_ours_that_fails_is_an_error():
    def fails(_):
        raise RuntimeError("no such kernel\nand more")

    case = nll_case()
    for name in ("peer", OURS):
        broken = Contender(name, fails, outputs=lambda out: Outputs((out,), ()))
        with_it = replace(case, contenders=lambda broken=broken: [broken])
        if name == OURS:
            with pytest.raises(RuntimeError, match="no such kernel"):
                measure_case(with_it, SHORT)
        else:
            row = measure_case(with_it, SHORT)
            assert row["results"]["peer"] == {"failed": "RuntimeError: no such kernel"}


def test_jax_is_named_absent_where_it_is_not_installed(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    absent = jax_contender(lambda x: x, Op((0,)), "value", CPU)
    assert absent.name == "jax"
    assert "not installed" in absent.why
