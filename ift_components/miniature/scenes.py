"""Pictures that have nothing to do with cells, one to four shapes on a ground: they show what tuning makes a model forget."""

import numpy as np
from numpy.typing import NDArray

from ift_components.data.schema import Attribute, Schema

SCENE_SCHEMA = Schema(
    (
        Attribute("number of shapes", values=("four", "one", "three", "two")),
        Attribute("shape", values=("circle", "square", "triangle")),
        Attribute("shape colour", values=("blue", "green", "purple", "red", "yellow")),
        Attribute("background colour", values=("black", "grey", "white")),
    )
)
_COUNTS = np.array([4, 1, 3, 2])  # of the values above
_PAINT = np.array([(50, 90, 225), (50, 170, 80), (150, 60, 190), (215, 50, 45), (230, 205, 60)], np.float32)
_GROUND = np.array([20, 120, 235], np.float32)
_CELLS = np.array([(-0.5, -0.5), (-0.5, 0.5), (0.5, -0.5), (0.5, 0.5)], np.float32)  # a quarter of the picture each


def sample_scenes(count: int, generator: np.random.Generator) -> NDArray[np.int8]:
    """Draw attribute values for scenes, every value as likely as the others.

    Args:
        count: number of scenes.
        generator: source of the values.

    Returns:
        Indices into each attribute's `values`, [count, 4].
    """
    sizes = [len(attribute.values or ()) for attribute in SCENE_SCHEMA.attributes]
    return generator.integers(0, sizes, (count, len(sizes)), dtype=np.int8)


def _inside(shape: NDArray[np.int8], x: NDArray[np.float32], y: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return how far pixels lie outside of unit shapes, [n, side, side]: 0 on the outline, negative within."""
    circle = np.hypot(x, y)
    square = np.maximum(np.abs(x), np.abs(y)) * 1.15
    triangle = np.maximum(y, np.maximum(-0.5 * y - 0.866 * x, -0.5 * y + 0.866 * x)) * 1.6
    chosen = shape[:, None, None]
    distance = np.where(chosen == 0, circle, np.where(chosen == 1, square, triangle))
    return (distance - 1).astype(np.float32)


def draw_scenes(codes: NDArray[np.int8], generator: np.random.Generator, *, side: int = 84) -> NDArray[np.uint8]:
    """Draw scenes: each shape at a random place in a quarter of the picture, tilted and sized at random, with some noise.

    Args:
        codes: what `sample_scenes` returns, [n, 4].
        generator: source of everything that the attributes leave open.
        side: side of the pictures in pixels.

    Returns:
        Pictures, [n, side, side, 3].
    """
    n = len(codes)
    axis = np.linspace(-1, 1, side, dtype=np.float32)
    grid_y, grid_x = np.meshgrid(axis, axis, indexing="ij")
    ground = _GROUND[codes[:, 3]][:, None] + generator.uniform(-15, 15, (n, 3)).astype(np.float32)
    paint = _PAINT[codes[:, 2]] + generator.uniform(-20, 20, (n, 3)).astype(np.float32)
    order = generator.permuted(np.tile(np.arange(4), (n, 1)), axis=1)
    cover = np.zeros((n, side, side), np.float32)
    for slot in range(4):
        radius = generator.uniform(0.27, 0.37, (n, 1, 1)).astype(np.float32)
        place = _CELLS[order[:, slot]] + generator.uniform(-0.1, 0.1, (n, 2)).astype(np.float32)
        turn = generator.uniform(-0.25, 0.25, (n, 1, 1)).astype(np.float32)  # radians
        x, y = grid_x - place[:, 0, None, None], grid_y - place[:, 1, None, None]
        cos, sin = np.cos(turn) / radius, np.sin(turn) / radius
        distance = _inside(codes[:, 1], x * cos + y * sin, y * cos - x * sin)
        drawn = np.clip(0.5 - distance * radius * side / 2, 0, 1)  # an edge one pixel wide
        cover = np.maximum(cover, drawn * (slot < _COUNTS[codes[:, 0]])[:, None, None])
    mixed = ground[:, None, None] + cover[..., None] * (paint - ground)[:, None, None]
    mixed += generator.normal(0, 6, (n, side, side, 1)).astype(np.float32)
    return mixed.clip(0, 255).astype(np.uint8)
