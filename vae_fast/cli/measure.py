"""vae-fast evaluate and vae-fast anomaly: numbers about a model, and about each sample."""

from __future__ import annotations

from typing import Any

from vae_fast.cli.flags import data_options, one_of, parse, whole_numbers
from vae_fast.cli.interrupts import begin_work
from vae_fast.cli.output import write_file
from vae_fast.cli.runs import (
    add_samples,
    caption,
    checkpoint_of,
    model_and_samples,
    out_path,
    run_parser,
    samples_of,
)


def evaluate(arguments: list[str], program: str) -> int:
    """measure a trained model: ELBO, importance-sampled NLL, active units, and more with labels"""
    parser = run_parser(program, evaluate.__doc__)
    add_samples(parser, 1000)
    parser.add_argument(
        "--num_samples", type=int, default=100, help="K of the importance-sampled NLL, 0 for none"
    )
    parser.add_argument(
        "--normal",
        type=str,
        nargs="+",
        default=[],
        help="classes that are no anomalies, by number or name: adds the AUROC of the anomaly scores",
    )
    parser.add_argument(
        "--labels_per_class",
        type=int,
        default=0,
        help="add the accuracy of a linear probe of the features, fitted to N labels of each class",
    )
    parser.add_argument(
        "--features",
        type=str,
        default=None,
        help="a network, by the import path of its class or by the folder of a run: adds the Fréchet "
        "distance, and precision and recall, of as many samples as data, over its features",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the draws")
    values = parse(parser, arguments)
    from vae_fast.evaluate.run import as_text, evaluate_run

    begin_work()

    report = evaluate_run(
        values.run,
        checkpoint=checkpoint_of(values),
        data=values.data,
        samples=values.n,
        num_samples=values.num_samples,
        device=values.device,
        seed=values.seed,
        normal=values.normal,
        labels_per_class=values.labels_per_class,
        network=values.features,
        trust=values.trust,
        data_options=None if values.data is None else data_options(values),
    )
    print(f"{report['model']} at step {report['step']}, on {report['data']}, in nats per sample")
    print(as_text(report))
    return 0


def anomaly(arguments: list[str], program: str) -> int:
    """score how unlike the training data samples are, with a threshold and a histogram"""
    parser = run_parser(
        program, anomaly.__doc__, ".npy scores, and a .png histogram beside", (".npy",)
    )
    add_samples(parser, 0)
    parser.add_argument(
        "--score", type=str, default="elbo", help="elbo, nll (importance-sampled) or reconstruction"
    )
    parser.add_argument("--num_samples", type=int, default=10, help="draws of z for each score")
    parser.add_argument(
        "--quantile",
        type=float,
        default=0.95,
        help="the part of the run's validation data below the threshold",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the draws")
    choices = ("elbo", "nll", "reconstruction")
    values = parse(parser, arguments, one_of("score", *choices), whole_numbers("num_samples"))
    import numpy as np
    import torch

    from vae_fast.tasks import anomaly_scores, anomaly_threshold
    from vae_fast.tasks.pictures import draw_score_histogram

    restored, looked_at = model_and_samples(values, keep_sparse=True, in_order=True)
    options = {"score": values.score, "num_samples": values.num_samples}
    torch.manual_seed(values.seed)
    scores = anomaly_scores(restored.model, looked_at.x, looked_at.given, **options)
    normal = scores
    if values.data is not None:
        usual = samples_of(restored, None, 0, keep_sparse=True)
        normal = anomaly_scores(restored.model, usual.x, usual.given, **options)
    threshold = anomaly_threshold(normal, values.quantile)
    out = out_path(values, "anomaly_scores.npy")

    def save(path: Any) -> None:
        with open(path, "wb") as file:
            np.save(file, scores.float().cpu().numpy(), allow_pickle=False)

    write_file(out, save)
    write_file(
        out.with_suffix(".png"),
        lambda path: draw_score_histogram(
            path,
            normal,
            scores if values.data is not None else None,
            threshold=threshold,
            caption=caption(restored, looked_at.source, values.score),
        ),
    )
    above = int((scores > threshold).sum())
    print(f"Threshold {threshold:.2f} nats: {above} of {len(scores)} samples are above it")
    return 0
