"""Anomalies in a table of payments: a VAE learns what is usual, and scores what is not.

    python examples/fraud.py FOLDER

writes payments.parquet, trains on the rows without their labels, scores rows that it has not seen,
and draws the scores. The table is generated, so the anomalies are known: 1 row in 100, of three kinds
that no single column shows plainly.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

from vae_fast import evaluate, tasks
from vae_fast.data import as_data
from vae_fast.train import TrainConfig, Trainer

KINDS = ("usual", "stolen card", "card test", "account takeover")


def payments(count: int, seed: int, rate: float = 0.01) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Columns of ``count`` payments, and the kind of each (0 usual).

    A customer has a usual amount, hour, distance and pace. An anomaly deviates from these.
    """
    draw = np.random.default_rng(seed)
    wealth = draw.normal(size=count)
    night = draw.random(count) < 0.15  # customers who live at night
    hour = np.where(night, draw.normal(2, 2, count), draw.normal(14, 3, count)) % 24
    usual = np.exp(3.2 + 1.2 * wealth + 0.2 * draw.normal(size=count))
    amount = usual * np.exp(0.35 * draw.normal(size=count))
    distance = np.exp(1.0 + 0.9 * wealth + 0.5 * draw.normal(size=count))
    pace = np.exp(-0.5 + 0.3 * draw.normal(size=count))  # payments an hour
    balance = 40 * usual * np.exp(0.3 * draw.normal(size=count))
    kind = np.where(draw.random(count) < rate, draw.integers(1, 4, count), 0)
    stolen, test, taken = (kind == k for k in (1, 2, 3))
    amount[stolen] = usual[stolen] * draw.uniform(3, 6, stolen.sum())
    distance[stolen] *= draw.uniform(2, 6, stolen.sum())
    amount[test] = usual[test] * draw.uniform(0.15, 0.35, test.sum())
    pace[test] *= draw.uniform(1.5, 3, test.sum())
    hour[taken] = (hour[taken] + 12) % 24
    balance[taken] = amount[taken] * draw.uniform(5, 12, taken.sum())
    columns = {
        "log_amount": np.log(amount),
        "log_usual_amount": np.log(usual),
        "log_balance": np.log(balance),
        "log_distance_km": np.log(distance),
        "log_pace": np.log(pace),
        "hour_x": np.cos(2 * np.pi * hour / 24),
        "hour_y": np.sin(2 * np.pi * hour / 24),
        "customer_years": draw.gamma(2.0, 3.0, count),
    }
    return columns, kind


def write(folder: Path, name: str, columns: dict[str, np.ndarray]) -> Path:
    import pyarrow as pa
    from pyarrow import parquet

    path = folder / f"{name}.parquet"
    parquet.write_table(pa.table(columns), path)
    return path


def main(folder: Path, count: int = 20_000, epochs: int = 30) -> dict[str, float]:
    """The ROC AUC of the scores over all anomalies, and of each kind."""
    folder.mkdir(parents=True, exist_ok=True)
    train = write(folder, "payments", payments(count, seed=0)[0])  # anomalies among them, unmarked
    columns, kind = payments(count, seed=1)
    unseen = write(folder, "unseen", columns)

    config = TrainConfig(
        data=str(train), model_args={"latent_dim": 4, "likelihood": "student_t"}, epochs=epochs,
        lr=2e-3, device="cpu", out=str(folder / "run"),
    )  # fmt: skip
    Trainer(config).fit()  # the run standardizes the columns, and says so

    model = tasks.load_model(folder / "run").model
    x = as_data(unseen, bounded=False).images
    torch.manual_seed(0)
    scores = tasks.anomaly_scores(model, x, num_samples=10)
    kind = torch.from_numpy(kind)
    found = {"all anomalies": evaluate.auroc(scores, kind > 0)}
    for number, name in enumerate(KINDS[1:], 1):
        beside = (kind == 0) | (kind == number)
        found[name] = evaluate.auroc(scores[beside], kind[beside] == number)
    # For comparison: each column looked at alone.
    farthest = ((x - x.mean(0)).abs() / x.std(0)).amax(1)
    found["farthest column, for comparison"] = evaluate.auroc(farthest, kind > 0)
    draw(folder / "scores.png", scores, kind)
    return found


def draw(path: Path, scores: torch.Tensor, kind: torch.Tensor) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, rows = plt.subplots(4, 1, figsize=(8, 5), sharex=True, layout="constrained")
    low, high = float(scores.quantile(0.001)), float(scores.quantile(0.9995))
    bins = np.linspace(low, high, 50)
    colors = ("#9fb4c7", "#c1440e", "#e0a030", "#5b3a8c")
    for number, (name, axes) in enumerate(zip(KINDS, rows, strict=True)):
        part = scores[kind == number].clamp(low, high)
        axes.hist(part.numpy(), bins, color=colors[number])
        axes.set_title(f"{name}: {len(part):,}", loc="left", fontsize=10)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.set(yticks=[])
    rows[-1].set(
        xlabel="negative ELBO of unseen payments, nats (values beyond the axis are in the last bar)"
    )
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    for name, area in main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/fraud")).items():
        print(f"{name:32s} ROC AUC {area:.3f}")
