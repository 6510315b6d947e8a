"""A stand-in for a CUDA graph, on the CPU: a tape that records ops and replays them.

As with a real capture, a replay does not repeat what Python did between the ops, and reading a value
on the host is an error.
"""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class Tape:
    def __init__(self):
        self.ops = []
        self.replays = 0
        self.waited = False

    def warm_up(self, work):
        return work()

    def capture(self, work):
        assert not self.ops
        noise = torch.get_rng_state()
        recorder = Recorder(self.ops)
        with recorder:
            outputs = work()
        # A capture does nothing.
        for memory, content in recorder.before:
            memory.copy_(content)
        torch.set_rng_state(noise)
        return outputs

    @torch.no_grad()
    def replay(self):
        self.replays += 1
        for op, args, kwargs, recorded in self.ops:
            known = {memory(t) for t in tensors((args, kwargs))}
            for old, new in zip(tensors(recorded), tensors(op(*args, **kwargs)), strict=True):
                if memory(old) not in known:
                    old.copy_(new)


class Recorder(TorchDispatchMode):
    def __init__(self, ops):
        super().__init__()
        self.ops, self.before, self.seen = ops, [], set()

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        if op is torch.ops.aten._local_scalar_dense.default:
            raise AssertionError("a captured step has read a value on the host")
        for t in tensors((args, kwargs)):
            if memory(t) not in self.seen:
                self.seen.add(memory(t))
                self.before.append((t.untyped_storage(), t.untyped_storage().clone()))
        result = op(*args, **(kwargs or {}))
        self.seen |= {memory(t) for t in tensors(result)}
        self.ops.append((op, args, kwargs or {}, result))
        return result


def tensors(tree):
    return [t for t in tree_iter(tree) if isinstance(t, torch.Tensor)]


def memory(t):
    return t.untyped_storage().data_ptr()
