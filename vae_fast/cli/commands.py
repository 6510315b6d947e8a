"""The commands by name. Each is a function in a module of this folder.

A command takes its arguments and the program's name for messages, and returns the exit status. Its
docstring is its line in the overview.
"""

from __future__ import annotations

from collections.abc import Callable

from vae_fast.cli.compress import compress, decompress
from vae_fast.cli.export import export
from vae_fast.cli.fill import denoise, inpaint, translate
from vae_fast.cli.info import info
from vae_fast.cli.latent import attribute, encode, interpolate, latent_map, traverse
from vae_fast.cli.measure import anomaly, evaluate
from vae_fast.cli.pack import pack
from vae_fast.cli.show import reconstruct, sample
from vae_fast.cli.train import resume, train

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
    "export": export,
    "pack": pack,
    "info": info,
}


def overview(program: str) -> str:
    width = max(map(len, COMMANDS))
    lines = [f"usage: {program} COMMAND ...", ""]
    lines += [f"  {name:{width}s}  {command.__doc__}" for name, command in COMMANDS.items()]
    lines += ["", f"{program} COMMAND --help shows a command's flags."]
    lines += ["With --traceback, a command that fails shows where in the code it did."]
    return "\n".join(lines)
