"""Evaluate a model: likelihoods, latent units, disentanglement, decisions. In nats."""

from vae_fast.evaluate.disentanglement import (
    factor_vae_score,
    factor_vae_score_of_codes,
    mutual_information_gap,
)
from vae_fast.evaluate.factors import DCI, dci, modularity, sap
from vae_fast.evaluate.generated import (
    PrecisionRecall,
    frechet_distance,
    network_features,
    precision_recall,
)
from vae_fast.evaluate.labels import anomaly_auroc, few_label_accuracy, few_per_class
from vae_fast.evaluate.latents import active_units, kl_per_dimension
from vae_fast.evaluate.report import evaluate, pixel_kind
from vae_fast.evaluate.run import evaluate_run
from vae_fast.evaluate.scores import accuracy, auroc
from vae_fast.tasks.encode import features
from vae_fast.tasks.likelihood import (
    bits_per_dimension,
    elbo,
    importance_nll,
    reconstruction_error,
)

__all__ = [
    "DCI",
    "PrecisionRecall",
    "accuracy",
    "active_units",
    "anomaly_auroc",
    "auroc",
    "bits_per_dimension",
    "dci",
    "elbo",
    "evaluate",
    "evaluate_run",
    "factor_vae_score",
    "factor_vae_score_of_codes",
    "features",
    "few_label_accuracy",
    "few_per_class",
    "frechet_distance",
    "importance_nll",
    "kl_per_dimension",
    "modularity",
    "mutual_information_gap",
    "network_features",
    "pixel_kind",
    "precision_recall",
    "reconstruction_error",
    "sap",
]
