"""Models with several losses, sharded by FSDP2, compared with DDP on the same ranks.

``python -m tests.train.phases_ranks OUT``, a process for each rank, writes what ``compared`` gives.
"""

import json
import os
import sys
from pathlib import Path

import torch

from tests.train.ranks import CPU, images, make_step, whole
from vae_fast.models import build
from vae_fast.train import checkpoint
from vae_fast.train.distributed import World
from vae_fast.train.sharded import mesh_of

SMALL = {"latent_dim": 3, "network_options": {"hidden": [16]}}
MAPS = {"channels": 4, "multipliers": [1, 2], "groups": 2, "z_channels": 2}
CASES = {
    "aae": ("aae", {**SMALL, "discriminator_hidden": [8]}),
    "factor": ("vae", {**SMALL, "objective": "factor", "objective_options": {"hidden": [8]}}),
    "aae at once": ("aae", {**SMALL, "discriminator_hidden": [8], "simultaneous": True}),
    "vae-gan": ("vae", {**SMALL, "objective": "vae-gan", "objective_options": {"channels": 4}}),
    "vae-gan in turn": (
        "vae",
        {
            **SMALL,
            "objective": "vae-gan",
            "objective_options": {"channels": 4, "simultaneous": False},
        },
    ),
    "latent-diffusion": (
        "autoencoder-kl",
        {
            **MAPS,
            "objective": "latent-diffusion",
            "objective_options": {"start": 2, "channels": 4, "adversarial": 2.0},
        },
    ),
    "vae-gan of maps": (
        "autoencoder-kl",
        {**MAPS, "objective": "vae-gan", "objective_options": {"channels": 4}},
    ),
    "vae-gan of blocks": (  # sharded one by one
        "autoencoder-kl",
        {
            **MAPS,
            "checkpointing": "blocks",
            "objective": "vae-gan",
            "objective_options": {"channels": 4},
        },
    ),
}


def made(world, name, how, seed=0):
    model_name, options = CASES[name]
    torch.manual_seed(seed)
    return make_step(world, build(model_name, (1, 16, 16), **options), how)


def train(step, number):
    torch.manual_seed(10 * number + step.world.rank)
    for share in step.world.shares(step.world.batches(images(7, 16), 8, shuffle=False)):
        step(share, number)


def weights(step):
    return {k: whole(v) for k, v in step.model.state_dict().items()}


def leaks(step):
    """A list, to which each phase adds gradients of parameters that are not its own."""
    found = []
    for phase, update in step.each():
        own = {id(p) for p in update.parameters}

        def follow(loss, part=1.0, *, phase=phase, own=own, follow=update.follow):
            for name, p in step.model.named_parameters():
                if p.grad is not None and id(p) not in own:
                    found.append((phase.name, name))
            return follow(loss, part)

        update.follow = follow
    return found


def compared(world, name, folder):
    """Three steps by each way, and FSDP's third again from a checkpoint of the second."""
    found, ends = {"leaked": [], "loss": []}, []
    for how in ("ddp", "fsdp"):
        step = made(world, name, how)
        leaked, first = leaks(step), weights(step)
        for number in range(3):
            if number == 2 and how == "fsdp":
                state = {"step": step.state_dict()}
                at = checkpoint.save(folder, 2, step.model.state_dict(), state, world)
            train(step, number)
        ends.append(weights(step))
        found["leaked"] += leaked
        found["loss"].append(step.meter.read()[0]["loss"])
        found["moved"] = sum(not torch.equal(first[p], ends[-1][p])
                             for p, _ in step.model.named_parameters())  # fmt: skip
        found["of"] = len(list(step.model.parameters()))
    found["off"] = max(float((v - ends[1][k]).abs().max()) for k, v in ends[0].items())
    again = made(world, name, "fsdp", seed=5)
    kept = checkpoint.load(at, world, mesh_of(again.model))
    again.model.load_state_dict(kept.weights)
    again.load_state_dict(kept.state["step"])
    train(again, 2)
    found["resumed"] = all(torch.equal(v, ends[1][k]) for k, v in weights(again).items())
    return found


def main():
    torch.set_num_threads(1)
    world = World()
    world.join(CPU)
    out = Path(sys.argv[1])
    found = {n: compared(world, n, out.with_suffix(f".{i}")) for i, n in enumerate(CASES)}
    if world.rank == 0:
        out.write_text(json.dumps(found))
    world.leave()
    os._exit(0)  # the teardown may abort: docs/design-traps.md


if __name__ == "__main__":
    main()
