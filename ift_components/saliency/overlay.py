"""A map over its picture, with a scale."""

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

_SIDE = 448  # pixels of the picture in an overlay
_GAP, _BAR, _TEXT = 12, 18, 66


def palette() -> npt.NDArray[np.uint8]:
    """Return the colours of a map from nothing (blue) to most (red), [256, 3]."""
    colours = mpl.colormaps["turbo"](np.linspace(0, 1, 256))[:, :3]
    return np.asarray(np.rint(colours * 255), dtype=np.uint8)


def overlay(
    picture: Image.Image, grid: npt.NDArray[np.floating], opacity: float = 0.75, side: int = _SIDE
) -> Image.Image:
    """Return a picture with a map over it and a scale beside it; red is the most relevant patch, blue is none.

    Args:
        picture: what the map lies over (`Mapper.canvas`); it is stretched to the size of the overlay.
        grid: [rows, columns], at least 0.
        opacity: of the map where it is at its highest.
        side: longer side of the picture in pixels.
    """
    most = float(grid.max())
    scaled = np.asarray(grid / most if most > 0 else grid, dtype=np.float32)
    scale = side / max(picture.size)
    width, height = (max(1, round(length * scale)) for length in picture.size)
    smooth = np.asarray(Image.fromarray(scaled).resize((width, height), Image.Resampling.BILINEAR))
    colours = palette()
    coloured = Image.fromarray(colours[np.clip(np.rint(smooth * 255), 0, 255).astype(np.intp)])
    base = picture.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
    # What has no relevance stays as it is in the picture.
    veil = Image.fromarray(np.rint(smooth * opacity * 255).astype(np.uint8))
    sheet = Image.new("RGB", (width + _GAP + _BAR + _TEXT, height), "white")
    sheet.paste(Image.composite(coloured, base, veil), (0, 0))
    bar = Image.fromarray(np.repeat(colours[::-1, None], _BAR, axis=1)).resize(
        (_BAR, height), Image.Resampling.BILINEAR
    )
    sheet.paste(bar, (width + _GAP, 0))
    draw = ImageDraw.Draw(sheet)
    _label(draw, width + _GAP + _BAR + 5, height, (most, most / 2, 0.0))
    return sheet


def _label(draw: ImageDraw.ImageDraw, x: int, height: int, values: Sequence[float]) -> None:
    """Write the share of the map that a patch of each colour has."""
    for place, value in enumerate(values):
        y = round(place * (height - 14) / (len(values) - 1))
        draw.text((x, y), f"{100 * value:.1f} %", (40, 40, 40), font_size=12)
