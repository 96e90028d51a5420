"""VQA-RAD: questions of clinicians about 315 radiology images, in the published split, which is by question."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from ift_components.data.builders.vqa import (
    Entry,
    closed_or_open,
    question_records,
    read_entries,
    shared_images,
    text_of,
)  # fmt: skip
from ift_components.data.schema import Attribute, Schema
from ift_components.data.source import ImageStore, OnBadRow, Question, Source, builder, require_files
from ift_components.errors import ConfigError

FILES = {"train": "trainset.json", "test": "testset.json"}
FIELDS = ("image_name", "image_organ", "question", "answer", "answer_type", "question_type", "phrase_type")
PHRASES = ("freeform", "para", "frame")
_TYPOS = {"ATRIB": "ATTRIB", "PRSE": "PRES"}


@builder
def vqa_rad(
    root: str, *, phrases: Sequence[str] = PHRASES, images: ImageStore = "embed", on_bad_row: OnBadRow = "error"
) -> Source:
    """Return VQA-RAD's questions, closed and open; its images have no reports.

    A question's attribute is its type (`PRES`, `POS`, ...), the first where it has two, with misspellings mended. An image of
    both splits is a record of each.

    Args:
        root: holds `trainset.json`, `testset.json` and `images/`.
        phrases: kinds of wording to take: `freeform`, `para` (paraphrased) and `frame` (made from a pattern; training only).
        images: hold the images in the prepared files, or their paths.
        on_bad_row: stop at bad rows, or leave them out.

    Raises:
        ConfigError: for an unknown kind of wording.
        DataError: if a file is missing or is not as published.
    """
    unknown = [phrase for phrase in phrases if phrase not in PHRASES]
    if unknown or not phrases:
        raise ConfigError(f"builder.phrases is {list(phrases)}, expected some of: {', '.join(PHRASES)}")
    folder = Path(root)
    paths = require_files(folder, FILES.values())
    entries = {split: read_entries(path, FIELDS) for split, path in zip(FILES, paths, strict=True)}

    def question(entry: Entry) -> Question | str:
        wording = _wording(entry)
        if wording in phrases:
            return closed_or_open(entry, _type(entry))
        return f"question of wording '{wording}'" if wording in PHRASES else "question of an unknown wording"

    values = {"organ": "image_organ"}
    records = question_records(
        entries, FILES, folder / "images", image_field="image_name", values=values, question=question
    )
    schema = Schema((Attribute("organ", asked=False),))
    notes = tuple(_notes(entries))
    return Source(
        folder, schema, paths, records, images, on_bad_row, splits=tuple(FILES), has_reports=False, notes=notes
    )


def _wording(entry: Entry) -> str:
    return text_of(entry["phrase_type"]).removeprefix("test_")


def _type(entry: Entry) -> str:
    first = text_of(entry["question_type"]).split(",")[0].strip().upper()
    return _TYPOS.get(first, first)


def _notes(entries: dict[str, list[Entry]]) -> Iterator[str]:
    """Yield what is odd about the published files, counted."""
    yield from shared_images({split: [text_of(row["image_name"]) for row in rows] for split, rows in entries.items()})
    questions = {
        split: [(row["image_name"], text_of(row["question"]).casefold()) for row in rows]
        for split, rows in entries.items()
    }
    seen = set(questions["train"])
    yield f"{sum(key in seen for key in questions['test'])} test questions stand word for word in train, about the same image"
    yield f"{len(questions['train']) - len(seen)} train questions repeat another about their image word for word"
    for split, rows in entries.items():
        wordings = Counter(map(_wording, rows))
        yield f"{split}: " + ", ".join(f"{wordings[phrase]} {phrase}" for phrase in PHRASES)
        closed = [text_of(row["answer"]).casefold() for row in rows if text_of(row["answer_type"]).upper() == "CLOSED"]
        others = sum(answer not in ("yes", "no") for answer in closed)
        numbers = sum(not isinstance(row["answer"], str) for row in rows)
        double = sum("," in text_of(row["question_type"]) for row in rows)
        yield (
            f"{split}: {others} of {len(closed)} closed questions are not answered by yes or no, {numbers} answers are "
            f"numbers, {double} questions have two types"
        )
