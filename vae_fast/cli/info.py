"""vae-fast info."""

from __future__ import annotations

from vae_fast.cli.flags import Usage, load_package
from vae_fast.cli.output import print_table


def info(arguments: list[str], program: str) -> int:
    """show versions, instruction sets and why a backend is missing"""
    if arguments in (["-h"], ["--help"], ["--help-all"]):
        print(f"usage: {program}\n\n{info.__doc__}")
        return 0
    if arguments:
        raise Usage(f"it takes no arguments, got {' '.join(arguments)}")
    load_package()
    import vae_fast

    print_table(vae_fast.info())
    return 0
