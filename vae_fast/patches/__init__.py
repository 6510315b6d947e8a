"""Faster functions inside other libraries: ``vae_fast.patch("scvi")``.

One module per library lists the replaced functions and their replacements. A function whose source
differs from the one that the replacement was written for is not replaced, with a warning.
"""

from vae_fast.patches.core import LIBRARIES, Outcome, Patch, patch

__all__ = ["LIBRARIES", "Outcome", "Patch", "patch"]
