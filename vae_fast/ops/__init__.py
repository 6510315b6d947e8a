"""The native ops under autograd, one module per family; imported only where ``_C`` is built.

Each module has the call into ``torch.ops.vae_fast``, the fake kernels that torch.compile traces
with, and the autograd wrappers. Arguments have been checked by ``vae_fast.functional``.
"""
