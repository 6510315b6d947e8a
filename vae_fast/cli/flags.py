"""Flags: jsonargparse, with dashes as people type them, and mistakes in readable sentences."""

from __future__ import annotations

import argparse
import difflib
import re
from typing import Any


class Usage(Exception):
    """The command line itself is wrong."""


def make_parser(program: str, description: str | None) -> Any:
    from vae_fast.train.extras import need

    jsonargparse = need("jsonargparse", "the command line")
    need("yaml", "the command line")

    class Parser(jsonargparse.ArgumentParser):
        """Shows flags with dashes, as people type them."""

        def format_help(self) -> str:
            return _dashed(super().format_help())

    return Parser(prog=program, description=description, exit_on_error=False)


def parse(parser: Any, arguments: list[str]) -> Any:
    """Parse flags with dashes or underscores; mistakes raise Usage with one readable sentence."""
    try:
        return parser.parse_args([_underscored(argument) for argument in arguments])
    except argparse.ArgumentError as error:
        raise Usage(_readable(str(error), parser)) from None


def _underscored(argument: str) -> str:
    """--batch-size=4 as --batch_size=4, the name of the dataclass's field."""
    if not argument.startswith("--"):
        return argument
    flag, equals, value = argument.partition("=")
    return "--" + flag[2:].replace("-", "_") + equals + value


def _dashed(text: str) -> str:
    return re.sub(r"--\w[\w.]*", lambda flag: flag[0].replace("_", "-"), text)


def _readable(message: str, parser: Any) -> str:
    """A jsonargparse message in the words of the command line, where it is one we know."""
    known = [flag for action in parser._actions for flag in action.option_strings]
    if found := re.match(r"unrecognized arguments: (--[^\s=]+)", message):
        return f"there is no flag {_dashed(found[1])}{_nearest(found[1], known)}"
    if found := re.search(
        r"(?:Option|Key) ['\"]([\w.]+)['\"] is not (?:accepted|expected)", message
    ):
        return _no_such_key(found[1], known)
    if found := re.search(r"Group '([\w.]+)' does not accept option '([\w.]+)'", message):
        return _no_such_key(f"{found[1]}.{found[2]}", known)
    if found := re.search(
        r'key "([\w.]+)":\s+Expected an? <class \'(\w+)\'>. Got value: (.*)', message
    ):
        return f"--{found[1].replace('_', '-')} takes a value of type {found[2]}, got {found[3]}"
    return _dashed(message)


def _no_such_key(key: str, known: list[str]) -> str:
    near = _nearest(key, [flag.lstrip("-") for flag in known])
    return f"the config file's key {key} does not exist{near}"


def _nearest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {_dashed(near[0])}?" if near else ""
