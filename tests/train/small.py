"""A few steps on a few images, and their results."""

import torch

from vae_fast.train.distributed import Share


def batches(sizes):
    generator = torch.Generator().manual_seed(5)
    return [
        Share(
            torch.randint(0, 256, (n, 1, 6, 6), dtype=torch.uint8, generator=generator),
            torch.randint(0, 10, (n,), generator=generator),
        )
        for n in sizes
    ]


def train(step, sizes):
    """The step's saved state, the weights, the metrics, the guards' numbers, and the generator."""
    torch.manual_seed(1)
    for number, share in enumerate(batches(sizes)):
        step(share, number)
    state = step.state_dict()
    state.pop("refused", None)  # the choice of runner does not count
    return (
        state,
        step.model.state_dict(),
        step.meter.read(),
        step.read_guards(),
        torch.get_rng_state(),
    )


def counting(step):
    """The step, with a model that halves beta at every fourth of its own calls, which it counts."""
    forward, step.model.count = step.model.forward, 0

    def counted(*args, **options):
        step.model.count += 1
        options["beta"] = options["beta"] * 0.5 ** (step.model.count // 4)
        return forward(*args, **options)

    step.model.forward = counted
    return step
