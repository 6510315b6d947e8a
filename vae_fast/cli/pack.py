"""vae-fast pack."""

from __future__ import annotations

import shlex
import signal
from math import prod

from vae_fast.cli.flags import add_data_options, data_options, make_parser, parse
from vae_fast.cli.interrupts import begin_work


def pack(arguments: list[str], program: str) -> int:
    """write data as uint8 shards, for sets larger than memory"""
    parser = make_parser(program, pack.__doc__)
    parser.add_argument("source", type=str, help="a name, a file, or a folder of images")
    parser.add_argument("out", type=str, help="the folder of shards; resumed if it is cut short")
    parser.add_argument(
        "--split",
        type=str,
        default=None,
        help="train, val or test; if not given, all of one's own data, or train where a folder has splits",
    )
    parser.add_argument("--shard_bytes", type=int, default=16 << 20, help="size of a shard, about")
    parser.add_argument("--seed", type=int, default=0, help="of the order of the samples")
    parser.add_argument("--workers", type=int, default=None, help="processes; one per core if none")
    add_data_options(parser)
    values = parse(parser, arguments)
    from vae_fast import data as datasets
    from vae_fast.train.display import ProgressBar

    begin_work()
    source, options = values.source, data_options(values)
    if values.split is not None:
        source = datasets.load(source, split=values.split, options=options)
        options = None
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # which ends the workers too
    with ProgressBar(values.out, "samples") as counter:
        packed = datasets.pack(
            source,
            values.out,
            shard_bytes=values.shard_bytes,
            seed=values.seed,
            workers=values.workers,
            progress=counter.show,
            options=options,
        )
    bytes_ = len(packed) * prod(packed.shape) * packed.dtype.itemsize
    print(
        f"{len(packed):,} samples of {'x'.join(map(str, packed.shape))} in {values.out}, "
        f"{bytes_ / 1e6:,.0f} MB; vae-fast train --data {shlex.quote(values.out)} trains on them"
    )
    return 0
