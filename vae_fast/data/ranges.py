"""The range of a source's values, and the checks that likelihoods need."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch

Range = tuple[float, float]
UNIT: Range = (0.0, 1.0)
_DIGITS = 1e-3  # the largest error of float32, relative to a column's standard deviation


@dataclass(frozen=True)
class LabelRange:
    """The labels that a model accepts: from ``least``, 0 or -1, to ``classes`` - 1."""

    model: str
    classes: int
    least: int
    trained: bool = False  # a trained model's number of classes is fixed

    def out_of_range(self, labels: torch.Tensor) -> torch.Tensor:
        """The positions of the labels (N,) that are out of this range."""
        return ((labels < self.least) | (labels >= self.classes)).nonzero()[:, 0]

    def check(self, label: int, whose: str) -> None:
        """Raise ValueError, naming the flag that helps, if the label is out of range."""
        if self.least <= label < self.classes:
            return
        known = f"0 to {self.classes - 1}" + (", and -1 for unknown" if self.least < 0 else "")
        way = f"--model-args.condition_options.num_classes {label + 1} makes room for it"
        if label < 0:
            unknown = "; -1, a label that is unknown, is for --model ssvae" if label == -1 else ""
            way = f"mend the data{unknown}"
        if self.trained:
            way = "give labels as the training data had them"
        raise ValueError(
            f"{whose} has the label {label}, and {self.model} with num_classes={self.classes} takes "
            f"{known}: {way}"
        )


def range_of(tensor: torch.Tensor, name: str) -> Range:
    """The smallest and the largest value of floating-point data (N, ...), in one pass.

    Raises:
        ValueError: NaN or infinity among them.
    """
    rows = max(1, (1 << 24) // max(1, tensor[0].numel()))
    low, high = float("inf"), float("-inf")
    for block in tensor.split(rows):  # in blocks: a mapped file may be larger than memory
        block_low, block_high = (float(v) for v in torch.aminmax(block))
        if not (abs(block_low) < float("inf") and abs(block_high) < float("inf")):  # NaN too
            raise ValueError(f"{name}: the data has NaN or infinity in it; remove those samples")
        low, high = min(low, block_low), max(high, block_high)
    return low, high


def check_unit(found: Range, name: str) -> None:
    """Raise ValueError unless a Bernoulli likelihood accepts values in this range."""
    low, high = found
    if low >= 0 and high <= 1:
        return
    if low >= 0 and 2 <= high <= 255:
        remedy = "if they stand for 0..255, divide them by 255 or convert them to uint8"
    elif low >= -1 and high <= 1:
        remedy = "they look like [-1, 1], so map them with (x + 1) / 2"
    else:
        remedy = "scale them"
    raise ValueError(
        f"{name}: floating-point values must lie in [0, 1] for a Bernoulli likelihood, and these lie "
        f"in [{low:g}, {high:g}]: {remedy}; or take a likelihood of real values "
        "or of counts (--model-args.likelihood gaussian or negative_binomial; bounded=False where you "
        "load them yourself)"
    )


def check_counts(found: Range, rows: Iterable[torch.Tensor], name: str) -> None:
    """Raise ValueError unless the data are counts: 0, 1, 2, ... ``found`` is their range; ``rows`` are
    those whose values must be whole."""
    low, high = found
    wrong = low < 0 or any(not torch.equal(row, row.round()) for row in rows)
    if wrong:
        raise ValueError(
            f"{name}: a likelihood of counts takes 0, 1, 2, ..., and these lie in [{low:g}, {high:g}] or "
            "have fractions: give the counts as they were counted, neither scaled nor logarithms, or "
            "take a likelihood of real values (--model-args.likelihood gaussian)"
        )


def check_not_binary(
    samples: Callable[[Sequence[int]], Iterable[torch.Tensor]], count: int, name: str
) -> None:
    """Raise ValueError if uint8 data have the values 0 and 1 alone: they would be x / 255.

    Usually the first sample decides. If it is dark, samples from all over the data are checked, and
    if they are dark too, all samples.

    Args:
        samples: returns the samples with the given numbers, or blocks of them.
    """
    largest = 0
    step = max(1, count // 256)
    for rows in (range(1), range(count - 1, -1, -step), range(count)):
        for values in samples(rows):
            largest = max(largest, int(values.max()))
            if largest > 1:
                return
    if largest == 1:
        raise ValueError(
            f"{name} is uint8 and its largest value is 1, so it looks binary, and uint8 stands for "
            "x / 255: convert it to bool (images.astype(bool)), or multiply it by 255"
        )


def check_digits(
    mean: torch.Tensor, std: torch.Tensor, name: str, columns: Sequence[str] | None = None
) -> None:
    """Raise ValueError for a column so far from 0 that float32 loses its variation."""
    step = mean.abs() * torch.finfo(torch.float32).eps
    lost = ((std > 0) & (step > _DIGITS * std)).nonzero()[:, 0].tolist()
    if lost:
        column = lost[0]
        which = f"column {columns[column] if columns else column}"
        raise ValueError(
            f"{name}: {which} has the mean {mean[column]:g} and the deviation {std[column]:g}, and "
            "float32 can't tell its values apart: subtract a number near its mean before"
        )
