"""SKINCON: 48 clinical concepts on Fitzpatrick-17k and, optionally, on DDI."""

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from ift_components.data.problems import UNLISTED, Problems
from ift_components.data.schema import Attribute, Schema
from ift_components.data.source import (
    ImageStore,
    OnBadRow,
    Record,
    Source,
    builder,
    find_image,
    require_files,
)
from ift_components.data.tables import read_csv
from ift_components.errors import DataError

CONCEPTS = (
    "Vesicle", "Papule", "Macule", "Plaque", "Abscess", "Pustule", "Bulla", "Patch", "Nodule", "Ulcer", "Crust",
    "Erosion", "Excoriation", "Atrophy", "Exudate", "Purpura/Petechiae", "Fissure", "Induration", "Xerosis",
    "Telangiectasia", "Scale", "Scar", "Friable", "Sclerosis", "Pedunculated", "Exophytic/Fungating",
    "Warty/Papillomatous", "Dome-shaped", "Flat topped", "Brown(Hyperpigmentation)", "Translucent",
    "White(Hypopigmentation)", "Purple", "Yellow", "Black", "Erythema", "Comedo", "Lichenification", "Blue",
    "Umbilicated", "Poikiloderma", "Salmon", "Wheal", "Acuminate", "Burrow", "Gray", "Pigmented", "Cyst",
)  # fmt: skip
EXCLUDED = "Do not consider this image"
COMBINATION = "dermatologic feature"

_MARKS = Schema(
    tuple(Attribute(name.lower(), name, ("1", "0"), phrases={"1": "{name}", "0": ""}, asked=False) for name in CONCEPTS)
)
# One question an image: its whole combination of concepts against others that occur.
SCHEMA = Schema((*_MARKS.attributes, Attribute(COMBINATION, phrase="", sampled=5)))


@builder
def skincon(
    root: str,
    *,
    fitzpatrick_table: str = "annotations_fitzpatrick17k.csv",
    fitzpatrick_images: str = "fitzpatrick17k",
    ddi_table: str | None = None,
    ddi_images: str = "ddi",
    pad_to_square: bool = True,
    images: ImageStore = "embed",
    on_bad_row: OnBadRow = "error",
) -> Source:
    """Return SKINCON with the authors' split: the sorted image names shuffled by `Random(0)`, 10 % val, 10 % test.

    Rows without an image are normal (the images are fetched from addresses of which some are dead) and are counted,
    like those marked "Do not consider this image" and those without any concept.

    Args:
        root: holds the tables and the image folders.
        fitzpatrick_table: annotations of Fitzpatrick-17k.
        fitzpatrick_images: folder of its images, `<md5>.jpg`.
        ddi_table: annotations of DDI; null leaves DDI out, as the authors do. DDI is divided by itself, so that the
            division of Fitzpatrick-17k stays the authors'.
        ddi_images: folder of its images.
        pad_to_square: pad images with black, as the authors do, instead of squashing them in training.
        images: hold the images in the prepared files, or their paths.
        on_bad_row: stop at bad rows, or leave them out.

    Raises:
        DataError: if a table, a column or an image folder is missing.
    """
    folder = Path(root)
    pairs = [(fitzpatrick_table, fitzpatrick_images)] + ([(ddi_table, ddi_images)] if ddi_table else [])
    tables = require_files(folder, (table for table, _ in pairs))
    for _, name in pairs:
        if not (folder / name).is_dir():
            raise DataError(f"builder.root: {root} lacks the image folder '{name}'")

    def records(problems: Problems) -> Iterator[Record]:
        divided: dict[str, list[Record]] = {"train": [], "val": [], "test": []}
        for table, (_, images_at) in zip(tables, pairs, strict=True):
            usable = _read(folder, table, images_at, problems)
            random.Random(0).shuffle(usable)
            size = len(usable) // 10
            pieces = {"val": usable[:size], "test": usable[size : 2 * size], "train": usable[2 * size :]}
            for split, piece in pieces.items():
                divided[split] += [replace(record, split=split) for record in piece]
        for split_records in divided.values():
            yield from split_records

    return Source(folder, SCHEMA, tables, records, images, on_bad_row, square=pad_to_square)


def _read(root: Path, table: Path, images_at: str, problems: Problems) -> list[Record]:
    """Return the usable images of a table, sorted by name, without a split."""
    image_names = {path.name for path in (root / images_at).iterdir()}
    records = []
    for line, row in read_csv(table, ("ImageID", EXCLUDED, *CONCEPTS), problems):
        where = f"{table.name} line {line}"
        values, faults = _MARKS.read(row)
        if row[EXCLUDED] not in ("0", "1"):
            faults.append(f"'{EXCLUDED}' is '{row[EXCLUDED]}', expected one of: 1, 0")
        for fault in faults:
            problems.add(where, fault, UNLISTED)
        present = ", ".join(name for name in values if values[name] == "1")
        if faults:
            continue
        if row[EXCLUDED] == "1":
            problems.left_out[f"marked '{EXCLUDED}'"] += 1
        elif row["ImageID"] not in image_names:
            problems.left_out["no image file"] += 1
        elif not present:
            problems.left_out["no concept present"] += 1
        else:
            name = f"{images_at}/{row['ImageID']}"
            image = find_image(root, name, where, problems)
            if image:
                values[COMBINATION] = present
                records.append(Record(id=name, split="", image=image, where=where, values=values))
    return sorted(records, key=lambda record: record.id)
