"""The drawn cells as a dataset like any other: images and a table on disk, drawn when they are first asked for."""

import csv
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from ift_components.config import drawn_folder
from ift_components.data.build import BuildOptions, prepare
from ift_components.data.builders.wbcatt import SCHEMA
from ift_components.data.mcq import QuestionOptions
from ift_components.data.prepared import SPLITS, read_manifest
from ift_components.data.problems import Problems
from ift_components.data.source import Record, Source, find_image
from ift_components.data.tables import read_csv
from ift_components.errors import ConfigError
from ift_components.files import cache_dir, complete_folder, locked, write_text
from ift_components.smears.render import draw_cells_and_masks
from ift_components.smears.sampler import rows, sample_cells
from ift_components.smears.styles import STYLES

_VERSION = 1  # of the drawings; raise it when they change, so that cached ones are not taken for them
_CHUNK = 256


def smears(
    *,
    style: str = "smear",
    train: int = 2000,
    val: int = 300,
    test: int = 500,
    independent: bool = False,
    side: int = 84,
    seed: int = 0,
    root: str | None = None,
) -> Source:
    """Return drawn white blood cells with WBCAtt's attributes; they are drawn on first use.

    Args:
        style: `smear` or `schematic`.
        train: images of the training split.
        val: images of the validation split.
        test: images of the test split.
        independent: draw attributes independently, instead of as they occur together in WBCAtt.
        side: side of the images in pixels.
        seed: seed of attributes and drawings.
        root: folder for images and table; null takes one in the cache (`$IFT_CACHE`, or else the user's cache folder).

    Raises:
        ConfigError: if the style is unknown or a number is out of range.
    """
    counts = {"train": train, "val": val, "test": test}
    if style not in STYLES:
        raise ConfigError(f"builder.style: '{style}' is not one of {', '.join(STYLES)}")
    wrong = [name for name, count in counts.items() if count < 0]
    if wrong or not any(counts.values()):
        raise ConfigError(f"builder.{wrong[0] if wrong else 'train'}: expected numbers of images, got {counts}")
    if side < 1:
        raise ConfigError(f"builder.side: {side} is below 1")
    kind = "independent" if independent else "correlated"
    name = f"v{_VERSION}-{style}-{kind}-{train}-{val}-{test}-{side}px-seed{seed}"
    folder = (Path(root).expanduser() if root else cache_dir() / "smears").absolute() / name
    with locked(folder):
        if not folder.is_dir():
            with complete_folder(folder) as partial:
                _draw(partial, style, counts, independent=independent, side=side, seed=seed)
    table = folder / "cells.csv"

    def records(problems: Problems) -> Iterator[Record]:
        for line, row in read_csv(table, ("image", "split", *SCHEMA.columns), problems):
            where = f"{table.name} line {line}"
            values, _ = SCHEMA.read(row)
            image = find_image(folder, row["image"], where, problems)
            if image:
                yield Record(id=row["image"], split=row["split"], image=image, where=where, values=values)

    splits = tuple(split for split in SPLITS if counts[split])
    arguments = {"style": style, **counts, "independent": independent, "side": side, "seed": seed, "root": root}
    source = Source(folder, SCHEMA, (table,), records, splits=splits)
    return replace(source, name="smears", arguments=arguments)


def _draw(folder: Path, style: str, counts: dict[str, int], *, independent: bool, side: int, seed: int) -> None:
    """Write images and table."""
    with (folder / "cells.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["image", "split", *SCHEMA.columns])
        writer.writeheader()
        for split, count in counts.items():
            (folder / split).mkdir(exist_ok=True)
            for path, image, values, _ in _cells(split, style, count, independent=independent, side=side, seed=seed):
                Image.fromarray(image).save(folder / path)
                writer.writerow({"image": path, "split": split, **values})


def _cells(
    split: str, style: str, count: int, *, independent: bool, side: int, seed: int
) -> Iterator[tuple[str, npt.NDArray[np.uint8], dict[str, str], dict[str, npt.NDArray[np.bool_]]]]:
    """Yield path, image, attributes and masks of the cells of a split; always the same for the same arguments."""
    # A split's own generator: so that it does not depend on the others' sizes.
    generator = np.random.default_rng((seed, SPLITS.index(split)))
    codes = sample_cells(count, generator, independent=independent)
    values = rows(codes)
    for begin in range(0, count, _CHUNK):
        pixels, masks = draw_cells_and_masks(codes[begin : begin + _CHUNK], style, generator, side=side)
        for index, image in enumerate(pixels):
            place = begin + index
            yield f"{split}/{place:05d}.png", image, values[place], {n: m[index] for n, m in vars(masks).items()}


def smear_masks(folder: str | Path, split: str) -> dict[str, dict[str, npt.NDArray[np.bool_]]] | None:
    """Return where the parts of drawn cells lie, by drawing them again: image id to part (`render.Masks`) to mask.

    Args:
        folder: a prepared folder.
        split: `train`, `val` or `test`.

    Returns:
        Masks [side, side]; None if the folder does not hold drawn cells as they were drawn (other data, or cut or
        scaled images).
    """
    manifest = read_manifest(folder)
    builder, options = manifest["builder"], manifest.get("options", {})
    if builder["name"] != "smears" or options.get("center_crop") or options.get("max_side"):
        return None
    arguments = builder["arguments"]
    cells = _cells(
        split,
        arguments["style"],
        arguments[split],
        independent=arguments["independent"],
        side=arguments["side"],
        seed=arguments["seed"],
    )
    return {path: masks for path, _, _, masks in cells}


def draw_if_missing(folder: str | Path | None) -> None:
    """Draw and prepare the cells that a config names as `${drawn:STYLE}`, on first use; any other folder is left alone.

    Args:
        folder: a config's prepared folder.
    """
    style = next((style for style in STYLES if folder is not None and Path(folder) == drawn_folder(style)), None)
    if style is not None:
        prepared_smears(style)


def prepared_smears(style: str) -> Path:
    """Return the prepared folder of the drawn cells in a style, by the defaults of `smears`; made on first use.

    Args:
        style: `smear` or `schematic`.

    Raises:
        ConfigError: if the style is unknown.
    """
    source = smears(style=style)
    folder = drawn_folder(style)
    # The drawing's version is part of its folder's name, which the manifest does not keep: a file beside it does.
    version = folder.with_name(f"{folder.name}.version")
    with locked(version):
        if folder.is_dir() and not (version.is_file() and version.read_text() == source.root.name):
            shutil.rmtree(folder)
        if not folder.is_dir():
            prepare(source, folder, QuestionOptions(), BuildOptions())
            write_text(version, source.root.name)
    return folder
