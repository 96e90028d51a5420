"""Images per second that the drawn blood cells are drawn at, on one thread.

    python tests/benchmarks/smear_speed.py
    python tests/benchmarks/smear_speed.py --images 2000 --rounds 7 --side 84

The styles take turns, so that what else the machine does meets both; the median of the rounds is given.
"""

import argparse
import os
import statistics
import time

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"  # numpy reads them when it is imported

import numpy as np

from ift_components.smears import STYLES, draw_cells, sample_cells


def main() -> None:
    """Draw the same cells in every style, a few times, and print the speeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--side", type=int, default=84)
    args = parser.parse_args()
    generator = np.random.default_rng(0)
    codes = sample_cells(args.images, generator)
    speeds: dict[str, list[float]] = {style: [] for style in STYLES}
    for style in STYLES:
        draw_cells(codes[:64], style, generator, side=args.side)
    for _ in range(args.rounds):
        for style in STYLES:
            start = time.perf_counter()
            draw_cells(codes, style, generator, side=args.side)
            speeds[style].append(args.images / (time.perf_counter() - start))
    for style, all_rounds in speeds.items():
        low, high = min(all_rounds), max(all_rounds)
        print(f"{style}: {statistics.median(all_rounds):.0f} images/s ({low:.0f} to {high:.0f}) at {args.side} px")


if __name__ == "__main__":
    main()
