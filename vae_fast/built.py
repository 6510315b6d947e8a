"""The required content of the compiled library: the ops that this package calls, and the module's
names."""

from __future__ import annotations

import torch

from vae_fast.likelihoods import SPECS

# Each op with its number of arguments.
OPS = {
    "reparameterize": 4,
    "reparameterize_backward": 4,
    "reparameterize_keeping": 3,
    "gaussian_kl": 5,
    "gaussian_backward": 7,
    "gaussian_prior_backward": 9,
    "sample_and_kl": 6,
    "sample_and_kl_keeping": 6,
    "gather_batch": 6,
    "group_norm": 6,
    "group_norm_backward": 7,
    "step_sample": 2,
    "step_sample_backward": 5,
    "step_decide": 14,
    "step_update": 14,
    "euclidean_norm": 1,
    "pair_density": 8,
    "pair_density_backward": 10,
    "mmd": 5,
    "mmd_backward": 6,
    "nearest_code": 2,
}
# The ops of a likelihood, named LIKELIHOOD_OP: csrc/torch/likelihood.h.
OPS_OF_LIKELIHOOD = {
    "nll": 3,
    "nll_backward": 5,
    "nll_with_grad": 5,
    "nll_with_grad_out": 5,
    "elbo": 7,
    "elbo_backward": 11,
    "elbo_with_grad": 9,
}
NAMES = (
    "Step", "build_info", "cpu_capabilities", "cpu_capability", "likelihoods", "release_kept",
    "step_likelihoods", "usable_cpus",
)  # fmt: skip
# The interface of vae_fast._C_autograd: its functions with their numbers of arguments.
NODE_INTERFACE = (
    "add 6, set_again 2, nll 4, elbo 7, reparameterize 4, gaussian_kl 5, sample_and_kl 7"
)


def expected_ops() -> dict[str, int]:
    """Every op with its number of arguments."""
    of_likelihoods = {
        f"{name}_{op}": count for name in SPECS for op, count in OPS_OF_LIKELIHOOD.items()
    }
    return OPS | of_likelihoods


def why_stale(module: object) -> str | None:
    """What the library ``vae_fast._C`` lacks or has differently; None if it fits this package.

    A difference means that it was compiled from other sources than this package's.
    """
    wrong = [f"no {name}" for name in NAMES if not hasattr(module, name)]
    for name, count in expected_ops().items():
        op = getattr(torch.ops.vae_fast, name, None)
        if op is None:
            wrong.append(f"no op {name}")
        elif (found := len(op.default._schema.arguments)) != count:
            wrong.append(f"an op {name} of {found} arguments instead of {count}")
    if not wrong:
        return None
    more = f" and {len(wrong) - 3} more such differences" if len(wrong) > 3 else ""
    return ", ".join(wrong[:3]) + more
