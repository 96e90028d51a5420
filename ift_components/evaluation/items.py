"""What is asked: multiple-choice questions, free questions and reports, read and checked before anything runs."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from ift_components.data.prepared import load_questions, load_reports
from ift_components.data.rows import Rows
from ift_components.errors import DataError
from ift_components.evaluation.questions import letters, multiple_choice_prompt

_SHOWN = 10  # bad rows named in an error


@dataclass(frozen=True)
class Item:
    """One thing a model is asked about one image.

    Attributes:
        id: unique within task and dataset.
        task: `choice`, `free` or `report`.
        dataset: name of the dataset.
        image_id: images of one name are encoded once.
        prompt: the instruction's text; empty if it is the proxy instruction.
        picture: opens the image.
        max_new_tokens: longest answer in tokens.
        attribute: what a multiple-choice question asks for.
        options: its options' texts.
        answer: index of the right option.
        circular_group: the question whose rotation this is.
        reference: the text that a free answer is compared with.
        kind: `open` or `closed`.
    """

    id: str
    task: str
    dataset: str
    image_id: str
    prompt: str
    picture: Callable[[], Image.Image]
    max_new_tokens: int
    attribute: str = ""
    options: tuple[str, ...] = ()
    answer: int = -1
    circular_group: str | None = None
    reference: str = ""
    kind: str | None = None

    @property
    def key(self) -> tuple[str, str, str]:
        """What tells the item from all others."""
        return self.task, self.dataset, self.id

    def facts(self) -> dict[str, Any]:
        """Return what a prediction's line says about the item."""
        facts: dict[str, Any] = {"task": self.task, "dataset": self.dataset, "id": self.id, "image_id": self.image_id}
        if self.task == "choice":
            facts |= {"attribute": self.attribute, "prompt": self.prompt, "options": list(self.options)}
            return facts | {"answer": self.answer, "circular_group": self.circular_group}
        return facts | {"prompt": self.prompt, "reference": self.reference, "kind": self.kind}


def _raise(where: Path | str, wrong: Sequence[str], what: str) -> None:
    if wrong:
        more = f" and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise DataError(f"{where}: {len(wrong)} {what}: {'; '.join(wrong[:_SHOWN])}{more}")


def _picture(data: Rows, index: int) -> Image.Image:
    picture: Image.Image = data[index]["image"]
    return picture


def _limited(data: Rows, limit: int | None) -> Rows:
    return data if limit is None else data.select(range(min(limit, len(data))))


def choice_items(
    folder: Path, split: str, dataset: str, *, max_new_tokens: int = 50, limit: int | None = None
) -> list[Item]:
    """Return the multiple-choice questions of a prepared folder.

    Args:
        folder: the prepared folder.
        split: `val` or `test`.
        dataset: name of the dataset.
        max_new_tokens: longest answer in tokens.
        limit: take only the first questions.

    Raises:
        DataError: if folder or split are missing, or a question has no image, an answer outside of its options, too many
            options or another's id.
    """
    data = load_questions(folder, split)
    where = f"{folder}: questions of split '{split}'"
    _raise(where, data.missing_images(), "questions have no image")
    data = _limited(data, limit)
    pictures = data.select_columns(["id", "image"])
    items, seen, wrong = [], set(), []
    for index, row in enumerate(data.remove_columns("image")):
        options, answer = row["options"], row["answer"]
        if answer is None or not 0 <= answer < len(options):
            wrong.append(f"'{row['id']}' has answer {answer} of {len(options)} options")
            continue
        if len(options) > len(letters(26)):
            wrong.append(f"'{row['id']}' has {len(options)} options, more than there are letters")
            continue
        if row["id"] in seen:
            wrong.append(f"'{row['id']}' occurs twice")
        seen.add(row["id"])
        items.append(
            Item(
                id=row["id"],
                task="choice",
                dataset=dataset,
                image_id=row["image_id"],
                prompt=multiple_choice_prompt(row["question"], options),
                picture=partial(_picture, pictures, index),
                max_new_tokens=max_new_tokens,
                attribute=row["attribute"],
                options=tuple(options),
                answer=answer,
                circular_group=row.get("circular_group"),
            )
        )
    _raise(where, wrong, "questions are wrong")
    return items


def report_items(
    folder: Path, split: str, dataset: str, instruction: str, *, max_new_tokens: int, limit: int | None = None
) -> list[Item]:
    """Return one item an image of a prepared folder: its report is to be written.

    Args:
        folder: the prepared folder.
        split: `val` or `test`.
        dataset: name of the dataset.
        instruction: the training instruction's text; empty where it is the proxy instruction.
        max_new_tokens: longest report in tokens.
        limit: take only the first images.

    Raises:
        DataError: if folder or split are missing, or a report has no image.
    """
    data = load_reports(folder, split)
    _raise(f"{folder}: reports of split '{split}'", data.missing_images(), "reports have no image")
    data = _limited(data, limit)
    pictures = data.select_columns(["id", "image"])
    return [
        Item(
            id=row["id"],
            task="report",
            dataset=dataset,
            image_id=row["id"],
            prompt=instruction,
            picture=partial(_picture, pictures, index),
            max_new_tokens=max_new_tokens,
            reference=row["report"],
        )
        for index, row in enumerate(data.select_columns(["id", "report"]))
    ]


def _read_rows(path: Path) -> list[dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
        rows = (
            json.loads(text)
            if text.lstrip().startswith("[")
            else [json.loads(x) for x in text.splitlines() if x.strip()]
        )
    except (OSError, ValueError) as error:
        raise DataError(f"free_questions: {path} cannot be read as JSON or JSON lines: {error}") from error
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"free_questions: {path} must hold a list of questions, each an object")
    return rows


# Other names that VQA-RAD and SLAKE give the same thing.
_NAMES = {
    "id": ("id", "qid"),
    "image": ("image", "image_name", "img_name"),
    "question": ("question",),
    "answer": ("answer",),
}


def _free_fields(rows: list[dict[str, Any]], dataset: str) -> Iterator[tuple[dict[str, str], str | None, str]]:
    for row in rows:
        given = {
            name: next((row[key] for key in keys if row.get(key) is not None), None) for name, keys in _NAMES.items()
        }
        kind = str(row.get("answer_type", row.get("kind")) or "").strip().lower()
        fields = {name: "" if value is None else str(value).strip() for name, value in given.items()}
        yield fields, kind or None, str(row.get("set") or dataset)


def _open_file(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f"free_questions: {path} cannot be decoded: {error}") from error


def free_items(path: Path, images: Path, dataset: str, *, max_new_tokens: int, limit: int | None = None) -> list[Item]:
    """Return open and closed questions with a text as their answer, e.g. VQA-RAD's or SLAKE's own file.

    Args:
        path: JSON (a list) or JSON lines with `id` (or `qid`), `image` (`image_name`, `img_name`), `question`, `answer` and,
            optional, `answer_type` (`OPEN` or `CLOSED`) and `set`, the name of the dataset that a row is counted under.
        images: folder that image names are relative to.
        dataset: name of the dataset where a row names none.
        max_new_tokens: longest answer in tokens.
        limit: take only the first questions.

    Raises:
        DataError: if the file cannot be read or a question lacks a field, its image, or has another's id.
    """
    items, seen, wrong = [], set(), []
    for number, (given, kind, name) in enumerate(_free_fields(_read_rows(path), dataset)):
        lacking = [field for field, value in given.items() if not value]
        if lacking:
            wrong.append(f"row {number + 1} has no {', '.join(lacking)}")
            continue
        image = images / given["image"]
        if not image.is_file():
            wrong.append(f"'{given['id']}': {image} is missing")
        if given["id"] in seen:
            wrong.append(f"'{given['id']}' occurs twice")
        if kind not in (None, "open", "closed"):
            wrong.append(f"'{given['id']}' has answer_type '{kind}', expected OPEN or CLOSED")
        seen.add(given["id"])
        items.append(
            Item(
                id=given["id"],
                task="free",
                dataset=name,
                image_id=given["image"],
                prompt=given["question"],
                picture=partial(_open_file, image),
                max_new_tokens=max_new_tokens,
                reference=given["answer"],
                kind=kind,
            )
        )
    _raise(f"free_questions: {path}", wrong, "questions are wrong")
    return items[:limit]
