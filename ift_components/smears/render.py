"""Draws white blood cells with given attributes: `draw_cells` for arrays, `contact_sheet` for people."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from ift_components.errors import ConfigError, DataError
from ift_components.files import atomic_path
from ift_components.smears import shapes
from ift_components.smears.sampler import COLUMNS, VALUES, Codes, check_codes, rows
from ift_components.smears.shapes import Array, Grid, uniform
from ift_components.smears.styles import STYLES, Colour, Style

CHUNK = 16  # images drawn together: few enough to stay in the cache
SMALLEST = 32  # below, small granules are less than half a pixel
_HALF = 0.5  # opacity from which a pixel belongs to a part
_EDGE = 0.03  # softness of outlines, in half sides
# By granule type: how many, and their radius in half sides.
_GRANULES = {"coarse": (10, 0.085), "round": (26, 0.047), "small": (62, 0.020)}
_SHINE = (1.0, 0.35, 1.6)  # of round granules' middles: their hue, paler and brighter
_WALL = (1.0, 1.0, 0.6)  # around vacuoles: the nucleus's colour, darker
_WALL_WIDTH = 0.022
_VACUOLES, _VACUOLES_SHOWN, _VACUOLE_RADIUS = 5, 0.6, (0.060, 0.085)
_PLATELETS = 3
_MEMBRANE = np.float32(0.028)  # edge of the nucleus that stays dark, so that loose chromatin does not hide its shape
_MARGIN = 0.05  # cytoplasm between nucleus and outline
_IRREGULAR = VALUES[COLUMNS["cell shape"]].index("irregular")
_LOOSE = VALUES[COLUMNS["chromatin density"]].index("loosely")
_FROSTED = VALUES[COLUMNS["cytoplasm texture"]].index("frosted")
_YES = VALUES[COLUMNS["cytoplasm vacuole"]].index("yes")

_SHEET_COLUMNS, _SHEET_ROWS, _CELL, _GAP, _CAPTION, _TITLE = 6, 4, 168, 8, 38, 28


@dataclass(frozen=True)
class Masks:
    """Which pixels of drawn cells belong to which part, each [n, side, side].

    Attributes:
        cell: the white blood cell.
        nucleus: its nucleus.
        cytoplasm: what of the cell is not nucleus.
        granules: its granules; nothing where it has none.
    """

    cell: npt.NDArray[np.bool_]
    nucleus: npt.NDArray[np.bool_]
    cytoplasm: npt.NDArray[np.bool_]
    granules: npt.NDArray[np.bool_]


def draw_cells(
    codes: npt.NDArray[Any], style: str, generator: np.random.Generator, *, side: int = 84
) -> npt.NDArray[np.uint8]:
    """Draw an image for each row of attributes.

    Chance (place, turn, colours, noise) takes the same numbers from `generator` whatever the attributes, so two calls with
    equal generators differ only by what the attributes change.

    Args:
        codes: attributes as `sample_cells` gives them [n, 12].
        style: `schematic` (flat and bright on a dark ground) or `smear` (like a stained blood smear).
        generator: source of everything that the attributes leave open.
        side: pixels a side.

    Returns:
        RGB images [n, side, side, 3].

    Raises:
        ConfigError: if the style is unknown or the side too small.
        DataError: if the codes do not describe cells.
    """
    return draw_cells_and_masks(codes, style, generator, side=side)[0]


def draw_cells_and_masks(
    codes: npt.NDArray[Any], style: str, generator: np.random.Generator, *, side: int = 84
) -> tuple[npt.NDArray[np.uint8], Masks]:
    """Draw as `draw_cells` does, and return the images and where each part of a cell lies in them."""
    if style not in STYLES:
        raise ConfigError(f"style is '{style}'; expected one of: {', '.join(STYLES)}")
    if side < SMALLEST:
        raise ConfigError(f"side is {side}; expected {SMALLEST} or more, or small granules cannot be seen")
    codes = check_codes(codes)
    images = np.empty((len(codes), side, side, 3), np.uint8)
    masks = Masks(*(np.empty((len(codes), side, side), np.bool_) for _ in fields(Masks)))
    look = STYLES[style]
    at = shapes.grid(side, look.blur)
    for start in range(0, len(codes), CHUNK):
        part = slice(start, start + CHUNK)
        images[part], of_part = _draw(codes[part], look, generator, at)
        for field in fields(Masks):
            getattr(masks, field.name)[part] = getattr(of_part, field.name)
    return images, masks


def _draw(codes: Codes, style: Style, generator: np.random.Generator, at: Grid) -> tuple[npt.NDArray[np.uint8], Masks]:
    """Draw a chunk: layers from the top down, each an opacity and a colour, mixed by one matrix product."""
    n = len(codes)
    code = {name: codes[:, place].astype(np.intp) for name, place in COLUMNS.items()}
    none = np.zeros(n, np.intp)

    def hue(colours: tuple[Colour, ...], which: npt.NDArray[np.intp] = none) -> Array:
        chosen = np.array(colours, np.float32)[which]
        return np.clip(chosen + uniform(generator, -1, 1, n, 3) * np.array(style.jitter, np.float32), 0, 1)

    cell = _Cell(generator, style, code, at)
    granules, shine = _granules(generator, style, code, cell, at)
    granule, nucleus = hue(style.granules, code["granule colour"]), hue(style.nuclei, code["label"])
    cytoplasm = hue(style.cytoplasm, code["cytoplasm colour"])
    holes, walls = _vacuoles(generator, style, code, cell, at)
    discs, ground = _background(generator, style, cell, at)
    low, high = (np.array(corner, np.float32) for corner in style.ground)
    layers = [
        (holes, hue((style.vacuole[0],))),
        (walls, nucleus * np.array(_WALL, np.float32)),
        (shine, granule * np.array(_SHINE, np.float32)),
        (granules, granule),
        (_chromatin(generator, style, code, cell, at), nucleus * np.array(style.chromatin[0], np.float32)),
        (cell.nucleus, nucleus),
        (_rims(style, code["label"], cell), hue(tuple(rim.colour for rim in style.rims), code["label"])),
        (_frost(generator, style, code, cell, at), cytoplasm * np.array(style.frost[0], np.float32)),
        (cell.inside, cytoplasm),
        (_platelets(generator, cell, at), hue((style.platelets,))),
        (discs, hue((style.discs,))),
        (ground, low + uniform(generator, 0, 1, n, 3) * (high - low)),
        (None, low + uniform(generator, 0, 1, n, 3) * (high - low)),
    ]
    opacities = np.empty((n, len(layers), at.side * at.side), np.float32)
    through = np.ones((n, at.side * at.side), np.float32)
    for place, (opacity, _) in enumerate(layers):
        if opacity is None:
            opacities[:, place] = through
        else:
            np.multiply(opacity.reshape(n, -1), through, out=opacities[:, place])
            through -= opacities[:, place]
    colours = _rgb(np.stack([colour for _, colour in layers], 1))
    images = _photograph(generator, style, (colours.transpose(0, 2, 1) @ opacities).reshape(n, 3, at.side, at.side), at)
    inside, core = cell.inside >= _HALF, cell.nucleus >= _HALF
    # Granules over the nucleus are faint: what counts is how they compare with the most opaque ones there can be.
    shown = granules >= _HALF * style.granule_strength[0] * (1 - (1 - style.covered) * cell.nucleus)
    return images, Masks(inside, core & inside, inside & ~core, shown & inside)


class _Cell:
    """Where the cells of a chunk and their nuclei are.

    Attributes:
        centre: of the cells [n, 2].
        radius: mean radius [n].
        table: outlines, radii by angle [n, BINS].
        distance: from the outline, negative inside [n, side, side].
        inside: opacity of the cell [n, side, side].
        nucleus: opacity of the nucleus [n, side, side].
        core: opacity of the nucleus without its edge [n, side, side].
    """

    def __init__(
        self, generator: np.random.Generator, style: Style, code: dict[str, npt.NDArray[np.intp]], at: Grid
    ) -> None:
        n = len(code["label"])
        self.centre = uniform(generator, -style.shift, style.shift, n, 2)
        self.radius = _between(generator, style.radius, code["cell size"])
        self.table = shapes.outlines(generator, self.radius, code["cell shape"] == _IRREGULAR)
        edge = shapes.outline_field(self.table, self.centre, at)
        part = _between(generator, style.nucleus, code["nuclear cytoplasmic ratio"])
        segments = shapes.nucleus_segments(generator, code["nucleus shape"])
        angle, slack = uniform(generator, 0, 2 * np.pi, n), uniform(generator, 0, 0.5, n) * (1 - part) * self.radius
        offset = slack[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
        nucleus = shapes.segment_field(segments, self.centre + offset, part * self.radius, at)
        np.maximum(nucleus, edge + _MARGIN, out=nucleus)  # never outside the cell
        depth = shapes.upsample(nucleus, at)
        self.core = shapes.coverage(depth + _MEMBRANE, _EDGE)
        self.nucleus = shapes.coverage(depth, _EDGE)
        self.distance = shapes.upsample(edge, at)
        self.inside = shapes.coverage(self.distance.copy(), _EDGE)


def _between(
    generator: np.random.Generator, ranges: tuple[tuple[float, float], ...], which: npt.NDArray[np.intp]
) -> Array:
    """Draw a number [n] from the range that each code picks."""
    low, high = np.array(ranges, np.float32)[which].T
    return low + (high - low) * uniform(generator, 0, 1, len(which))


def _granules(
    generator: np.random.Generator, style: Style, code: dict[str, npt.NDArray[np.intp]], cell: _Cell, at: Grid
) -> tuple[Array, Array]:
    """Return the opacity of granules, and that of the bright middles of round ones."""
    n = len(cell.radius)
    kind = code["granule type"]
    count = np.array([_GRANULES[name][0] for name in VALUES[COLUMNS["granule type"]]])[kind]
    places = shapes.spread(generator, cell.table, cell.centre, count, inner=0.45, outer=0.92)
    sizes = uniform(generator, 0.85, 1.15, n, shapes.GRANULE_SLOTS)
    strength = uniform(generator, *style.granule_strength, n)[:, None, None]
    granules, shine = np.zeros((2, n, at.side, at.side), np.float32)
    for index, name in enumerate(VALUES[COLUMNS["granule type"]]):
        number, radius = _GRANULES[name]
        images = np.repeat(np.flatnonzero(kind == index), number)
        place = places[kind == index, :number].reshape(-1, 2)
        size = sizes[kind == index, :number].reshape(-1) * np.float32(radius)
        shapes.stamp(granules, images, place, size, at)
        if name == "round":
            shapes.stamp(shine, images, place, size * np.float32(0.5), at)
    strength = strength * (1 - (1 - style.covered) * cell.nucleus)
    granules *= strength
    shine *= strength
    return granules, shine


def _vacuoles(
    generator: np.random.Generator, style: Style, code: dict[str, npt.NDArray[np.intp]], cell: _Cell, at: Grid
) -> tuple[Array, Array]:
    """Return the opacities of vacuoles, a few holes near the cell's edge, and of their thin walls."""
    n = len(cell.radius)
    turn = uniform(generator, 0, 2 * np.pi, n, 1) + np.arange(_VACUOLES, dtype=np.float32) * (2 * np.pi / _VACUOLES)
    angle = turn + uniform(generator, -0.45, 0.45, n, _VACUOLES)
    bins = ((angle + np.pi) * (shapes.BINS / (2 * np.pi))).astype(np.intp) % shapes.BINS
    distance = np.take_along_axis(cell.table, bins, 1) * uniform(generator, 0.62, 0.86, n, _VACUOLES)
    size = uniform(generator, *_VACUOLE_RADIUS, n, _VACUOLES)
    shown = uniform(generator, 0, 1, n, _VACUOLES) < _VACUOLES_SHOWN
    shown[:, :2] = True
    shown &= (code["cytoplasm vacuole"] == _YES)[:, None]
    places = cell.centre[:, None] + distance[..., None] * np.stack([np.cos(angle), np.sin(angle)], -1)
    holes, walls = np.zeros((2, n, at.side, at.side), np.float32)
    images = np.nonzero(shown)[0]
    shapes.stamp(holes, images, places[shown], size[shown], at)
    shapes.stamp(walls, images, places[shown], size[shown] + np.float32(_WALL_WIDTH), at)
    holes *= style.vacuole[1]
    walls *= 0.8
    return holes, walls


def _chromatin(
    generator: np.random.Generator, style: Style, code: dict[str, npt.NDArray[np.intp]], cell: _Cell, at: Grid
) -> Array:
    """Return the opacity of the pale patches in the nucleus: strong where chromatin is loose."""
    patches = shapes.noise(generator, len(cell.radius), at.patchy)
    patches *= 1.4
    patches += 0.4
    np.clip(patches, 0, 1, out=patches)
    patches *= np.where(code["chromatin density"] == _LOOSE, style.chromatin[1], style.mottle)[:, None, None]
    patches *= cell.core
    return patches.astype(np.float32, copy=False)


def _frost(
    generator: np.random.Generator, style: Style, code: dict[str, npt.NDArray[np.intp]], cell: _Cell, at: Grid
) -> Array:
    """Return the opacity of the speckles of frosted cytoplasm."""
    speckles = shapes.noise(generator, len(cell.radius), at.fine)
    speckles *= 1.6
    speckles += 0.2
    np.clip(speckles, 0, 1, out=speckles)
    speckles *= np.where(code["cytoplasm texture"] == _FROSTED, np.float32(style.frost[1]), 0)[:, None, None]
    speckles *= cell.inside
    return speckles


def _rims(style: Style, label: npt.NDArray[np.intp], cell: _Cell) -> Array:
    """Return the opacity of the rims that tell cell types apart."""
    strength, place, width = np.array([[rim.strength, rim.place, rim.width] for rim in style.rims], np.float32)[
        label
    ].T[..., None, None]
    rim = np.abs(cell.distance - place)
    rim *= -1.5 / width
    rim += 1.5
    np.clip(rim, 0, 1, out=rim)
    rim *= strength
    return rim


def _platelets(generator: np.random.Generator, cell: _Cell, at: Grid) -> Array:
    """Return the opacity of a few specks outside the cell."""
    n = len(cell.radius)
    angle = uniform(generator, 0, 2 * np.pi, n, _PLATELETS)
    distance = cell.radius[:, None] * 1.4 + uniform(generator, 0.1, 0.5, n, _PLATELETS)
    places = cell.centre[:, None] + distance[..., None] * np.stack([np.cos(angle), np.sin(angle)], -1)
    shown = uniform(generator, 0, 1, n, _PLATELETS) < 0.3  # noqa: PLR2004
    sizes = uniform(generator, 0.03, 0.07, n, _PLATELETS)
    specks = np.zeros((n, at.side, at.side), np.float32)
    shapes.stamp(specks, np.nonzero(shown)[0], places[shown], sizes[shown], at)
    return specks


def _background(generator: np.random.Generator, style: Style, cell: _Cell, at: Grid) -> tuple[Array, Array]:
    """Return the opacities of red cells and of the ground's second colour, whose mix with the first changes slowly."""
    n = len(cell.radius)
    strength = np.maximum(uniform(generator, *style.disc_strength, n), 0)
    pallor = uniform(generator, *style.disc_pallor, n)
    discs = shapes.disc_field(generator, cell.centre, cell.radius, pallor=pallor, strength=strength, at=at)
    ground = shapes.noise(generator, n, at.smooth)
    ground *= 0.3
    ground += 0.5
    return discs, np.clip(ground, 0, 1, out=ground)


def _rgb(hsv: Array) -> Array:
    """Turn hue, saturation and value [..., 3] into red, green and blue."""
    hue, saturation, value = np.moveaxis(np.clip(hsv, 0, 1), -1, 0)
    corners = (hue[..., None] * 6 + np.array([5, 3, 1], np.float32)) % 6
    depth = np.clip(np.minimum(corners, 4 - corners), 0, 1)
    return value[..., None] * (1 - saturation[..., None] * depth)


def _photograph(generator: np.random.Generator, style: Style, images: Array, at: Grid) -> npt.NDArray[np.uint8]:
    """Take pictures of scenes [n, 3, side, side] in place: focus, colour cast, uneven light, grain; [n, side, side, 3]."""
    n = len(images)
    blurred = uniform(generator, 0, 1, n) < style.blurred
    step = np.where(blurred, generator.integers(0, shapes.BLUR_STEPS, n), 0)
    for index in np.flatnonzero(step):
        matrix = at.blurs[step[index]]
        images[index] = matrix @ images[index] @ matrix.T
    cast = 1 + uniform(generator, -1, 1, n, 3) * np.float32(style.cast)
    cast *= uniform(generator, 1 - style.cast, 1 + style.cast, n, 1)
    images *= (cast * 255)[:, :, None, None]
    corner, depth = uniform(generator, -0.3, 0.3, n, 2), uniform(generator, 0, style.vignette / 2, n, 1)
    x, y = (depth * (at.axis - corner[:, axis, None]) ** 2 for axis in (0, 1))
    images *= (1 - x[:, None, :] - y[:, :, None])[:, None]
    grain = generator.integers(0, 256, images.shape, np.uint8).astype(np.float32)
    grain -= 127.5
    grain *= uniform(generator, 0, style.grain, n, 1, 1, 1)
    images += grain
    np.clip(images, 0, 255, out=images)
    return images.transpose(0, 2, 3, 1).astype(np.uint8)


def contact_sheet(codes: npt.NDArray[Any], generator: np.random.Generator, path: Path | None = None) -> Image.Image:
    """Draw up to 24 cells in both styles on one labelled sheet, a cell at the same place in both halves.

    Args:
        codes: attributes as `sample_cells` gives them [n, 12]; the first 24 are drawn.
        generator: source of what the attributes leave open.
        path: where to write the sheet; None to write nothing.

    Returns:
        The sheet.

    Raises:
        DataError: if there are no codes, or they do not describe cells.
    """
    codes = check_codes(codes)[: _SHEET_COLUMNS * _SHEET_ROWS]
    if not len(codes):
        raise DataError("codes: no cells; expected one or more to draw on a sheet")
    down = -(-len(codes) // _SHEET_COLUMNS)
    half = _SHEET_COLUMNS * (_CELL + _GAP) + _GAP
    sheet = Image.new("RGB", (2 * half + _GAP, _TITLE + down * (_CELL + _CAPTION) + _GAP), "white")
    draw = ImageDraw.Draw(sheet)
    captions = [_caption(row) for row in rows(codes)]
    for number, style in enumerate(STYLES):
        left = number * (half + _GAP) + _GAP
        draw.text((left, 8), style, "black", font_size=15)
        for place, picture in enumerate(draw_cells(codes, style, generator)):
            x = left + place % _SHEET_COLUMNS * (_CELL + _GAP)
            y = _TITLE + place // _SHEET_COLUMNS * (_CELL + _CAPTION)
            sheet.paste(Image.fromarray(picture).resize((_CELL, _CELL), Image.Resampling.BICUBIC), (x, y))
            draw.multiline_text((x, y + _CELL + 2), captions[place], (70, 70, 70), font_size=9.5, spacing=1)
    draw.line([(half + _GAP // 2, 0), (half + _GAP // 2, sheet.height)], (200, 200, 200))
    if path is not None:
        with atomic_path(path) as temporary:
            sheet.save(temporary, "PNG")
    return sheet


def _caption(row: dict[str, str]) -> str:
    """Return three short lines that name every attribute of a row."""
    granules = f"{row['granule_type']} {row['granule_colour']}" if row["granularity"] == "yes" else "no"
    vacuoles = ", vacuoles" if row["cytoplasm_vacuole"] == "yes" else ""
    return (
        f"{row['label']}: {row['cell_size']} {row['cell_shape']}, ratio {row['nuclear_cytoplasmic_ratio']}\n"
        f"{row['nucleus_shape'].removeprefix('unsegmented-')}, {row['chromatin_density']}{vacuoles}\n"
        f"{row['cytoplasm_colour']} {row['cytoplasm_texture']}, {granules} granules"
    )
