"""Other libraries' training sped up where it stands: ``vae_fast.patch("scvi")``.

One module a library says which of its functions are replaced by what. A function whose source is not
the one that the replacement was written for is left alone, with a warning.
"""

from vae_fast.patches.core import LIBRARIES, Outcome, Patch, patch

__all__ = ["LIBRARIES", "Outcome", "Patch", "patch"]
