"""SLAKE: questions in English and Chinese about 642 radiology images, in the published splits, which are by question."""

from pathlib import Path

from ift_components.data.builders.vqa import (
    Entry,
    closed_or_open,
    question_records,
    read_entries,
    require_choice,
    shared_images,
    text_of,
)  # fmt: skip
from ift_components.data.schema import Attribute, Schema
from ift_components.data.source import ImageStore, OnBadRow, Question, Source, builder, require_files

FILES = {"train": "train.json", "val": "validate.json", "test": "test.json"}
LANGUAGES = ("en", "zh")
FIELDS = ("img_name", "question", "answer", "q_lang", "location", "modality", "answer_type", "content_type")


@builder
def slake(root: str, *, language: str = "en", images: ImageStore = "embed", on_bad_row: OnBadRow = "error") -> Source:
    """Return SLAKE's questions, closed and open; its images have no reports.

    A question's attribute is its category (`Modality`, `Plane`, `Shape`, `Size`, `Organ`, `Position`, `Abnormality`, `Color`,
    `Quantity`, `KG`). An image of several splits is a record of each.

    Args:
        root: holds `train.json`, `validate.json`, `test.json` and `imgs/`.
        language: `en`, `zh` or `all`.
        images: hold the images in the prepared files, or their paths.
        on_bad_row: stop at bad rows, or leave them out.

    Raises:
        ConfigError: for another language.
        DataError: if a file is missing or is not as published.
    """
    require_choice("language", language, (*LANGUAGES, "all"))
    folder = Path(root)
    paths = require_files(folder, FILES.values())
    entries = {split: read_entries(path, FIELDS) for split, path in zip(FILES, paths, strict=True)}

    def question(entry: Entry) -> Question | str:
        spoken = text_of(entry["q_lang"])
        if language not in (spoken, "all"):
            return f"question in language '{spoken}'" if spoken in LANGUAGES else "question in an unknown language"
        return closed_or_open(entry, text_of(entry["content_type"]))

    values = {name: name for name in ("modality", "location")}
    records = question_records(
        entries, FILES, folder / "imgs", image_field="img_name", values=values, question=question
    )
    schema = Schema(tuple(Attribute(name, asked=False) for name in values))
    notes = tuple(shared_images({split: [row["img_name"] for row in rows] for split, rows in entries.items()}))
    return Source(folder, schema, paths, records, images, on_bad_row, has_reports=False, notes=notes)
