"""CBIS-DDSM: cropped mammography lesions, from TCIA's DICOM files or from the JPEG edition."""

import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
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

SHAPES = (
    "architectural distortion", "asymmetric breast tissue", "focal asymmetric density", "irregular", "lobulated",
    "lymph node", "oval", "round",
)  # fmt: skip
MARGINS = ("circumscribed", "ill defined", "microlobulated", "obscured", "spiculated")
TYPES = (
    "amorphous", "coarse", "eggshell", "fine linear branching", "lucent center", "pleomorphic", "punctate",
    "round and regular", "vascular",
)  # fmt: skip
DISTRIBUTIONS = ("clustered", "diffusely scattered", "linear", "regional", "segmental")
# Occur in the tables, alone or joined by `-`, but are no option of the published question set.
_UNASKED_TYPES = ("dystrophic", "large rodlike", "lucent centered", "milk of calcium", "skin")


def _listed(name: str, choices: tuple[str, ...], asked_as: str = "") -> Attribute:
    return Attribute(name, name, absent=("NA", "", "N/A"), lower=True, asked_as=asked_as, choices=choices, sampled=5)


SCHEMA = Schema(
    (
        _listed("mass shape", SHAPES),
        _listed("mass margins", MARGINS, "mass margin"),
        _listed("calc type", TYPES),
        _listed("calc distribution", DISTRIBUTIONS),
        Attribute("abnormality type", "abnormality type", ("calcification", "mass"), phrase="{value}"),
        Attribute(
            "pathology",
            "pathology",
            ("BENIGN", "BENIGN_WITHOUT_CALLBACK", "MALIGNANT"),
            lower=True,
            wording={"benign without callback": "benign"},
            phrase="{value}",
        ),
    )
)
KNOWN = {
    "mass shape": SHAPES,
    "mass margins": MARGINS,
    "calc type": (*TYPES, *_UNASKED_TYPES),
    "calc distribution": DISTRIBUTIONS,
}
_TABLES = [f"{kind}_case_description_{part}_set.csv" for kind in ("mass", "calc") for part in ("train", "test")]


@dataclass(frozen=True)
class Case:
    """One lesion in one view: a row of a case table."""

    key: str
    patient: str
    test: bool
    values: dict[str, str]
    where: str


@builder
def cbis_ddsm(
    root: str,
    *,
    pad_to_square: bool = True,
    images: ImageStore = "embed",
    on_bad_row: OnBadRow = "error",
) -> Source:
    """Return the cropped lesions of CBIS-DDSM, official test split, 10 % of the training patients for validation.

    The validation patients are the first tenth of the sorted training patients shuffled by `Random(0)`. Which file of a
    case is the crop and which the mask is told by content. The edition is told by `dicom_info.csv`, which the JPEG
    edition has.

    Args:
        root: JPEG edition: holds `csv/` (case tables, `dicom_info.csv`) and `jpeg/`. TCIA: holds the case tables (in
            `csv/` or directly) and, directly or in `CBIS-DDSM/`, the folders `Mass-Training_P_00001_LEFT_CC_1/...`.
        pad_to_square: pad images with black, as the authors do, instead of squashing them in training.
        images: hold the images in the prepared files, or their paths; converted images are always held.
        on_bad_row: stop at bad rows, or leave them out.

    Raises:
        DataError: if a table or a column is missing.
    """
    folder = Path(root)
    tables_at = folder / "csv" if (folder / "csv").is_dir() else folder
    tables = require_files(tables_at, _TABLES)
    info = tables_at / "dicom_info.csv"
    if info.is_file():
        tables = (*tables, info)

    def records(problems: Problems) -> Iterator[Record]:
        cases = [case for table in tables[:4] for case in _read_cases(table, problems)]
        patients = sorted({case.patient for case in cases if not case.test})
        random.Random(0).shuffle(patients)
        held_out = set(patients[: len(patients) // 10])
        files = _jpeg_files(info, problems) if info.is_file() else None
        for split in ("train", "val", "test"):
            for case in cases:
                own = "test" if case.test else "val" if case.patient in held_out else "train"
                if own != split:
                    continue
                names = _dicom_files(folder, case) if files is None else files.get(case.key, [])
                images_or_none = [find_image(folder, name, case.where, problems) for name in names]
                paths = sorted((path for path in images_or_none if path), key=lambda path: path.stat().st_size)
                if not names:
                    problems.add(case.where, f"no image of case '{case.key}' under {folder}", "image is missing")
                elif len(paths) == len(names):
                    yield Record(
                        id=case.key,
                        split=split,
                        image=paths[0],
                        where=case.where,
                        values=case.values,
                        group=case.patient,
                        alternatives=tuple(paths[1:]),
                    )

    return Source(folder, SCHEMA, tables, records, images, on_bad_row, square=pad_to_square, skip_masks=True)


def _read_cases(table: Path, problems: Problems) -> Iterator[Case]:
    kind = "mass" if table.name.startswith("mass") else "calc"
    attributes = tuple(a for a in SCHEMA.attributes if not a.name.startswith("calc" if kind == "mass" else "mass"))
    schema = Schema(attributes)
    columns = ("patient_id", "cropped image file path", *schema.columns)
    for line, row in read_csv(table, columns, problems):
        where = f"{table.name} line {line}"
        values, faults = schema.read(row)
        for name, words in KNOWN.items():
            joined = values[name].lower().replace("_", " ").split("-") if name in values else []
            faults += [
                f"{name} is '{word}', expected one of: {', '.join(words)}" for word in joined if word not in words
            ]
        key = row["cropped image file path"].split("/")[0]
        if not key.startswith(("Mass-", "Calc-")) or not row["patient_id"]:
            faults.append(f"patient '{row['patient_id']}' with cropped image '{key}', expected Mass-... or Calc-...")
        for fault in faults:
            problems.add(where, fault, UNLISTED)
        if not faults:
            yield Case(key, row["patient_id"], "test" in table.stem, values, where)


def _jpeg_files(info: Path, problems: Problems) -> dict[str, list[str]]:
    """Return the files of each case in the JPEG edition, without full mammograms."""
    files: dict[str, list[str]] = defaultdict(list)
    for _, row in read_csv(info, ("PatientID", "SeriesDescription", "image_path"), problems):
        if row["SeriesDescription"] != "full mammogram images":
            files[row["PatientID"]].append(row["image_path"].removeprefix("CBIS-DDSM/"))
    return files


def _dicom_files(root: Path, case: Case) -> list[str]:
    for folder in (root / case.key, root / "CBIS-DDSM" / case.key):
        if folder.is_dir():
            return sorted(str(path.relative_to(root)) for path in folder.rglob("*.dcm"))
    return []
