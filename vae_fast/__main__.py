"""``python -m vae_fast``: the command line without the script, as torchrun needs it."""

from vae_fast.cli import script

if __name__ == "__main__":
    raise SystemExit(script())
