"""WBCAtt: eleven attributes and the type of 10,298 white blood cells (tables by WBCAtt, images of the PBC dataset)."""

from collections.abc import Iterator
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

_FLAG = {"yes": "{name}", "no": ""}

SCHEMA = Schema(
    (
        Attribute("cell size", values=("big", "small")),
        Attribute("cell shape", values=("irregular", "round")),
        Attribute(
            "nucleus shape",
            values=(
                "irregular",
                "segmented-bilobed",
                "segmented-multilobed",
                "unsegmented-band",
                "unsegmented-indented",
                "unsegmented-round",
            ),
        ),
        Attribute("nuclear cytoplasmic ratio", values=("high", "low")),
        Attribute("chromatin density", values=("densely", "loosely")),
        Attribute("cytoplasm vacuole", values=("yes", "no"), phrases=_FLAG),
        Attribute("cytoplasm texture", values=("clear", "frosted")),
        Attribute("cytoplasm colour", values=("blue", "light blue", "purple blue")),
        Attribute("granularity", values=("yes", "no"), phrases=_FLAG),
        Attribute("granule type", values=("coarse", "round", "small"), absent=("nil",)),
        Attribute("granule colour", values=("pink", "purple", "red"), absent=("nil",)),
        Attribute("label", values=("Basophil", "Eosinophil", "Lymphocyte", "Monocyte", "Neutrophil"), phrase="{value}"),
    ),
    one_per_image=True,
)


@builder
def wbcatt(root: str, *, images: ImageStore = "embed", on_bad_row: OnBadRow = "error") -> Source:
    """Return WBCAtt with its published splits (6169 train, 1030 val, 3099 test).

    Args:
        root: holds `pbc_attr_v1_{train,val,test}.csv` and the image folder that their `path` column starts with.
        images: hold the images in the prepared files, or their paths.
        on_bad_row: stop at bad rows, or leave them out.

    Raises:
        DataError: if a table or a column is missing.
    """
    folder = Path(root)
    tables = require_files(folder, (f"pbc_attr_v1_{split}.csv" for split in ("train", "val", "test")))

    def records(problems: Problems) -> Iterator[Record]:
        for split, table in zip(("train", "val", "test"), tables, strict=True):
            for line, row in read_csv(table, ("path", *SCHEMA.columns), problems):
                where = f"{table.name} line {line}"
                values, faults = SCHEMA.read(row)
                for fault in faults:
                    problems.add(where, fault, UNLISTED)
                image = find_image(folder, row["path"], where, problems)
                if image and not faults:
                    yield Record(id=row["path"], split=split, image=image, where=where, values=values)

    return Source(folder, SCHEMA, tables, records, images, on_bad_row)
