"""Peak memory of one call, exact to the byte, without its inputs. (x + 1 allocates the 1.)"""

import torch

import vae_fast
from benchmarks.case import Contender, Outputs
from benchmarks.memory import highest, peak_bytes

CPU = torch.device("cpu")
MEGABYTE = torch.ones(1 << 18)  # float32


def contender(run, **options):
    return Contender("c", run, outputs=lambda out: Outputs((out,), ()), **options)


def test_a_result_and_its_temporaries():
    assert peak_bytes(contender(torch.exp), MEGABYTE, CPU) == 1 << 20
    assert peak_bytes(contender(lambda x: x.exp().sqrt()), MEGABYTE, CPU) == 2 << 20


def test_released_memory_is_not_counted():
    def one_after_the_other(x):
        for _ in range(5):
            y = x.exp()
            del y
        return x

    assert peak_bytes(contender(one_after_the_other), MEGABYTE, CPU) == 1 << 20


def test_in_place_takes_nothing():
    buffer = torch.empty_like(MEGABYTE)
    assert peak_bytes(contender(lambda x: torch.add(x, x, out=buffer)), MEGABYTE, CPU) == 0


def test_a_contenders_own_peak_is_used_and_a_yardstick_has_none():
    assert peak_bytes(contender(lambda x: x, peak_bytes=lambda own: 123), MEGABYTE, CPU) == 123
    assert peak_bytes(Contender("add", lambda x: x + 1), MEGABYTE, CPU) is None


def test_outputs_of_our_own_pool_count_each_time(native):
    run = contender(lambda x: vae_fast.reparameterize(x, x))
    for _ in range(3):
        # z and a noise key. A pool may round up to pages, but it must not hide memory in use.
        assert 1 << 20 <= peak_bytes(run, MEGABYTE, CPU) < (1 << 20) + 8192


def test_the_highest_point_in_order_of_time():
    assert highest([(3, -5), (1, 5), (2, 4), (4, 3)]) == 9
    assert highest([]) == 0
