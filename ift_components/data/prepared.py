"""The prepared folder: what is in it, and how training and evaluation read it.

A prepared folder holds `manifest.json`, `reports/{train,val,test}.parquet` and `questions/{val,test}.parquet`. The
Parquet files carry their Hugging Face features, so `datasets.load_dataset("parquet", data_files=...)` reads them too.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets

from ift_components.errors import DataError

SPLITS = ("train", "val", "test")
QUESTION_SPLITS = ("val", "test")
FORMAT_VERSION = 1

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
        "options": datasets.List(datasets.Value("string")),
        "answer": datasets.Value("int64"),
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
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT_VERSION:
        found = manifest.get("format") if isinstance(manifest, dict) else None
        raise DataError(f"{path} has format {found}, expected {FORMAT_VERSION}; prepare the folder again")
    return manifest


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Keep `datasets` from showing a bar of its own while it makes its cache."""
    quiet = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if not quiet:
            datasets.enable_progress_bars()


def _load(folder: str | Path, kind: str, split: str, splits: tuple[str, ...]) -> datasets.Dataset:
    counts = read_manifest(folder)["counts"][kind]
    if split not in splits:
        raise DataError(f"{kind} split '{split}' does not exist; expected one of {', '.join(splits)}")
    path = Path(folder) / kind / f"{split}.parquet"
    if not path.is_file():
        raise DataError(f"{path} is missing; prepare {folder} again")
    if not counts.get(split):
        filled = ", ".join(f"{name} ({count})" for name, count in counts.items() if count) or "none"
        raise DataError(f"{folder}: no {kind} in split '{split}'; splits with {kind}: {filled}")
    with _no_progress_bar():
        return datasets.Dataset.from_parquet(str(path))


def load_reports(folder: str | Path, split: str) -> datasets.Dataset:
    """Return the reports of one split: columns `id, image, report, attributes, group`.

    Rows decode to PIL images; `.cast_column("image", datasets.Image(decode=False))` gives bytes or path instead.

    Args:
        folder: a prepared folder.
        split: train, val or test.

    Raises:
        DataError: if the folder or the split is missing, or the split is empty.
    """
    return _load(folder, "reports", split, SPLITS)


def load_questions(folder: str | Path, split: str) -> datasets.Dataset:
    """Return the questions of one split: `id, image_id, image, attribute, question, options, answer` and two more.

    `circular_group` and `rotation` are null unless the folder was prepared with circular variants.

    Args:
        folder: a prepared folder.
        split: val or test.

    Raises:
        DataError: if the folder or the split is missing, or the split has no question.
    """
    return _load(folder, "questions", split, QUESTION_SPLITS)
