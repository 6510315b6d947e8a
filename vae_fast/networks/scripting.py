"""A clear error for modules that TorchScript cannot compile."""

from __future__ import annotations

from typing import NoReturn


class NotScriptable:
    """A module for ``torch.export`` and ``torch.jit.trace``, but not for ``torch.jit.script``."""

    def __prepare_scriptable__(self) -> NoReturn:  # torch.jit.script calls it on every module
        raise TypeError(
            f"{type(self).__name__} can't be compiled by torch.jit.script, which torch has given up: "
            "use torch.export.export(module.eval(), (x,)) or torch.jit.trace(module.eval(), x); of a "
            "model take its encoder and its decoder"
        )
