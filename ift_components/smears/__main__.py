"""Draws a sheet of cells in both styles: `python -m ift_components.smears SHEET.png`."""

import argparse
from pathlib import Path

import numpy as np

from ift_components.smears import contact_sheet, sample_cells

_CELLS = 24


def main() -> None:
    """Draw the sheet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sheet", type=Path, help="the PNG file to write")
    path = parser.parse_args().sheet
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    contact_sheet(sample_cells(_CELLS, generator), generator, path)
    print(path)


if __name__ == "__main__":
    main()
