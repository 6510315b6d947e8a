"""The command line: vae-fast COMMAND ..., each command a function in a file of this folder.

A command takes its arguments and the program's name as shown in messages, and returns the exit
status; its docstring is its line in the overview.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

from vae_fast.cli.compress import compress, decompress
from vae_fast.cli.fill import denoise, inpaint, translate
from vae_fast.cli.flags import Usage
from vae_fast.cli.info import info
from vae_fast.cli.latent import attribute, encode, interpolate, latent_map, traverse
from vae_fast.cli.measure import anomaly, evaluate
from vae_fast.cli.pack import pack
from vae_fast.cli.show import reconstruct, sample
from vae_fast.cli.train import resume, train

PROGRAM = "vae-fast"

COMMANDS: dict[str, Callable[[list[str], str], int]] = {
    "train": train,
    "resume": resume,
    "sample": sample,
    "reconstruct": reconstruct,
    "evaluate": evaluate,
    "anomaly": anomaly,
    "encode": encode,
    "latent-map": latent_map,
    "traverse": traverse,
    "interpolate": interpolate,
    "attribute": attribute,
    "inpaint": inpaint,
    "denoise": denoise,
    "translate": translate,
    "compress": compress,
    "decompress": decompress,
    "pack": pack,
    "info": info,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, 1 (it failed) or 2 (it was called wrongly)."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0 if argv else 2
    name, arguments = argv[0], argv[1:]
    if name == "--version":
        name = "info"
    if name not in COMMANDS:
        return _fail(
            PROGRAM, f"{name!r} is not a command; the commands are {', '.join(COMMANDS)}", 2
        )
    program = f"{PROGRAM} {name}"
    try:
        return COMMANDS[name](arguments, program)
    except Usage as error:
        return _fail(program, str(error), 2)
    except KeyboardInterrupt:
        return _fail(program, "interrupted", 130)
    except (ValueError, TypeError, OSError, RuntimeError, ImportError) as error:
        if isinstance(error, OSError) and error.filename is not None:
            return _fail(program, f"{error.filename}: {error.strerror}", 1)
        return _fail(program, str(error), 1)


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"usage: {PROGRAM} COMMAND ...", ""]
    lines += [f"  {name:{width}s}  {command.__doc__}" for name, command in COMMANDS.items()]
    lines += ["", f"{PROGRAM} COMMAND --help shows a command's flags."]
    return "\n".join(lines)


def _fail(program: str, message: str, status: int) -> int:
    rank = f"rank {os.environ['RANK']}: " if int(os.environ.get("WORLD_SIZE", "1")) > 1 else ""
    print(f"{program}: error: {rank}{message}", file=sys.stderr)
    return status
