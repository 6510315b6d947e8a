"""gather_batch compared with plain PyTorch: rows of a data set in memory, unchanged, scaled or
binarised."""

from __future__ import annotations

from collections.abc import Sequence

import torch

import vae_fast
from benchmarks.case import OURS, Absence, Case, Contender, Outputs, WrongResult
from benchmarks.inputs import pixels

SAMPLES = 60_000


def eager_scale(data, index):
    return data[index].float() / 255


def eager_binarize(data, index):
    return torch.bernoulli(data[index].float() / 255)


def setup_gather(
    shape: Sequence[int], pass_: str, dtype: str, device: torch.device, modes: Sequence[str]
) -> Case:
    """``shape``: samples of a batch, pixels. float32 is x / 255, uint8 as they are, bool binarised."""
    batch, columns = shape
    mode = {"float32": "scale", "uint8": "bytes", "bool": "binarize"}[dtype]
    data = pixels(0, 0, (SAMPLES, columns), torch.uint8, device)
    eager = {"scale": eager_scale, "bytes": lambda d, i: d[i], "binarize": eager_binarize}[mode]

    def inputs(seed: int) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return [torch.randint(SAMPLES, (batch,), generator=generator).to(device)]

    def contender(name: str, gather) -> Contender:
        return Contender(
            name, lambda s: gather(data, s[0]), outputs=lambda out: Outputs((out,), ())
        )

    def contenders() -> list[Contender | Absence]:
        return [
            contender(OURS, lambda d, i: vae_fast.gather_batch(d, i, mode=mode)),
            contender("eager", eager),
        ]

    def check(inputs: Sequence[torch.Tensor], outputs: Outputs) -> None:
        found, grey = outputs.values[0].double(), data[inputs[0]].double()
        if mode == "binarize":  # draws: their sum, within 6 standard deviations
            p = grey / 255
            off = abs(float((found - p).sum())) / float((p * (1 - p)).sum()) ** 0.5
            right = off < 6 and bool(((found == 0) | (found == 1)).all())
        else:
            right = bool((found - grey / (255 if mode == "scale" else 1)).abs().max() < 1e-7)
        if not right:
            raise WrongResult(f"{mode} of these rows is not this")

    moved = batch * columns * (5 if mode == "scale" else 2)
    return Case(
        "gather", pass_, f"{batch}x{columns}", dtype, batch * columns, moved, device, inputs,
        contenders, check,
    )  # fmt: skip


SETUPS = {"gather": setup_gather}

NAMES = (OURS, "eager")


def test_speed(checked, benchmark):
    benchmark.pedantic(checked.read, args=(1,), rounds=5, warmup_rounds=1)
