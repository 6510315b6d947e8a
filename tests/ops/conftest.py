import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread(threads) -> None:
    """Many small problems on a machine that others use: waiting threads would cost the most. What
    depends on the number of threads is tested with several (``test_determinism.py``)."""
    threads(1)


@pytest.fixture(params=[torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def dtype(request) -> torch.dtype:
    return request.param


@pytest.fixture(params=["none", "sum", "batchmean"])
def reduction(request) -> str:
    return request.param
