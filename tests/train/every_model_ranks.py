"""Every model on two ranks, as a program: ``start(2, "-m", "tests.train.every_model_ranks", OUT)``.

Each takes three steps under DDP on seven of eight samples. OUT gets, by model, how far the first
gradient is from the mean over ranks of what each rank's own loss gives, whether both ranks end with
the same weights, and how many parameters have moved.
"""

import copy
import json
import os
import sys
from pathlib import Path

import torch

from tests.models.test_every_model import NAMES, OPTIONS, SHAPE
from tests.train.ranks import CPU, make_step
from vae_fast.data import as_data
from vae_fast.models import build
from vae_fast.models.phases import phases_of
from vae_fast.train.distributed import World


def data():
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (7, *SHAPE), dtype=torch.uint8, generator=generator)
    return as_data((images, torch.arange(7)))


def mean_gradient(world, step, share):
    """The first phase's gradient, by plain autograd on a copy of the model, averaged over ranks."""
    model = copy.deepcopy(step.model)
    phase = phases_of(model)[0]
    labels = (share.labels,) if model.uses_labels else ()
    options = {} if phase.name is None else {"phase": phase.name}
    with world.joint_batch(share):  # codes of a codebook start from the batch of all ranks
        loss = model(share.images, *labels, **options).loss * share.weight
    gradients = torch.autograd.grad(loss, phase.parameters)
    return [world.sum(g.clone()) / world.size for g in gradients]


def trained(world, name):
    torch.manual_seed(0)
    step = make_step(world, build(name, SHAPE, **OPTIONS[name]), "ddp")
    before = [p.detach().clone() for p in step.model.parameters()]
    update, found = step.updates[0], {}
    follow = update.follow

    def watched(loss, *part):
        found.setdefault("first", [p.grad.clone() for p in update.parameters])
        return follow(loss, *part)

    update.follow = watched
    batches = world.batches(data(), 8, shuffle=False)
    for number in range(3):
        for share in world.shares(batches):
            if number == 0:
                torch.manual_seed(100 + world.rank)
                wanted = mean_gradient(world, step, share)
                torch.manual_seed(100 + world.rank)
            step(share, number)
    off = [
        ((a - b).abs().max() / (1e-3 * b.abs().mean() + b.abs().max() + 1e-12)).item()
        for a, b in zip(found["first"], wanted, strict=True)
    ]
    state = [t.tolist() for t in step.model.state_dict().values() if t.is_floating_point()]
    moved = [not torch.equal(p, b) for p, b in zip(step.model.parameters(), before, strict=True)]
    return {
        "off": max(off),
        "alike": all(other == state for other in world.gather(state)),
        "finite": bool(torch.tensor(step.meter.read()[0]["loss"]).isfinite()),
        "moved": sum(moved) / len(moved),
        "noise": world.gather(torch.rand(1).item()),
    }


def main():
    torch.set_num_threads(1)
    world = World()
    world.join(CPU)
    results = {name: trained(world, name) for name in NAMES}
    if world.is_main:
        Path(sys.argv[1]).write_text(json.dumps(results))
    world.leave()
    os._exit(0)  # the teardown may abort: docs/design-traps.md


if __name__ == "__main__":
    main()
