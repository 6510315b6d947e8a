"""The names of the package, ``vae_fast.NAME``; importing it registers every op."""

from vae_fast import distributions, noise
from vae_fast.backend import empty_cache, get_backend, has_native, set_backend
from vae_fast.functional import (
    FUNCTIONS,
    aggregate_log_densities,
    bce_kl_loss,
    bernoulli_nll,
    bernoulli_nll_samples,
    decomposed_kl,
    elbo,
    gather_batch,
    gaussian_kl,
    group_norm_silu,
    iwae_bound,
    linear_bernoulli_nll,
    mixture_log_density,
    mmd,
    nearest_code,
    nll,
    reparameterize,
    sample_and_kl,
    split_moments,
    total_correlation,
)
from vae_fast.loader import DataLoader
from vae_fast.nn import (
    VAE,
    BCEKLLoss,
    Decoder,
    Encoder,
    GroupNormSiLU,
    Reparameterize,
    loss_function,
)
from vae_fast.patches import Patch, patch
from vae_fast.system import info
from vae_fast.types import LossOutput

globals().update(FUNCTIONS)  # gaussian_nll, laplace_nll, ...: one for each family of likelihoods

if has_native("cpu"):
    # No function below calls it; every op has its fake kernel once the package is imported.
    import vae_fast.ops.norm
    import vae_fast.ops.step  # noqa: F401

__all__ = [
    "VAE",
    "BCEKLLoss",
    "DataLoader",
    "Decoder",
    "Encoder",
    "GroupNormSiLU",
    "LossOutput",
    "Patch",
    "Reparameterize",
    "aggregate_log_densities",
    "bce_kl_loss",
    "bernoulli_nll",
    "bernoulli_nll_samples",
    "decomposed_kl",
    "distributions",
    "elbo",
    "empty_cache",
    "gather_batch",
    "gaussian_kl",
    "get_backend",
    "group_norm_silu",
    "info",
    "iwae_bound",
    "linear_bernoulli_nll",
    "loss_function",
    "mixture_log_density",
    "mmd",
    "nearest_code",
    "nll",
    "noise",
    "patch",
    "reparameterize",
    "sample_and_kl",
    "set_backend",
    "split_moments",
    "total_correlation",
]
__all__ += FUNCTIONS  # noqa: PLE0605
