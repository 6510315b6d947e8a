"""The public functions, which check their arguments and use native kernels or plain PyTorch.

Dim 0 is samples, and every other dim is features; a 1-D tensor is one sample. Losses are in nats.
Inputs may be float32, float64, bfloat16 or float16, contiguous or not. Sums are float32 (float64
for float64 inputs), and gradients have their input's dtype. Plain PyTorch computes second
derivatives and ``torch.func`` transforms.
"""

from vae_fast.functional.bernoulli import (
    bce_kl_loss,
    bernoulli_nll,
    bernoulli_nll_samples,
    linear_bernoulli_nll,
)
from vae_fast.functional.gather import gather_batch
from vae_fast.functional.gaussian import (
    gaussian_kl,
    reparameterize,
    sample_and_kl,
    split_moments,
)
from vae_fast.functional.group_norm import group_norm_silu
from vae_fast.functional.importance import iwae_bound
from vae_fast.functional.likelihood import FUNCTIONS as FUNCTIONS
from vae_fast.functional.likelihood import elbo, nll
from vae_fast.functional.pairwise import (
    aggregate_log_densities,
    decomposed_kl,
    mixture_log_density,
    mmd,
    nearest_code,
    total_correlation,
)

globals().update(FUNCTIONS)  # gaussian_nll, laplace_nll, ...: one for each family of likelihoods

__all__ = [
    "aggregate_log_densities",
    "bce_kl_loss",
    "bernoulli_nll",
    "bernoulli_nll_samples",
    "decomposed_kl",
    "elbo",
    "gather_batch",
    "gaussian_kl",
    "group_norm_silu",
    "iwae_bound",
    "linear_bernoulli_nll",
    "mixture_log_density",
    "mmd",
    "nearest_code",
    "nll",
    "reparameterize",
    "sample_and_kl",
    "split_moments",
    "total_correlation",
]
__all__ += FUNCTIONS  # noqa: PLE0605
