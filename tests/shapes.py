"""Draws a small dataset for the tests: images of one shape each and a table, in the form that `image_table` reads."""

import csv
import math
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

ATTRIBUTES = {
    "shape": ("circle", "square", "triangle"),
    "colour": ("blue", "green", "red", "yellow"),
    "size": ("large", "small"),
    "border": ("yes", "no"),
}
_SIDE = 96
_PAINT = {"blue": (60, 90, 220), "green": (50, 170, 80), "red": (210, 60, 50), "yellow": (230, 200, 60)}


def draw_shape(row: dict[str, str], generator: np.random.Generator) -> Image.Image:
    """Draw the shape that a row of attributes describes, at a random place on a noisy ground.

    Args:
        row: a value for each of `ATTRIBUTES`.
        generator: source of place and noise.
    """
    ground = generator.normal(40, 12, (_SIDE, _SIDE, 3)).clip(0, 255).astype(np.uint8)
    image = Image.fromarray(ground)
    radius = {"large": 30, "small": 15}[row["size"]] * generator.uniform(0.9, 1.1)
    x, y = generator.uniform(radius, _SIDE - radius, 2)
    fill, outline = _PAINT[row["colour"]], (255, 255, 255) if row["border"] == "yes" else None
    draw = ImageDraw.Draw(image)
    if row["shape"] == "circle":
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill, outline, width=3)
    else:
        sides = {"square": 4, "triangle": 3}[row["shape"]]
        turn = generator.uniform(0, 2 * math.pi)
        angles = [turn + 2 * math.pi * i / sides for i in range(sides)]
        draw.polygon([(x + radius * math.cos(a), y + radius * math.sin(a)) for a in angles], fill, outline, width=3)
    return image


def write_shapes(folder: Path, count: int, seed: int = 0) -> Path:
    """Write `count` drawn images and their table.

    Args:
        folder: gets `images/` and `shapes.csv`.
        count: number of images.
        seed: seed of attributes, places and noise.

    Returns:
        The table's path.
    """
    generator = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    table = folder / "shapes.csv"
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["image", *ATTRIBUTES])
        writer.writeheader()
        for index in range(count):
            row = {name: str(generator.choice(values)) for name, values in ATTRIBUTES.items()}
            name = f"images/{index:05d}.png"
            draw_shape(row, generator).save(folder / name)
            writer.writerow({"image": name, **row})
    return table
