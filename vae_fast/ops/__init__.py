"""The native ops under autograd, one module per family; imported only where ``_C`` is built.

Each module has the calls of ``torch.ops.vae_fast``, the autograd wrappers, and the fake kernels for
torch.compile. ``vae_fast.functional`` has checked the arguments.
"""
