"""Fields that cells are drawn from: outlines and nuclei as signed distances, textures, and small round things.

Images span -1 to 1 in x and y. Smooth fields are worked out on half as many points a side and interpolated by a matrix
product: four times less work, and no difference to be seen.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
Ints = npt.NDArray[np.integer]

BINS = 256  # angles that an outline is tabled at
SEGMENTS = 7  # a nucleus is a union of as many thick line segments
GRANULE_SLOTS = 64
DISCS = 14
BLUR_STEPS = 8
_THREE_LOBES = 0.4  # share of multilobed nuclei with three lobes, not four
_GOLDEN_ANGLE = math.pi * (3 - math.sqrt(5))
_ANGLES = np.linspace(-math.pi, math.pi, BINS, endpoint=False, dtype=np.float32)


@dataclass(frozen=True)
class Grid:
    """Constants of an image size.

    Attributes:
        side: pixels a side.
        axis: pixel centres [side].
        half: points of the half grid [side / 2].
        up: from the half grid to pixels [side, side / 2].
        fine, patchy, smooth: from white noise to textures of unit variance [side, points].
        blurs: blur matrices of rising width [BLUR_STEPS, side, side], the first an identity.
    """

    side: int
    axis: Array
    half: Array
    up: Array
    fine: Array
    patchy: Array
    smooth: Array
    blurs: Array


@lru_cache(maxsize=8)
def grid(side: int, blur: float) -> Grid:
    """Return the constants for `side` pixels and a strongest blur (standard deviation in 84ths of a side)."""
    axis = ((np.arange(side) + 0.5) * 2 / side - 1).astype(np.float32)
    half = np.linspace(-1, 1, (side + 1) // 2, dtype=np.float32)
    step = half[1] - half[0]
    up = np.clip(1 - np.abs(axis[:, None] - half) / step, 0, 1).astype(np.float32)

    def texture(points: int) -> Array:
        knots = np.linspace(-1.1, 1.1, points)
        weights = np.exp(-(((axis[:, None] - knots) / (knots[1] - knots[0])) ** 2))
        return (weights / np.sqrt((weights**2).sum(1, keepdims=True))).astype(np.float32)

    widths = np.linspace(0, blur * 2 / 84, BLUR_STEPS)[:, None, None] + 1e-4
    blurs = np.exp(-(((axis[:, None] - axis) / widths) ** 2) / 2)
    blurs = (blurs / blurs.sum(2, keepdims=True)).astype(np.float32)
    return Grid(side, axis, half, up, texture(90), texture(44), texture(7), blurs)


def uniform(generator: np.random.Generator, low: float, high: float, *shape: int) -> Array:
    """Draw evenly between two numbers, as float32."""
    values = generator.random(shape, dtype=np.float32)
    values *= high - low
    values += low
    return values


def upsample(field: Array, at: Grid) -> Array:
    """Interpolate a field of the half grid [n, half, half] to pixels [n, side, side]."""
    pixels: Array = np.matmul(np.matmul(at.up, field), at.up.T)
    return pixels


def noise(generator: np.random.Generator, count: int, texture: Array) -> Array:
    """Draw smooth Gaussian noise of unit variance [count, side, side] with one of a grid's textures."""
    points = texture.shape[1]
    white = generator.standard_normal((count, points, points), dtype=np.float32)
    pixels: Array = np.matmul(np.matmul(texture, white), texture.T)
    return pixels


def coverage(distance: Array, edge: float) -> Array:
    """Turn signed distances, in place, into opacity: 1 inside, 0 outside, `edge` the width of the change."""
    distance *= -1 / edge
    distance += 0.5
    return np.clip(distance, 0, 1, out=distance)


def outlines(generator: np.random.Generator, radius: Array, irregular: npt.NDArray[np.bool_]) -> Array:
    """Draw cell outlines as radii by angle.

    Args:
        generator: source of the wobbles.
        radius: mean radius [n].
        irregular: whether an outline is dented and pointed, not almost a circle [n].

    Returns:
        Radii [n, BINS].
    """
    n = len(radius)
    waves = np.arange(2, 7, dtype=np.float32)
    phases = uniform(generator, 0, 2 * math.pi, n, len(waves), 1)
    sizes = uniform(generator, 0.5, 1, n, len(waves)) * (waves**-0.5)
    sizes *= 0.15 / np.sqrt((sizes**2).sum(1, keepdims=True))
    oval = np.zeros_like(sizes)
    oval[:, 0] = uniform(generator, 0, 0.04, n)
    sizes = np.where(irregular[:, None], sizes, oval)
    wobble = (sizes[:, :, None] * np.cos(waves[:, None] * _ANGLES + phases)).sum(1)
    foot, height = uniform(generator, -2, 2, n, 1), uniform(generator, 0.12, 0.30, n, 1)
    wobble += np.where(irregular[:, None], height, 0) * np.exp(-(((_ANGLES - foot) / 0.3) ** 2))
    return radius[:, None] * (1 + wobble)


def outline_field(table: Array, centre: Array, at: Grid) -> Array:
    """Return the distance from outlines [n, BINS] around centres [n, 2] on the half grid [n, half, half]."""
    x = at.half[None, None, :] - centre[:, 0, None, None]
    y = at.half[None, :, None] - centre[:, 1, None, None]
    bins = ((np.arctan2(y, x) + math.pi) * (BINS / (2 * math.pi))).astype(np.intp)
    bins %= BINS
    edge = np.take_along_axis(table, bins.reshape(len(table), -1), 1).reshape(bins.shape)
    return np.sqrt(x * x + y * y) - edge


def _arc(radius: Array, span: Array, thick: Array) -> Array:
    """Return segments along arcs of `radius` that reach `span` to both sides of the x axis [n, SEGMENTS, 5]."""
    steps = np.linspace(-1, 1, SEGMENTS + 1, dtype=np.float32)
    angles = span[:, None] * steps
    x, y = radius[:, None] * np.cos(angles), radius[:, None] * np.sin(angles)
    thickness = np.broadcast_to(thick[:, None], (len(thick), SEGMENTS))
    return np.stack([x[:, :-1], y[:, :-1], x[:, 1:], y[:, 1:], thickness], -1)


def _lobes(angles: Array, ring: Array, thick: Array, lobes: int) -> Array:
    """Return `lobes` blobs at angles [n, lobes] on rings [n], thin strands between them [n, SEGMENTS, 5]."""
    segments = np.zeros((len(ring), SEGMENTS, 5), np.float32)
    x, y = ring[:, None] * np.cos(angles), ring[:, None] * np.sin(angles)
    for blob in range(lobes):
        # A blob is longer across the line from the middle than along it.
        along = 0.35 * thick
        dx, dy = -np.sin(angles[:, blob]) * along, np.cos(angles[:, blob]) * along
        cx, cy = x[:, blob], y[:, blob]
        segments[:, blob] = np.stack([cx - dx, cy - dy, cx + dx, cy + dy, thick], -1)
    for strand in range(lobes - 1):
        ends = [x[:, strand], y[:, strand], x[:, strand + 1], y[:, strand + 1], np.full_like(ring, 0.07)]
        segments[:, lobes + strand] = np.stack(ends, -1)
    segments[:, 2 * lobes - 1 :] = segments[:, :1]
    return segments


def nucleus_segments(generator: np.random.Generator, shape: Ints) -> Array:
    """Draw nuclei that fit in a unit disc.

    Args:
        generator: source of proportions and turn; draws the same for every shape.
        shape: code of the nucleus shape, in the schema's order [n].

    Returns:
        Segments [n, SEGMENTS, 5]: x and y of both ends, and half the thickness.
    """
    n = len(shape)
    chance = uniform(generator, 0, 1, 3, n)
    jitter = uniform(generator, -1, 1, n, SEGMENTS)
    lengths = uniform(generator, 0.45, 0.90, n, SEGMENTS)
    turn = uniform(generator, 0, 2 * math.pi, n)
    spokes = np.arange(SEGMENTS) * (2 * math.pi / SEGMENTS) + 0.35 * jitter
    zero = np.zeros_like(lengths)
    ragged = np.stack(
        [zero, zero, lengths * np.cos(spokes), lengths * np.sin(spokes), 0.14 + 0.10 * (1 - lengths)], -1
    ).astype(np.float32)
    ragged[:, 0] = (0.0, 0.0, 0.0, 0.0, 0.42)
    two = _lobes(np.array([0, math.pi]) + 0.25 * jitter[:, :2], 0.54 + 0.04 * chance[0], 0.37 + 0.03 * chance[1], 2)
    three = _lobes(np.array([0, 2.1, 4.2]) + 0.12 * jitter[:, :3], 0.58 + 0.04 * chance[0], 0.33 + 0.02 * chance[1], 3)
    four = _lobes(
        np.array([0, 1.5, 3.0, 4.5]) + 0.08 * jitter[:, :4], 0.64 + 0.03 * chance[0], 0.27 + 0.02 * chance[1], 4
    )
    many = np.where((chance[2] < _THREE_LOBES)[:, None, None], three, four)
    band = _arc(0.68 + 0.04 * chance[0], 1.8 + 0.5 * chance[1], 0.21 + 0.05 * chance[2])
    kidney = _arc(0.50 + 0.04 * chance[0], 1.25 + 0.10 * chance[1], 0.42 + 0.04 * chance[2])
    disc = _arc(0.02 + 0.05 * chance[0], np.full_like(turn, 1.5), 0.92 + 0.03 * chance[1])
    segments = np.stack([ragged, two, many, band, kidney, disc])[shape, np.arange(n)].astype(np.float32)
    cosine, sine = np.cos(turn)[:, None], np.sin(turn)[:, None]
    for x, y in ((0, 1), (2, 3)):
        segments[:, :, x], segments[:, :, y] = (
            cosine * segments[:, :, x] - sine * segments[:, :, y],
            sine * segments[:, :, x] + cosine * segments[:, :, y],
        )
    return segments


def segment_field(segments: Array, centre: Array, scale: Array, at: Grid) -> Array:
    """Return the distance from unions of segments, scaled and moved, on the half grid [n, half, half]."""
    placed = segments * scale[:, None, None]
    placed[:, :, :4] += np.tile(centre, 2)[:, None, :]
    best = np.full((len(segments), len(at.half), len(at.half)), np.inf, np.float32)
    for k in range(SEGMENTS):
        ax, ay, bx, by, thick = (placed[:, k, i, None, None] for i in range(5))
        dx, dy = bx - ax, by - ay
        square = dx * dx + dy * dy + 1e-9
        x, y = at.half[None, None, :] - ax, at.half[None, :, None] - ay
        along = x * (dx / square) + y * (dy / square)
        np.clip(along, 0, 1, out=along)
        x = x - along * dx
        y = y - along * dy
        x *= x
        y *= y
        x += y
        np.sqrt(x, out=x)
        x -= thick
        np.minimum(best, x, out=best)
    return best


def disc_field(
    generator: np.random.Generator, centre: Array, reach: Array, *, pallor: Array, strength: Array, at: Grid
) -> Array:
    """Draw red cells around a cell.

    Args:
        generator: source of places and sizes.
        centre: of the cell [n, 2].
        reach: the cell's radius [n]; red cells hardly overlap it.
        pallor: how much they pale towards the middle [n].
        strength: their opacity [n].
        at: the image size.

    Returns:
        Opacity [n, side, side].
    """
    n = len(centre)
    size = uniform(generator, 0.20, 0.25, n, 1) * uniform(generator, 0.9, 1.1, n, DISCS)
    angle = uniform(generator, 0, 2 * math.pi, n, 1) + np.arange(DISCS) * np.float32(_GOLDEN_ANGLE)
    angle += uniform(generator, -0.3, 0.3, n, DISCS)
    distance = reach[:, None] + size + uniform(generator, 0.0, 0.55, n, DISCS)
    shown = uniform(generator, 0, 1, n, DISCS) < uniform(generator, 0.6, 1, n, 1)
    oval = uniform(generator, 0.85, 1.15, n, DISCS) / size
    cx, cy = centre[:, :1] + distance * np.cos(angle), centre[:, 1:] + distance * np.sin(angle)
    total = np.zeros((n, len(at.half), len(at.half)), np.float32)
    for k in range(DISCS):
        x = (at.half[None, :] - cx[:, k, None]) * oval[:, k, None]
        y = (at.half[None, :] - cy[:, k, None]) / (oval[:, k, None] * size[:, k, None] ** 2)
        square = (x * x)[:, None, :] + (y * y)[:, :, None]
        body = np.clip(3 - 3 * square, 0, 1)
        square *= -2.2
        square += 1
        np.clip(square, 0, 1, out=square)
        square *= -pallor[:, None, None]
        square += 1
        body *= square
        body *= (strength[:, None] * shown[:, k, None])[:, :, None]
        total += 0.75 * body
    np.minimum(total, 0.95, out=total)
    return upsample(total, at)


def spread(
    generator: np.random.Generator, table: Array, centre: Array, count: Ints, *, inner: float, outer: float
) -> Array:
    """Draw places spread evenly in cells, like seeds in a sunflower.

    Args:
        generator: source of the places; draws GRANULE_SLOTS places for every cell.
        table: outlines [n, BINS].
        centre: of the cells [n, 2].
        count: how many places of a cell are going to be used [n].
        inner: nearest to the middle, in outline radii.
        outer: nearest to the outline, in outline radii.

    Returns:
        Places [n, GRANULE_SLOTS, 2].
    """
    n = len(table)
    seeds = np.arange(GRANULE_SLOTS, dtype=np.float32)
    angle = uniform(generator, 0, 2 * math.pi, n, 1) + seeds * np.float32(_GOLDEN_ANGLE)
    angle += uniform(generator, -0.25, 0.25, n, GRANULE_SLOTS)
    part = np.clip((seeds + uniform(generator, 0, 1, n, GRANULE_SLOTS)) / count[:, None], 0, 1)
    bins = ((angle + math.pi) * (BINS / (2 * math.pi))).astype(np.intp) % BINS
    distance = np.sqrt(inner**2 + part * (outer**2 - inner**2)) * np.take_along_axis(table, bins, 1)
    return centre[:, None, :] + distance[..., None] * np.stack([np.cos(angle), np.sin(angle)], -1)


def stamp(onto: Array, image: Ints, place: Array, radius: Array, at: Grid) -> None:
    """Add round specks to opacities, in place.

    Args:
        onto: opacities [n, side, side].
        image: which image a speck is in [specks].
        place: of the specks [specks, 2].
        radius: of the specks [specks].
        at: the image size.
    """
    if not len(image):
        return
    scale = at.side / 2
    pixel = (place + 1) * scale - 0.5
    reach = math.ceil(float(radius.max()) * scale + 1)
    window = np.arange(-reach, reach + 1)
    # Clipped windows repeat pixels of the border, with the same opacity: no harm to a maximum.
    around = np.clip(np.rint(pixel).astype(np.intp)[:, :, None] + window, 0, at.side - 1)
    squares = (around - pixel[:, :, None]).astype(np.float32) ** 2
    opacity = np.sqrt(squares[:, 1, :, None] + squares[:, 0, None, :])
    opacity -= (radius * scale)[:, None, None]
    coverage(opacity, 1.0)
    flat = (image[:, None, None] * at.side + around[:, 1, :, None]) * at.side + around[:, 0, None, :]
    np.maximum.at(onto.reshape(-1), flat.reshape(-1), opacity.reshape(-1))
