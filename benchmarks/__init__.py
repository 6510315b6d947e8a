"""Benchmarks: every op and the whole training step, compared with their usual alternatives.

``python -m benchmarks`` measures, checks, and prints one table; see ``__main__`` for its options.
A file ``bench_<family>.py`` holds everything about one family of ops: its ``setup_`` functions, for
speed and memory, the peers' implementations, and the bytes counted by hand.
"""
