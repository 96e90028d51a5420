"""Deletion and insertion (Petsiuk et al. 2018, RISE): does the answer hang on the patches that a map calls relevant?

Deletion: patches are replaced by the picture's mean colour, the most relevant first; a good map makes the answer's probability
fall early. Insertion: they are put into a blurred picture; a good map makes it rise early.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2.functional import gaussian_blur

from ift_components.saliency.image_tokens import canvas_of, tiles_of
from ift_components.saliency.mapper import Grid
from ift_components.saliency.walk import Asked, Walk

STEPS = 12


@dataclass(frozen=True)
class Curves:
    """The answer's probability while patches are deleted or inserted.

    Attributes:
        shares: of the patches that are replaced, [steps + 1], 0 to 1.
        deletion: probability at each share.
        insertion: likewise.
    """

    shares: npt.NDArray[np.float64]
    deletion: npt.NDArray[np.float64]
    insertion: npt.NDArray[np.float64]

    @property
    def areas(self) -> tuple[float, float]:
        """The areas under both curves, by trapezoids: low is good for deletion, high for insertion."""
        return float(np.trapezoid(self.deletion, self.shares)), float(np.trapezoid(self.insertion, self.shares))


def centre_grid(rows: int, columns: int) -> Grid:
    """Return the map that looks at the middle whatever the picture: a Gaussian of a quarter of the side, adding up to 1."""
    y, x = (2 * (np.arange(count) + 0.5) / count - 1 for count in (rows, columns))
    grid = np.exp(-(y[:, None] ** 2 + x[None, :] ** 2) / (2 * 0.5**2))
    return (grid / grid.sum()).astype(np.float32)


def random_grids(rows: int, columns: int, count: int, generator: np.random.Generator) -> list[Grid]:
    """Return maps of random numbers."""
    grids = generator.random((count, rows, columns)).astype(np.float32)
    return [grid / grid.sum() for grid in grids]


def order_of(grid: Grid, generator: np.random.Generator) -> npt.NDArray[np.intp]:
    """Return the patches from the most relevant down; equals in random order, or the picture's corner would come first."""
    chance = generator.random(grid.size)
    return np.lexsort((chance, -grid.reshape(-1)))


def _replaced(canvas: Tensor, other: Tensor, order: npt.NDArray[np.intp], shape: tuple[int, int], steps: int) -> Tensor:
    """Return a canvas [3, h, w] with the first patches of an order taken from another one, [steps + 1, 3, h, w]."""
    counts = np.rint(np.linspace(0, len(order), steps + 1)).astype(int)
    masks = torch.zeros(steps + 1, len(order))
    for row, count in enumerate(counts):
        masks[row, torch.from_numpy(order[:count].copy())] = 1
    by_pixel = F.interpolate(masks.view(-1, 1, *shape), size=canvas.shape[-2:], mode="nearest")
    return canvas * (1 - by_pixel) + other * by_pixel


def curves(
    walk: Walk,
    pixels: Tensor,
    asked: Asked,
    chosen: Sequence[int],
    *,
    grids: Sequence[Grid],
    generator: np.random.Generator,
    steps: int = STEPS,
) -> list[Curves]:
    """Return deletion and insertion curves of several maps of one answer.

    Args:
        walk: the model.
        pixels: [down, across, 3, h, w].
        asked: prompt and answer.
        chosen: the answer tokens whose probability is followed.
        grids: the maps, [rows, columns] each.
        generator: breaks ties.
        steps: patches are replaced in so many steps, at most one a patch.
    """
    steps = min(steps, grids[0].size)
    canvas = canvas_of(pixels)
    mean = canvas.mean(dim=(-2, -1), keepdim=True).expand_as(canvas)
    patch = canvas.shape[-1] // grids[0].shape[1]
    blurred = gaussian_blur(canvas, kernel_size=[4 * patch + 1, 4 * patch + 1], sigma=[float(patch)] * 2)
    batches = []
    for grid in grids:
        order = order_of(grid, generator)
        shape = (grid.shape[0], grid.shape[1])
        batches += [_replaced(canvas, mean, order, shape, steps), _replaced(blurred, canvas, order, shape, steps)]
    tiles = tiles_of(torch.cat(batches), *pixels.shape[:2])
    values = walk.probabilities(tiles, asked, chosen).double().numpy().reshape(len(grids), 2, -1)
    shares = np.linspace(0, 1, steps + 1)
    return [Curves(shares, deletion, insertion) for deletion, insertion in values]
