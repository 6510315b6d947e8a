"""Flags: jsonargparse with dashes in names, and usage errors in readable sentences."""

from __future__ import annotations

import argparse
import difflib
import os
import re
import sys
import textwrap
import threading
from collections.abc import Callable
from typing import Any

SILENT = 2.0  # seconds until a word about an import that takes long


class Usage(Exception):
    """A usage error."""


def make_parser(program: str, description: str | None) -> Any:
    from vae_fast.extras import need

    jsonargparse: Any = need("jsonargparse", "the command line")
    need("yaml", "the command line")

    class Parser(jsonargparse.ArgumentParser):  # type: ignore[misc]  # found at run time
        """A parser that shows flags with dashes."""

        check: Callable[[Any], None] | None = None  # called with the parsed values
        common: dict[str, str] | None = None  # all that --help shows of many flags, and its words
        every_flag = False  # --help-all

        def format_help(self) -> str:
            if self.every_flag:
                return _dashed(super().format_help())
            return _short_help(self)

    return Parser(
        prog=program,
        description=description,
        epilog="--help-all: every flag. --traceback: if this fails, show where in the code it did.",
        exit_on_error=False,
        allow_abbrev=False,
    )


def _short_help(parser: Any) -> str:
    """A line for each argument: the common ones where there are many, else all."""
    defaults = parser.get_defaults()
    actions = [a for a in parser._actions if a.dest != "help" and a.help != argparse.SUPPRESS]
    named = {a.dest.upper(): str(a.help) for a in actions if not a.option_strings}
    rows = dict(named)
    if parser.common is None:
        rows |= {_flag_of(a): str(a.help) for a in actions if a.option_strings}
    else:
        rows |= parser.common
    width = min(max(map(len, rows)) + 2, 32)
    lines = [f"usage: {' '.join([parser.prog, *named])} [--FLAG VALUE ...]", ""]
    lines += [parser.description, ""]
    for flag, words in rows.items():
        default = defaults.get(flag.split()[0][2:].replace("-", "_"))
        shown = "" if default is None or default is False or default == [] else f" [{default}]"
        text = textwrap.wrap(words + shown, 98 - width, break_on_hyphens=False)
        lines += [f"  {flag:{width}}{text[0]}", *(" " * (width + 2) + more for more in text[1:])]
    lines += ["", f"{parser.prog} --help-all has every flag, its type and its default.", ""]
    return "\n".join(lines)


def _flag_of(action: Any) -> str:
    """A flag and what kind of value it takes, such as --shard-bytes N."""
    flag = _dashed(action.option_strings[-1])
    kind = getattr(action, "_typehint", None) or action.type
    words = {"int": " N", "float": " X", "str": " TEXT"}
    value = "" if action.nargs == 0 else words.get(getattr(kind, "__name__", ""), " VALUE")
    return flag + value + " ..." * (action.nargs in ("+", "*"))


def parse(
    parser: Any, arguments: list[str], *checks: Callable[[Any], None], load: bool = True
) -> Any:
    """Parse flags with dashes or underscores; errors raise Usage with one readable sentence.

    Args:
        checks: called with the parsed values, in addition to ``parser.check``.
        load: import the package with its kernels once the flags are valid.
    """
    if "--help-all" in arguments:
        parser.every_flag, arguments = True, ["--help"]
    try:
        values = parser.parse_args([_underscored(argument) for argument in arguments])
    except argparse.ArgumentError as error:
        raise Usage(_readable(str(error), parser)) from None
    for check in (parser.check, *checks):
        if check is not None:
            check(values)
    if load:
        load_package()
    return values


def load_package() -> None:
    """Import torch and the package's public names, which takes seconds and registers all ops. If it
    takes longer, a line on stderr says what is going on.

    Call this before importing anything else that imports torch.
    """
    import vae_fast

    line = "loading PyTorch; the first time after it was installed this can take half a minute"
    told = threading.Timer(SILENT, print, (line,), {"file": sys.stderr, "flush": True})
    told.daemon = True
    if os.environ.get("RANK", "0") == "0":
        told.start()
    try:
        vae_fast._load()
    finally:
        told.cancel()


def whole_numbers(*names: str, least: int = 1) -> Callable[[Any], None]:
    """A check that these flags are at least ``least``."""

    def check(values: Any) -> None:
        for name in names:
            if getattr(values, name) < least:
                flag = name.replace("_", "-")
                raise Usage(f"--{flag} must be at least {least}, got {getattr(values, name)}")

    return check


def one_of(name: str, *choices: str) -> Callable[[Any], None]:
    """A check that this flag is one of ``choices``."""

    def check(values: Any) -> None:
        if getattr(values, name) not in choices:
            raise ValueError(
                f"--{name} must be one of {', '.join(choices)}, got {getattr(values, name)}"
            )

    return check


def _underscored(argument: str) -> str:
    """--batch-size=4 as --batch_size=4, the name of the dataclass's field."""
    if not argument.startswith("--"):
        return argument
    flag, equals, value = argument.partition("=")
    if flag.startswith("--data."):
        flag = "--data_options." + flag.removeprefix("--data.")
    return "--" + flag[2:].replace("-", "_") + equals + value


def _dashed(text: str) -> str:
    return re.sub(r"--\w[\w.]*", _dashed_flag, text)


def _dashed_flag(flag: re.Match[str]) -> str:
    return flag[0].replace("_", "-").replace("--data-options.", "--data.")


def add_data_options(parser: Any, default: str = "") -> None:
    """--data.size, --data.mode, --data.background and --data.damaged, of image files."""
    for name, kind, words in (
        ("size", int, "of image files: resize the shorter side to it, and cut out the square"),
        ("mode", str, "of image files: L (grey) or RGB"),
        ("background", str, "of image files: the colour behind transparent pixels"),
        ("damaged", str, "of image files: error, or skip to leave out those that can't be decoded"),
    ):
        help_ = words + (f"; {default}" if default else "")
        parser.add_argument(f"--data_options.{name}", type=kind, default=None, help=help_)


def data_options(values: Any, base: Any = None) -> Any:
    """The `DataOptions` of the given flags over ``base``; None if none is given."""
    from dataclasses import replace

    from vae_fast.data_options import DataOptions

    given = {k: v for k, v in vars(values.data_options).items() if v is not None}
    return replace(base or DataOptions(), **given) if given else None


def _readable(message: str, parser: Any) -> str:
    """A jsonargparse message in the command line's terms, if the message is a known one."""
    known = [flag for action in parser._actions for flag in action.option_strings]
    if found := re.match(r"unrecognized arguments: (--[^\s=]+)", message):
        return f"there is no flag {_dashed(found[1])}{nearest(found[1], known)}"
    if found := re.search(
        r'key "([\w.]+)":\s+Expected an? <class \'(\w+)\'>. Got value: (.*)', message
    ):
        return f"--{found[1].replace('_', '-')} takes a value of type {found[2]}, got {found[3]}"
    return _dashed(message)


def nearest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {_dashed(near[0])}?" if near else ""
