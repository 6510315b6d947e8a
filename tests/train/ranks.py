"""Work of several ranks for tests: one process if imported, several as a program.

``start(2, "-m", "tests.train.ranks", OUT)`` writes to OUT what ``everything`` gives on two ranks.
"""

import os
import socket
import subprocess
import sys
from pathlib import Path

import torch

from vae_fast.models import build
from vae_fast.train import TrainConfig, checkpoint
from vae_fast.train.distributed import World
from vae_fast.train.latents import latent_statistics
from vae_fast.train.sharded import is_sharded, local, mesh_of
from vae_fast.train.step import Step

CPU = torch.device("cpu")


def environment(size, rank, port):
    """What torchrun sets for a rank."""
    return os.environ | {
        "WORLD_SIZE": str(size), "RANK": str(rank), "LOCAL_RANK": str(rank),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1",
    }  # fmt: skip


def start(size, *arguments, **options):
    """``size`` processes, one per rank, each ``python *arguments``."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, *map(str, arguments)]
    return [
        subprocess.Popen(command, env=environment(size, rank, port), **options)
        for rank in range(size)
    ]


def images(count, side=8, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 1, side, side), dtype=torch.uint8, generator=generator)


def whole(tensor):
    """The whole tensor, sharded or not. Collective: call on every rank."""
    return (tensor.full_tensor() if is_sharded(tensor) else tensor).detach().clone()


def make_step(world, model, how, **options):
    config = TrainConfig(lr=0.01, ema=0.9, distributed=how, runner="eager", **options)
    config.optimizer.clip_norm = 0.5
    return Step(model, config, CPU, world, 10)


def trained(world, how, blocks=False, precision="fp32"):
    """Gradients of three steps on seven of eight samples, and what they lead to."""
    torch.manual_seed(0)
    model = build("ae", (1, 8, 8), latent_dim=3)
    if blocks:
        model.blocks = lambda: [m for m in model.modules() if isinstance(m, torch.nn.Linear)]
    step = make_step(world, model, how, precision=precision)
    found = {}
    guard, take = step.updates[0].guard, step.updates[0].guard.__class__.take

    class Watched(guard.__class__):
        def take(self, *arguments):
            for i, p in enumerate(step.updates[0].parameters):
                found[f"gradient of {i}, {len(self._norms)}"] = whole(p.grad)
            return take(self, *arguments)

    guard.__class__ = Watched
    batches = world.batches(images(7), 8, shuffle=False)
    for number in range(3):
        for share in world.shares(batches):
            assert (share.weight == 1.0) == (world.size == 1) and share.part == 1.0
            # The last one as if it were smaller than the others.
            step(share._replace(part=(1.0, 1.0, 0.75)[number]), number)
    means, samples = step.meter.read()
    found |= {name: torch.tensor(value, dtype=torch.float64) for name, value in means.items()}
    found["samples"] = torch.tensor(samples)
    found["norm"] = torch.tensor(guard.read()["grad_norm"], dtype=torch.float64)
    with step.averaged(), torch.no_grad():
        share = next(iter(world.shares(batches)))
        found["averaged loss"] = world.sum(step.objective(share).loss * share.weight) / world.size
    found |= {f"weight {k}": whole(v) for k, v in model.state_dict().items()}
    found |= {f"average {k}": whole(v) for k, v in step.average.state_dict().items()}
    return found, step


def floored(world, how):
    """The encoder's gradient where free bits hold some latent dimensions of the joined batch."""
    torch.manual_seed(0)
    model = build("vae", (1, 8, 8), latent_dim=6)
    with torch.no_grad():  # what is drawn then has no say in the gradient
        list(model.decoder.parameters())[-2].zero_()
    kl = model.kl_per_dimension(images(8)).detach()
    step = make_step(world, model, how)
    step.config.objective.free_bits = float(kl.median()) * 1.001
    (share,) = world.shares(world.batches(images(8), 8, shuffle=False))
    terms = step.objective(share)
    terms.loss.backward()
    gradients = {f"floored {k}": whole(p.grad) for k, p in model.encoder.named_parameters()}
    held = (kl < step.config.objective.free_bits).sum()
    assert 0 < held < 6
    return gradients | {"floored kl": world.sum(terms.kl.detach()) / world.size}


def looked_at(world, how):
    """Latent statistics of 21 samples."""
    torch.manual_seed(0)
    model = build("vae", (1, 8, 8), latent_dim=4)
    with torch.no_grad():
        for p in model.encoder.parameters():
            p.mul_(3.0)
    step = make_step(world, model, how)
    statistics = latent_statistics(step.model, world.batches(images(21), 8, shuffle=False), world)
    return {k: torch.tensor(v, dtype=torch.float64) for k, v in statistics.items()}


def everything(world, how):
    found = {f"plain {k}": v for k, v in trained(world, how)[0].items()}
    found |= {f"blocks {k}": v for k, v in trained(world, how, blocks=True)[0].items()}
    bf16 = trained(world, how, precision="bf16")[0]
    found |= {f"bf16 {k}": bf16[k] for k in ("loss", "norm")}
    return found | floored(world, how) | looked_at(world, how)


def noise(world):
    """Numbers that every rank draws, in their order."""
    from vae_fast.train import rng

    rng.seed_rank(0, world.rank)
    return torch.tensor(world.gather(torch.randn(4).tolist()))


def main():
    from safetensors.torch import save_file

    torch.set_num_threads(1)
    out, world = Path(sys.argv[1]), World()
    world.join(CPU)
    results = {
        f"{how} {k}": v for how in ("ddp", "fsdp") for k, v in everything(world, how).items()
    }
    results["noise"] = noise(world)
    found, step = trained(world, "fsdp", blocks=True)
    weights, state = step.model.state_dict(), {"step": step.state_dict(), "rank": world.rank}
    mesh = mesh_of(step.model)
    folder = checkpoint.save(out.with_suffix(""), 3, weights, state, world)
    again = checkpoint.load(folder, world, mesh)
    for name, value in again.weights.items():
        assert is_sharded(value) == is_sharded(weights[name])
        assert torch.equal(local(value), local(weights[name])), name
    results |= {f"saved {k}": v for k, v in found.items() if k.startswith(("weight", "average"))}
    moments = step.updates[0].optimizer.state_dict()["state"]
    results |= {f"saved moment {i}": whole(entry["exp_avg"]) for i, entry in moments.items()}
    if world.is_main:
        save_file({k: v.contiguous() for k, v in results.items()}, out)
    world.leave()
    os._exit(0)  # the teardown may abort: docs/design-traps.md


if __name__ == "__main__":
    main()
