"""Which of vae_fast's ops run within a block."""

from collections import Counter

from torch.utils._python_dispatch import TorchDispatchMode


class Counting(TorchDispatchMode):
    """``with Counting() as count``: how often each op ran, by name."""

    def __init__(self):
        super().__init__()
        self.count = Counter()

    def __enter__(self):
        super().__enter__()
        return self.count

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "vae_fast":
            self.count[func._schema.name.removeprefix("vae_fast::")] += 1
        return func(*args, **(kwargs or {}))
