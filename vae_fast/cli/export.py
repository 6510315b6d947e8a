"""vae-fast export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vae_fast.cli.flags import one_of, parse
from vae_fast.cli.runs import checkpoint_of, restore, run_parser

FORMATS = ("torch", "onnx", "pretrained")


def export(arguments: list[str], program: str) -> int:
    """write a trained model for others: torch.export, ONNX, or Hugging Face's folder"""
    parser = run_parser(program, export.__doc__)
    parser.add_argument(
        "--format",
        type=str,
        default="torch",
        help="torch or onnx (encoder, decoder and sampler, a file each), or pretrained "
        "(model.safetensors, config.json and a model card)",
    )
    parser.add_argument(
        "--out", type=str, default=None, help="the folder; export-FORMAT in the run if not given"
    )
    parser.add_argument(
        "--push",
        type=str,
        default=None,
        help="with pretrained: the repository to upload to as well",
    )
    parser.check = None  # --out is a folder
    values = parse(parser, arguments, one_of("format", *FORMATS), _check_push)
    out = Path(values.out or Path(values.run) / f"export-{values.format}")
    from vae_fast import hub

    if values.format == "pretrained":
        made: Any = hub.pretrained(values.run, checkpoint_of(values), trust=values.trust)
        made.save_pretrained(out)
        print(f"{out}: a {made.described['model']}, to be loaded with from_pretrained")
        if values.push:
            print(made.push_to_hub(values.push))
        return 0
    for path in hub.export(restore(values).model.cpu(), out, values.format):
        print(path)
    return 0


def _check_push(values: Any) -> None:
    from vae_fast.cli.flags import Usage

    if values.push and values.format != "pretrained":
        raise Usage(
            f"--push uploads a pretrained model: add --format pretrained, not {values.format}"
        )
