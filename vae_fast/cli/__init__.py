"""The command line: vae-fast COMMAND ..., the commands are in ``commands.py``.

This module is imported first and imports little, because Ctrl-C may come at any time.
"""

from __future__ import annotations

import atexit
import os
import sys
import warnings
from collections.abc import Sequence
from typing import NoReturn

from vae_fast.cli import interrupts

PROGRAM = "vae-fast"


def script() -> int:
    """The entry point of the program vae-fast and of ``python -m vae_fast``: runs ``main``."""
    for stream in (sys.stdout, sys.stderr):  # an ASCII locale cannot print every file name
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    warnings.formatwarning = _warning  # without the code's file, line and text
    with interrupts.quiet(lambda: _fail(f"{PROGRAM} {_command(sys.argv[1:])}", "interrupted", 130)):
        status = main()
    if os.environ.get("WORLD_SIZE", "1") != "1" or interrupts.came:
        _end(status)
    return status


def _end(status: int) -> NoReturn:
    """End the process without the interpreter's teardown.

    A thread of torch.distributed releases a collective's tensors after the waiting thread has gone
    on. During the teardown this aborts the process, and torchrun then reports a finished run as a
    failed one. An import that Ctrl-C cut short can do the same.
    """
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, 1 (failure) or 2 (usage error)."""
    argv = list(sys.argv[1:] if argv is None else argv)
    show_traceback = "--traceback" in argv
    argv = [argument for argument in argv if argument != "--traceback"]
    program = f"{PROGRAM} {_command(argv)}".rstrip()
    try:
        return _run(argv, program)
    except KeyboardInterrupt:
        return _fail(program, "interrupted", 130)
    except Exception as error:  # noqa: BLE001 (shown, in a sentence)
        if interrupts.came and not show_traceback:
            return _fail(program, "interrupted", 130)
        if show_traceback:
            import traceback

            traceback.print_exc()
        from vae_fast.cli.sentences import sentence, status

        return _fail(program, sentence(error), status(error))


def _warning(message: Warning | str, *_: object, **__: object) -> str:
    return f"{PROGRAM}: warning: {message}\n"


def _command(argv: Sequence[str]) -> str:
    return argv[0] if argv and not argv[0].startswith("-") else ""


def _run(argv: list[str], program: str) -> int:
    from vae_fast.cli.commands import COMMANDS, overview

    if not argv or argv[0] in ("-h", "--help", "help"):
        print(overview(PROGRAM))
        return 0 if argv else 2
    name, arguments = argv[0], argv[1:]
    if name == "--version":
        name = "info"
    if name not in COMMANDS:
        commands = ", ".join(COMMANDS)
        return _fail(PROGRAM, f"{name!r} is not a command; the commands are {commands}", 2)
    return COMMANDS[name](arguments, program)


def _fail(program: str, message: str, status: int) -> int:
    many = os.environ.get("WORLD_SIZE", "1") != "1"
    rank = f"rank {os.environ.get('RANK', '?')}: " if many else ""
    print(f"{program.strip()}: error: {rank}{message}", file=sys.stderr)
    return status


def __getattr__(name: str) -> object:
    if name != "COMMANDS":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from vae_fast.cli.commands import COMMANDS

    return COMMANDS
