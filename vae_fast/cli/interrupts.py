"""Ctrl-C on the command line: a word and exit status 130, and no traceback.

Until a command begins its work there is nothing to lose, so the process ends at once: an exception
in the midst of an import could be swallowed there, or shown.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_leave: Callable[[int, FrameType | None], None] | None = None  # the handler, while it is in place


@contextmanager
def quiet(say: Callable[[], int]) -> Iterator[None]:
    """Within, Ctrl-C calls ``say`` and ends the process with the status that it returns.

    A signal that is ignored, as by nohup, stays ignored.
    """
    global _leave
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return

    def leave(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # another would only cut the word short
        status = say()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)

    def unraisable(failed: sys.UnraisableHookArgs) -> None:
        # Python drops an exception in a destructor, Ctrl-C's too: act on that one here.
        if isinstance(failed.exc_value, KeyboardInterrupt):
            leave(signal.SIGINT, None)
        sys.__unraisablehook__(failed)

    _leave = leave
    sys.unraisablehook = unraisable
    signal.signal(signal.SIGINT, leave)
    try:
        yield
    finally:
        # Nothing is left but Python's own end.
        signal.signal(signal.SIGINT, leave)


def begin_work() -> None:
    """From here on Ctrl-C is an exception, so that what is half-written can be removed."""
    if _leave is not None and signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)
