"""The noise: Philox's known answers, the same words everywhere, and normals that are normal."""

import itertools
import math

import numpy as np
import pytest
import torch

import vae_fast
from tests.conftest import LEVELS, level
from vae_fast import noise, reference, reparameterize
from vae_fast.backend import library

# Random123's known answers for philox4x32-10: counter, key, words.
ONES = 0xFFFFFFFF
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES,) * 4, (ONES,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]
KEYS = [(0, 0), (-1, -1), (2**63 - 1, -(2**63)), (0x0123456789ABCDEF, -81985529216486896)]


def int64(low: int, high: int) -> int:
    """Two 32-bit words as one int64."""
    value = low | high << 32
    return value - 2**64 if value >= 2**63 else value


def words_of_reference(key: int, stream: int, block: int, blocks: int) -> np.ndarray:
    """What ``library().random_words`` returns, from reference.philox."""
    mask = 0xFFFFFFFF
    counters = [(block + i) % 2**64 for i in range(blocks)]
    words = reference.philox(
        [
            torch.tensor([c & mask for c in counters]),
            torch.tensor([c >> 32 for c in counters]),
            torch.full((blocks,), stream & mask),
            torch.full((blocks,), (stream >> 32) & mask),
        ],
        [torch.tensor(key & mask), torch.tensor((key >> 32) & mask)],
    )
    return torch.stack(words, 1).flatten().numpy().astype(np.uint32)


# --- words ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("counter, key, words", KNOWN, ids=["zeros", "ones", "pi"])
def test_known_answers_in_plain_pytorch(counter, key, words):
    got = reference.philox([torch.tensor(c) for c in counter], [torch.tensor(k) for k in key])
    assert tuple(w.item() for w in got) == words


@pytest.mark.parametrize("counter, key, words", KNOWN, ids=["zeros", "ones", "pi"])
def test_known_answers_in_the_kernels(cpu_level, counter, key, words):
    block = counter[0] | counter[1] << 32
    got = library().random_words(int64(*key), int64(*counter[2:]), block, 1)
    assert tuple(got.tolist()) == words


BLOCKS = (0, 1, 2**30, 2**32 - 9, 2**32 - 1, 2**32, 2**40 + 5, 2**63 - 3, 2**64 - 5)


@pytest.mark.parametrize("key, stream", KEYS)
def test_the_same_words_everywhere(cpu_level, key, stream):
    """Bit for bit, and past 2^32 blocks, where the counter carries into its second word."""
    for block, blocks in itertools.product(BLOCKS, (1, 3, 4, 16, 37)):
        got = library().random_words(key, stream, block, blocks)
        assert got.dtype == np.uint32
        np.testing.assert_array_equal(got, words_of_reference(key, stream, block, blocks))


def test_random_words_are_the_elements_words():
    """Element i uses word i mod 4 of counter i div 4."""
    key, stream = KEYS[3]
    want = words_of_reference(key, stream, 0, 26)
    for n in (0, 1, 4, 7, 101):
        got = reference.random_words(torch.tensor([key, stream]), n)
        assert got.tolist() == want[:n].tolist()


def test_words_at_every_place_of_a_counter(cpu_level):
    """Words do not depend on where a kernel starts: none asked for, and a few."""
    whole = library().random_words(5, 6, 0, 64)
    for block in range(20):
        for blocks in (0, 1, 2, 5):
            got = library().random_words(5, 6, block, blocks)
            np.testing.assert_array_equal(got, whole[4 * block : 4 * (block + blocks)])
    with pytest.raises(ValueError, match="negative"):
        library().random_words(5, 6, 0, -1)


@pytest.mark.cuda
def test_words_on_the_gpu():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU")
    for key, stream in KEYS:
        for block in (0, 2**32 - 9, 2**40 + 5):
            got = library("cuda").random_words(key, stream, block, 37)
            np.testing.assert_array_equal(
                np.asarray(got, dtype=np.uint32), words_of_reference(key, stream, block, 37)
            )


# --- normals -------------------------------------------------------------------------------------


def draws(key: torch.Tensor, n: int) -> torch.Tensor:
    """Normals as every op makes them."""
    zeros = torch.zeros(n, device=key.device)
    return reparameterize(zeros, zeros, noise_key=key)


def test_normals_are_box_muller(implementation):
    """Against the textbook's formula in float64, to what float32 holds."""
    key = torch.tensor(KEYS[3], device=implementation)
    n = 100_003
    words = reference.random_words(key.cpu(), n + (-n) % 4).double().reshape(-1, 2)
    u = (words[:, 0] + 0.5) / 2**32
    radius, angle = torch.sqrt(-2 * torch.log(u)), 2 * math.pi * words[:, 1] / 2**32
    want = torch.stack([radius * torch.cos(angle), radius * torch.sin(angle)], 1).flatten()[:n]
    off = (draws(key, n).cpu().double() - want).abs()
    # u rounded to float32 near 1 costs the smallest radii their digits: 2^-25 / radius.
    limit = 4e-7 * radius + 2.0**-24 / radius
    assert (off <= limit.repeat_interleave(2)[:n]).all()


def test_every_place_of_a_tensor_has_the_same_noise(cpu_level):
    """Normals do not depend on how many are made: no seam between vectors, blocks or chunks."""
    key = torch.tensor(KEYS[3])
    whole = draws(key, 20_001)
    for n in [*range(1, 70), 1023, 1024, 1025, 4095, 4097, 8193]:
        assert torch.equal(draws(key, n), whole[:n]), n


def moments_and_tails(z: torch.Tensor) -> dict[str, float]:
    """z-scores: how many standard errors each statistic is from a standard normal's."""
    x = z.double()
    n = x.numel()
    scores = {
        "mean": x.mean() * n**0.5,
        "variance": (x.square().mean() - 1) * (n / 2) ** 0.5,
        "third moment": x.pow(3).mean() * (n / 15) ** 0.5,
        "fourth moment": (x.pow(4).mean() - 3) * (n / 96) ** 0.5,
    }
    for edge in (1, 2, 3, 4, 5):
        p = math.erfc(edge / 2**0.5) / 2
        for name, count in (("above", (x > edge).sum()), ("below", (x < -edge).sum())):
            scores[f"{name} {edge}"] = (count.double() - n * p) / (n * p * (1 - p)) ** 0.5
    for lag in (*range(1, 9), 64):
        scores[f"lag {lag}"] = (x[lag:] * x[:-lag]).mean() * (n - lag) ** 0.5
        squares = (x[lag:].square() - 1) * (x[:-lag].square() - 1) / 2
        scores[f"lag {lag} of squares"] = squares.mean() * (n - lag) ** 0.5
    return {name: float(score) for name, score in scores.items()}


def assert_normal(scores: dict[str, float], limit: float) -> None:
    far = {name: round(score, 2) for name, score in scores.items() if not abs(score) < limit}
    assert not far, f"standard errors from a standard normal's: {far}"


def test_normals_are_normal(backend):
    """A million of them; 32 scores, each within 4.5 standard errors."""
    assert_normal(moments_and_tails(draws(torch.tensor([2024, 7]), 1_000_000)), 4.5)


@pytest.mark.slow
def test_hundred_million_normals(implementation):
    """The first four moments, the tails beyond 5 sigma, lag correlations, at 10^8 draws."""
    if vae_fast.get_backend() == "reference":
        pytest.skip("its words are the kernels', bit for bit, and 10^8 take it minutes")
    key = torch.tensor([31415926535, 27182818284])
    found = draws(key.to(implementation), 10**8)
    if implementation == "cuda" or library().cpu_capability() == LEVELS[0]:
        assert_normal(moments_and_tails(found), 5.0)
    else:
        with level(LEVELS[0]):
            off = draws(key, 10**8).sub_(found).abs_()
        # No score moves by more than 0.03 then.
        assert off.double().mean() < 1e-6 and off.max() < 1e-3


def test_the_statistics_see_what_is_not_normal():
    """Each score reacts to its own defect, so that passing means something."""
    x = torch.randn(1_000_000)
    assert abs(moments_and_tails(x + 0.01)["mean"]) > 5
    assert abs(moments_and_tails(x * 1.01)["variance"]) > 5
    assert abs(moments_and_tails(x.clamp(-3, 3))["above 3"]) > 5
    assert abs(moments_and_tails(x + 0.01 * x.roll(4))["lag 4"]) > 5
    assert abs(moments_and_tails(torch.where(x > 2, x + 0.2, x))["third moment"]) > 5


def test_keys_and_streams_are_independent(backend):
    """Neighbouring keys, neighbouring streams, and the two swapped, do not correlate."""
    n = 200_000
    keys = [(1, 2), (1, 3), (2, 2), (2, 1), (1 + 2**32, 2), (1, 2 + 2**32)]
    z = torch.stack([draws(torch.tensor(key), n) for key in keys]).double()
    correlation = (z @ z.t() / n - torch.eye(len(keys))) * n**0.5
    correlation.fill_diagonal_(0)
    assert correlation.abs().max() < 5


# --- keys ----------------------------------------------------------------------------------------


def test_new_key(device):
    torch.manual_seed(3)
    first, second = noise.new_key(device), noise.new_key(device)
    assert first.dtype == torch.int64 and first.shape == (2,) and first.device.type == device
    assert not torch.equal(first, second)
    torch.manual_seed(3)
    assert torch.equal(noise.new_key(device), first)
    generator = torch.Generator(device).manual_seed(9)
    third = noise.new_key(device, generator=generator)
    assert torch.equal(noise.new_key(device, generator=generator.manual_seed(9)), third)


def test_keys_use_all_64_bits():
    keys = torch.stack([noise.new_key() for _ in range(200)])
    for bit in range(64):
        share = (keys >> bit & 1).double().mean()
        assert 0.3 < share < 0.7, bit


def test_a_key_in_a_strided_tensor(backend):
    keys = torch.randint(2**40, (2, 3))
    mu = torch.zeros(2, 9)
    want = reparameterize(mu, mu, noise_key=keys[:, 1].clone())
    assert torch.equal(reparameterize(mu, mu, noise_key=keys[:, 1]), want)


@pytest.mark.parametrize(
    "bad, message",
    [
        (7, "got int"),
        (torch.tensor([1.0, 2.0]), r"got torch.float32 tensor of shape \(2,\)"),
        (torch.tensor([1, 2, 3]), r"got torch.int64 tensor of shape \(3,\)"),
        (torch.tensor([1, 2], dtype=torch.int32), "got torch.int32"),
        (torch.Generator(), "got Generator"),
    ],
)
def test_a_bad_key_is_named(backend, bad, message):
    mu = torch.zeros(2, 3)
    for op in (vae_fast.reparameterize, vae_fast.sample_and_kl):
        with pytest.raises(TypeError, match=message) as error:
            op(mu, mu, noise_key=bad)
        assert "vae_fast.noise.new_key" in str(error.value)


def test_a_key_on_another_device(backend):
    mu = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="noise_key is on meta, mu on cpu.*new_key"):
        vae_fast.reparameterize(mu, mu, noise_key=torch.zeros(2, dtype=torch.int64, device="meta"))
