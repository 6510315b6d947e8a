"""Make examples/data/nino12.npz: two-year windows of the Pacific's temperature, a real time series.

    pip install statsmodels                 # brings the monthly values; nothing else needs it
    python scripts/make_nino.py [--out FILE]

The series is the sea's surface temperature off Peru, monthly from 1950 to 2010, by the U.S. National
Oceanic and Atmospheric Administration. A window is 24 months in a row, and the next begins a month
later. ``images`` is (N, 24) float32, (degrees Celsius - 15) / 15, in the order of time; ``month`` is
the calendar month, 0 to 11, in which each begins.
"""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

from make_fashion10k import write_npz

MONTHS, COLDEST, RANGE = 24, 15.0, 15.0


def monthly_values() -> np.ndarray:
    """732 temperatures, degrees Celsius, from statsmodels' copy of NOAA's table."""
    try:
        from statsmodels.datasets import elnino
    except ImportError:
        sys.exit("this needs statsmodels, which brings the series: pip install statsmodels")
    with open(Path(elnino.__file__).with_name("elnino.csv"), newline="") as file:
        years = list(csv.reader(file))[1:]
    return np.array([value for year in years for value in year[1:]], dtype=np.float64)


def windows(values: np.ndarray) -> np.ndarray:
    """(N, 24) float32 in [0, 1]."""
    scaled = ((values - COLDEST) / RANGE).astype(np.float32)
    return np.lib.stride_tricks.sliding_window_view(scaled, MONTHS).copy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "examples" / "data" / "nino12.npz")
    out = parser.parse_args().out
    found = windows(monthly_values())
    write_npz(out, {"images": found, "month": (np.arange(len(found)) % 12).astype(np.uint8)})
    print(f"{len(found)} windows of {MONTHS} months in {out}, {out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
