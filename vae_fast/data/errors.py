"""The error for data that cannot be found."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


class DataUnavailableError(RuntimeError):
    """A data set was asked for by name and none of its possible places has it.

    The message lists the places tried, in order, with the reasons, and says how to get the data.

    Args:
        name: the data set's name.
        tried: one line for every place, with the reason why it failed.
        remedies: one line for every way to get the data.
    """

    def __init__(self, name: str, tried: Iterable[str], remedies: Iterable[str]):
        self.name = name
        self.tried = list(tried)
        self.remedies = list(remedies)
        super().__init__(
            f"the data set {name!r} was not found.\nTried:\n"
            + "".join(f"  - {line}\n" for line in self.tried)
            + "To get it, do one of:\n"
            + "".join(f"  - {line}\n" for line in self.remedies).rstrip("\n")
        )

    def __reduce__(self) -> Any:
        # The default would call __init__ with the message alone, and so break in worker processes.
        return type(self), (self.name, self.tried, self.remedies)
