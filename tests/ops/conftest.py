import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread(threads) -> None:
    """One thread: in many small problems on a busy machine, threads would mostly wait.

    ``test_determinism.py`` tests with several threads what depends on their number."""
    threads(1)


@pytest.fixture(params=[torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def dtype(request) -> torch.dtype:
    return request.param


@pytest.fixture(params=["none", "sum", "batchmean"])
def reduction(request) -> str:
    return request.param
