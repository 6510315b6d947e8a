"""Ctrl-C on the command line: a message and exit status 130, without a traceback.

Until a command begins its work nothing can be lost, so the process ends at once. An exception
during an import could be swallowed, or shown as a traceback.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_leave: Callable[[int, FrameType | None], None] | None = None  # the handler, while it is installed
# Whether Ctrl-C came while a command worked. The exception may arrive as another one: a C++ library
# that is being imported turns it into an ImportError.
came = False


@contextmanager
def quiet(say: Callable[[], int]) -> Iterator[None]:
    """Within the block, Ctrl-C calls ``say`` and ends the process with the status that it returns.

    A signal that is ignored, as by nohup, stays ignored.
    """
    global _leave
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return

    def leave(number: int, frame: FrameType | None) -> None:
        # a second one would only cut the message short
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        status = say()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)

    def unraisable(failed: sys.UnraisableHookArgs) -> None:
        # Python drops exceptions in destructors, also that of Ctrl-C: handle it here.
        if isinstance(failed.exc_value, KeyboardInterrupt):
            leave(signal.SIGINT, None)
        sys.__unraisablehook__(failed)

    _leave = leave
    sys.unraisablehook = unraisable
    signal.signal(signal.SIGINT, leave)
    try:
        yield
    finally:
        # Only the interpreter's shutdown is left.
        signal.signal(signal.SIGINT, leave)


def begin_work() -> None:
    """From here on Ctrl-C raises an exception, so that half-written files can be removed, and long
    reading says how far it is."""
    if os.environ.get("RANK", "0") == "0":
        _show_progress()
    if _leave is not None and signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    global came
    came = True
    raise KeyboardInterrupt


class _OnStderr(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr, flush=True)


def _show_progress() -> None:
    """Show what the data's readers log, unless the process has set up a logger of its own."""
    logger = logging.getLogger("vae_fast.data")
    if not logger.hasHandlers():
        logger.addHandler(_OnStderr())
        logger.setLevel(logging.INFO)
