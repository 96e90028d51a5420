"""MIMIC-CXR: frontal chest X-rays with findings and impression (LLaVA-Rad annotations) and Medical-CXR-VQA questions.

No text of a report or of a question ever goes into a message: rows are named by file and number.
"""

import functools
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ift_components.data.json_stream import stream_json_list
from ift_components.data.problems import Problems
from ift_components.data.schema import Schema
from ift_components.data.source import (
    ImageStore,
    OnBadRow,
    Question,
    Record,
    Source,
    builder,
    find_image,
    require_files,
)  # fmt: skip
from ift_components.data.splitting import split_name
from ift_components.data.tables import read_csv, stream_columns
from ift_components.errors import DataError

REPORTS = "chat_{}_MIMIC_CXR_all_gpt4extract_rulebased_v1.json"
PARTS = {"train": "train", "dev": "val", "test": "test"}
FRONTAL = ("AP", "PA")
QUESTION_TYPES = ("abnormality", "presence", "location", "level", "type")
DICE = "Dice RCA (Mean)"


@builder
def mimic_cxr(
    root: str,
    *,
    masks: str | None = "MIMIC-CXR-JPG.csv",
    min_dice: float = 0.7,
    questions: str | None = "medical-cxr-vqa-questions.csv",
    methods: Sequence[str] = ("gpt4", "rule-based"),
    images: ImageStore = "path",
    on_bad_row: OnBadRow = "error",
) -> Source:
    """Return MIMIC-CXR's frontal images with their findings and impression, in the official splits.

    Everything is streamed; what is held in memory is one line an image. An image that is annotated twice (once by each
    method) counts once.

    Args:
        root: holds the five kinds of file that the header of `data_mimic_cxr.yaml` lists.
        masks: CheXmask table; null keeps images whatever the quality of their masks.
        min_dice: smallest `Dice RCA (Mean)` in it.
        questions: Medical-CXR-VQA table; null makes no questions.
        methods: annotation methods to take, the preferred first.
        images: name the images where they lie, or hold them in the prepared files.
        on_bad_row: stop at bad rows, or leave them out.

    Raises:
        DataError: if a file or a column is missing.
    """
    folder = Path(root)
    if questions and not (folder / questions).is_file():
        questions = questions.replace("-", "_")  # the table is published under both names
    metadata, splits = require_files(folder, ("mimic-cxr-2.0.0-metadata.csv.gz", "mimic-cxr-2.0.0-split.csv.gz"))
    reports = require_files(folder, (REPORTS.format(part) for part in PARTS))
    tables = {name: require_files(folder, [name])[0] for name in (masks, questions) if name}
    files = _Files(folder, metadata, splits, reports, tables.get(masks or ""), tables.get(questions or ""))
    facts = functools.cache(lambda: _read_facts(files, min_dice, methods))  # the records are read more than once

    def records(problems: Problems) -> Iterator[Record]:
        return _read_records(files, facts(), problems)

    every = (metadata, splits, *reports, *tables.values())
    return Source(folder, Schema(()), every, records, images, on_bad_row, private=True, question_names=QUESTION_TYPES)


@dataclass(frozen=True)
class _Files:
    """The files of the dataset; those that are optional may be None."""

    root: Path
    metadata: Path
    splits: Path
    reports: tuple[Path, ...]
    masks: Path | None
    questions: Path | None


@dataclass
class _Facts:
    """What the tables say: of each image its view and split, the preferred annotation, and the questions."""

    views: dict[str, str]
    best: dict[str, str]
    splits: dict[str, str] = field(default_factory=dict)
    questions: dict[str, list[Question]] = field(default_factory=lambda: defaultdict(list))
    problems: Problems = field(default_factory=lambda: Problems(private=True))


def _read_facts(files: _Files, min_dice: float, methods: Sequence[str]) -> _Facts:
    passing = _passing(files.masks, min_dice) if files.masks else None
    views = {
        dicom: sys.intern(view)
        for dicom, view in stream_columns(files.metadata, ("dicom_id", "ViewPosition"))
        if passing is None or dicom in passing
    }
    facts = _Facts(views, _best_methods(files.reports, methods))
    studies = set()
    for dicom, study, split in stream_columns(files.splits, ("dicom_id", "study_id", "split")):
        if dicom in views:
            facts.splits[dicom] = sys.intern(split_name(split))
            if facts.splits[dicom] != "train":
                studies.add(study)
    if files.questions:
        _read_questions(files.questions, studies, facts)
    return facts


def _read_records(files: _Files, facts: _Facts, problems: Problems) -> Iterator[Record]:
    problems.extend(facts.problems)
    done: set[str] = set()
    for table, split in zip(files.reports, PARTS.values(), strict=True):
        for number, entry in enumerate(stream_json_list(table)):
            where = f"{table.name} item {number}"
            dicom = _dicom(entry)
            if dicom is None:
                problems.add(where, "id, image, generate_method or conversations is missing or has a wrong type")
                continue
            reason = _why_left_out(entry, dicom, facts) or ("annotated a second time" if dicom in done else "")
            if reason:
                problems.left_out[reason] += 1
                continue
            done.add(dicom)
            listed = facts.splits.get(dicom)
            if listed != split:
                problems.add(
                    where,
                    f"image {dicom} is '{listed}' in {files.splits.name}, not '{split}'",
                    "image of another split",
                )
                continue
            image = find_image(files.root, "files/" + entry["image"].removeprefix("mimic/"), where, problems)
            if image:
                yield _record(entry, split, image, where, facts)


def _passing(table: Path, min_dice: float) -> set[str]:
    """Return the images whose lung masks are certain enough."""
    passing = set()
    for dicom, dice in stream_columns(table, ("dicom_id", DICE)):
        try:
            good = float(dice) >= min_dice
        except ValueError as error:
            raise DataError(f"{table.name}: '{DICE}' of an image is no number; is a cell shifted?") from error
        if good:
            passing.add(dicom)
    return passing


def _best_methods(reports: Sequence[Path], methods: Sequence[str]) -> dict[str, str]:
    """Return, of each image, the first of `methods` by which it has an annotation that says something."""
    best: dict[str, str] = {}
    for entry in (entry for table in reports for entry in stream_json_list(table)):
        dicom = _dicom(entry)
        if dicom is not None and entry["generate_method"] in methods and _sections(entry):
            best[dicom] = min(best.get(dicom, methods[-1]), sys.intern(entry["generate_method"]), key=methods.index)
    return best


def _read_questions(table: Path, studies: set[str], facts: _Facts) -> None:
    """Add the questions about validation and test studies, under the image's id or, without one, the study's."""
    columns = ("study_id", "question_type", "question", "answer")
    for line, row in read_csv(table, columns, facts.problems):
        study, dicom = row["study_id"].removeprefix("s"), row.get("dicom_id", "")
        kind = row["question_type"].lower()
        if study not in studies or kind == "view":
            continue
        if kind not in QUESTION_TYPES:
            expected = ", ".join((*QUESTION_TYPES, "view"))
            facts.problems.add(f"{table.name} line {line}", f"question_type is not one of: {expected}")
        elif not row["question"] or not row["answer"]:
            facts.problems.add(f"{table.name} line {line}", "the question or the answer is empty")
        else:
            facts.questions[dicom or study] += choice_questions(kind, row["question"], row["answer"])


def choice_questions(kind: str, text: str, answer: str) -> list[Question]:
    """Return the multiple-choice questions that a free question and its answer become.

    An abnormality question with several diseases becomes one question a disease; yes/no questions have two options,
    the others draw theirs from the other answers to the same kind of question.
    """
    if answer.lower() in ("yes", "no"):
        return [Question(kind, text, answer.lower(), options=("yes", "no"))]
    parts = [part.strip() for part in answer.split(",") if part.strip()]
    if kind == "abnormality":
        return [Question(kind, text, part, also_right=frozenset(parts)) for part in dict.fromkeys(parts)]
    right = {piece.strip() for part in parts for piece in part.split(" and ")}
    return [Question(kind, text, answer, also_right=frozenset(right))]


def _dicom(entry: Any) -> str | None:
    """Return an entry's image id, or None if the entry is not built as it should be."""
    if not isinstance(entry, dict) or not all(
        isinstance(entry.get(k), str) for k in ("id", "image", "generate_method")
    ):
        return None
    turns = entry.get("conversations")
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns) or "_" not in entry["id"]:
        return None
    return Path(entry["image"]).stem


def _sections(entry: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Return the findings and the impression, those that are there."""
    findings = next((turn.get("value") for turn in entry["conversations"] if turn.get("from") == "gpt"), None)
    named = (("findings", findings), ("impression", entry.get("impression")))
    return tuple((name, text.strip()) for name, text in named if isinstance(text, str) and text.strip())


def _why_left_out(entry: Mapping[str, Any], dicom: str, facts: _Facts) -> str:
    view = facts.views.get(dicom)
    if view is None:
        return "not in the metadata, or its lung mask is too uncertain"
    if view not in FRONTAL or (entry.get("view") or view) not in FRONTAL:
        return "not a frontal view"
    if not _sections(entry):
        return "neither findings nor impression"
    if entry["generate_method"] != facts.best.get(dicom):
        return "annotated by another method, or better by another"
    return ""


def _record(entry: Mapping[str, Any], split: str, image: Path, where: str, facts: _Facts) -> Record:
    sections = _sections(entry)
    subject, study = entry["id"].split("_", 1)
    # A question with an image id is about that image, one without about every frontal image of the study.
    questions = facts.questions.get(image.stem) or facts.questions.get(study.removeprefix("s"), [])
    return Record(
        id=image.stem,
        split=split,
        image=image,
        where=where,
        group=subject,
        report=" ".join(text for _, text in sections),
        questions=tuple(questions) if split != "train" else (),
        sections=sections,
    )
