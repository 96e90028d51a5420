"""A map over its picture, with a scale."""

from collections.abc import Sequence

import matplotlib
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

_SIDE = 448  # pixels of the picture in an overlay
_GAP, _BAR, _TEXT = 12, 18, 66


def palette() -> npt.NDArray[np.uint8]:
    """Return the colours of a map from nothing (blue) to most (red), [256, 3]."""
    colours = matplotlib.colormaps["turbo"](np.linspace(0, 1, 256))[:, :3]
    return np.asarray(np.rint(colours * 255), dtype=np.uint8)


def overlay(
    picture: Image.Image, grid: npt.NDArray[np.floating], opacity: float = 0.75, side: int = _SIDE
) -> Image.Image:
    """Return a picture with a map over it and a scale beside it; red is the most relevant patch, blue is none.

    Args:
        picture: the picture as it is; it is shown squashed, as the model sees it.
        grid: [rows, columns], at least 0.
        opacity: of the map where it is at its highest.
        side: side of the square picture in pixels.
    """
    most = float(grid.max())
    scaled = np.asarray(grid / most if most > 0 else grid, dtype=np.float32)
    smooth = np.asarray(Image.fromarray(scaled).resize((side, side), Image.Resampling.BILINEAR))
    colours = palette()
    coloured = Image.fromarray(colours[np.clip(np.rint(smooth * 255), 0, 255).astype(np.intp)])
    base = picture.convert("RGB").resize((side, side), Image.Resampling.BILINEAR)
    # What has no relevance stays as it is in the picture.
    veil = Image.fromarray(np.rint(smooth * opacity * 255).astype(np.uint8))
    sheet = Image.new("RGB", (side + _GAP + _BAR + _TEXT, side), "white")
    sheet.paste(Image.composite(coloured, base, veil), (0, 0))
    bar = Image.fromarray(np.repeat(colours[::-1, None], _BAR, axis=1)).resize((_BAR, side), Image.Resampling.BILINEAR)
    sheet.paste(bar, (side + _GAP, 0))
    draw = ImageDraw.Draw(sheet)
    _label(draw, side, (most, most / 2, 0.0))
    return sheet


def _label(draw: ImageDraw.ImageDraw, side: int, values: Sequence[float]) -> None:
    """Write the share of the map that a patch of each colour has."""
    for place, value in enumerate(values):
        y = round(place * (side - 14) / (len(values) - 1))
        draw.text((side + _GAP + _BAR + 5, y), f"{100 * value:.1f} %", (40, 40, 40), font_size=12)
