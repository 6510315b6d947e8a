"""An exception as one sentence for the terminal."""

from __future__ import annotations

from vae_fast.cli.flags import Usage

KNOWN = (ValueError, TypeError, OSError, RuntimeError, ImportError, Usage)


def sentence(error: Exception) -> str:
    """The error in one line."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    text = str(error)
    if isinstance(error, MemoryError):
        return f"there is too little memory: {text or 'an allocation failed'}"
    if "Traceback (most recent call last)" in text:  # of a worker process
        text = text.strip().splitlines()[-1]
    # torch appends the C++ stack.
    text = " ".join(text.partition("\nException raised from ")[0].split())
    if "can't allocate memory" in text or "out of memory" in text:
        return f"there is too little memory: {text}"
    if isinstance(error, KNOWN) and text:
        return text
    return (
        f"{type(error).__name__}: {text}".rstrip(": ")
        + " (unexpected; --traceback shows where it came from)"
    )


def status(error: Exception) -> int:
    return 2 if isinstance(error, Usage) else 1
