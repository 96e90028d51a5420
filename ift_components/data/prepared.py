"""The prepared folder: what is in it, and how training and evaluation read it.

A prepared folder holds `manifest.json`, `reports/{train,val,test}.parquet` and `questions/{train,val,test}.parquet`. The
Parquet files are read where they lie (`rows`). They carry their Hugging Face features, so that
`datasets.load_dataset("parquet", data_files=...)` reads them too.
"""

import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa

from ift_components.data.rows import ChoiceRows, Rows
from ift_components.errors import DataError

SPLITS = ("train", "val", "test")
FORMAT_VERSION = 2
_READABLE = (1, 2)  # format 1: questions of val and test only, without kind and answer_text

REPORT_FEATURES = datasets.Features(
    {
        "id": datasets.Value("string"),
        "image": datasets.Image(),
        "report": datasets.Value("string"),
        "attributes": datasets.List({"name": datasets.Value("string"), "value": datasets.Value("string")}),
        "group": datasets.Value("string"),
    }
)
QUESTION_FEATURES = datasets.Features(
    {
        "id": datasets.Value("string"),
        "image_id": datasets.Value("string"),
        "image": datasets.Image(),
        "attribute": datasets.Value("string"),
        "question": datasets.Value("string"),
        "options": datasets.List(datasets.Value("string")),  # null unless the kind is choice
        "answer": datasets.Value("int64"),  # index of the right option; null unless the kind is choice
        "kind": datasets.Value("string"),  # choice, closed or open
        "answer_text": datasets.Value("string"),
        "circular_group": datasets.Value("string"),  # null unless the circular variants were asked for
        "rotation": datasets.Value("int64"),
    }
)


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """Return the manifest of a prepared folder.

    Raises:
        DataError: if the folder is not a prepared one, or was written in a format that this version does not read.
    """
    path = Path(folder) / "manifest.json"
    if not path.is_file():
        raise DataError(
            f"{folder} is not a prepared folder (it has no manifest.json); make one with "
            "`tune run ift_data_recipe --config data_wbcatt.yaml builder.root=PATH output_dir=OUT`"
        )
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is not JSON ({error}); prepare the folder again") from error
    version = manifest.get("format") if isinstance(manifest, dict) else None
    if version not in _READABLE:
        readable = " or ".join(map(str, _READABLE))
        raise DataError(f"{path} has format {version}, expected {readable}; prepare the folder again")
    if manifest.get("builder", {}).get("name") == "mimic_cxr":
        manifest.setdefault("private", True)  # format 1 did not say
    return manifest


def _load(folder: str | Path, kind: str, split: str) -> Rows:
    manifest = read_manifest(folder)
    counts = manifest["counts"][kind]
    if split not in SPLITS:
        raise DataError(f"{kind} split '{split}' does not exist; expected one of {', '.join(SPLITS)}")
    path = Path(folder) / kind / f"{split}.parquet"
    if not path.is_file() and split in counts:
        raise DataError(f"{path} is missing; prepare {folder} again")
    if not counts.get(split):
        filled = ", ".join(f"{name} ({count})" for name, count in counts.items() if count) or "none"
        raise DataError(f"{folder}: no {kind} in split '{split}'; splits with {kind}: {filled}")
    return ChoiceRows(path, list(QUESTION_FEATURES)) if kind == "questions" and manifest["format"] == 1 else Rows(path)


def upgraded(table: pa.Table) -> pa.Table:
    """Return a table of questions with the columns of format 2; one of format 1 holds choices only."""
    if "kind" in table.column_names:
        return table
    options, answers = (table.column(name).to_pylist() for name in ("options", "answer"))
    texts = [offered[answer] for offered, answer in zip(options, answers, strict=True)]
    table = table.append_column("kind", pa.array(["choice"] * len(table), pa.string()))
    table = table.append_column("answer_text", pa.array(texts, pa.string()))
    return table.select(list(QUESTION_FEATURES)).cast(QUESTION_FEATURES.arrow_schema)


def load_reports(folder: str | Path, split: str) -> Rows:
    """Return the reports of one split: columns `id, image, report, attributes, group`.

    Images are decoded when a row is read; rows without the column `image` decode none.

    Args:
        folder: a prepared folder.
        split: train, val or test.

    Raises:
        DataError: if the folder or the split is missing, or the split is empty.
    """
    return _load(folder, "reports", split)


def load_questions(folder: str | Path, split: str) -> Rows:
    """Return the questions of one split, in the columns of `QUESTION_FEATURES`.

    `kind` is `choice`, `closed` or `open`; `options` and `answer` are null unless it is `choice`; `answer_text` is always
    there. `circular_group` and `rotation` are null unless the folder was prepared with circular variants. Folders of
    format 1 are read as choices.

    Args:
        folder: a prepared folder.
        split: train, val or test.

    Raises:
        DataError: if the folder or the split is missing, or the split has no question.
    """
    return _load(folder, "questions", split)
