import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    """Small problems on a busy machine: threads that wait for each other cost more than they do."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
