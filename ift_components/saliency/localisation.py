"""Where a map's relevance lies in drawn smears, whose parts are known: inside the cell, and inside the part asked about."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from ift_components.saliency.mapper import Grid

Mask = npt.NDArray[np.bool_]

PART_ASKED = {
    "cell size": "cell",
    "cell shape": "cell",
    "label": "cell",
    "nuclear cytoplasmic ratio": "cell",
    "nucleus shape": "nucleus",
    "chromatin density": "nucleus",
    "cytoplasm vacuole": "cytoplasm",
    "cytoplasm texture": "cytoplasm",
    "cytoplasm colour": "cytoplasm",
    "granularity": "granules",
    "granule type": "granules",
    "granule colour": "granules",
}


@dataclass(frozen=True)
class Location:
    """How much of a map lies within a mask.

    Attributes:
        share: of the map's relevance; a map without any counts as even.
        pointing: of the most relevant patch's pixels that lie within the mask (the pointing game of Zhang et al. 2016, with a
            patch for a point).
        area: of the picture's pixels: what an even map would have of both.
    """

    share: float
    pointing: float
    area: float


def part_asked(attribute: str, masks: Mapping[str, Mask]) -> str:
    """Return the part of a cell that a question is about; of a cell without granules, its cytoplasm, where they would be."""
    part = PART_ASKED.get(attribute, "cell")
    return part if masks[part].any() else "cytoplasm"


def locate(grid: Grid, mask: Mask) -> Location:
    """Return how much of a map lies within a mask.

    Args:
        grid: [rows, columns] over the picture.
        mask: [h, w] over the same picture.
    """
    # What a patch covers of the mask: the mean of its pixels, whatever the sizes of both.
    covered = F.adaptive_avg_pool2d(
        torch.from_numpy(mask.astype(np.float32))[None, None], (grid.shape[0], grid.shape[1])
    )[0, 0].numpy()
    area, total = float(mask.mean()), float(grid.sum())
    if total <= 0:
        return Location(area, area, area)
    tops = covered[grid == grid.max()]
    return Location(float((grid * covered).sum() / total), float(tops.mean()), area)
