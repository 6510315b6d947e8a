"""Benchmarks: every op and the whole training step beside the peers one would otherwise use.

``python -m benchmarks`` measures, checks, and prints one table; see ``__main__`` for its options.
A file ``bench_<family>.py`` holds all there is about one family of ops: its ``setup_`` functions,
which serve speed and memory alike, the peers' spellings, and the bytes counted by hand.
"""
