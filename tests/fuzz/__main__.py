"""python -m tests.fuzz: random calls of every public function against float64, and of every reader.

python -m tests.fuzz [--calls 10000] [--files 3000] [--seed N]
python -m tests.fuzz NAME SEED      one call or file again, as a failure names it
"""

from __future__ import annotations

import argparse
import sys
import time

from tests.fuzz import calls, check, files


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("again", nargs="*", metavar="NAME SEED", help=argparse.SUPPRESS)
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--files", type=int, default=3_000)
    parser.add_argument("--seed", type=int, help="default: another one every time")
    options = parser.parse_args()
    if lacking := calls.without_generator():
        sys.exit(f"tests/fuzz/calls.py lacks generators, or has extra ones: {', '.join(lacking)}")
    if options.again:
        name, number = options.again[0], int(options.again[1])
        (check.check if name in calls.GENERATORS else files.check)(name, number)
        print(f"{name} {number} is right")
        return 0
    seed = options.seed if options.seed is not None else time.time_ns() % 1_000_000
    print(f"seed {seed}: {options.calls} calls, {options.files} files", flush=True)
    found = check.run(seed, options.calls) + files.run(seed, options.files)
    for failure in found[:20]:
        print(f"\n--- {failure}")
    print(f"\n{len(found)} failures; again: python -m tests.fuzz --seed {seed}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
