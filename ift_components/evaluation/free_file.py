"""Free questions out of a file: JSON or JSON lines, with the field names that VQA-RAD and SLAKE use."""

import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from ift_components.errors import DataError
from ift_components.evaluation.items import refuse_rows
from ift_components.evaluation.records import Item
from ift_components.evaluation.tasks import FREE


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


def _fields(rows: list[dict[str, Any]], dataset: str) -> Iterator[tuple[dict[str, str], str | None, str]]:
    for row in rows:
        values = {
            name: next((row[key] for key in keys if row.get(key) is not None), None) for name, keys in _NAMES.items()
        }
        kind = str(row.get("answer_type", row.get("kind")) or "").strip().lower()
        fields = {name: "" if value is None else str(value).strip() for name, value in values.items()}
        yield fields, kind or None, str(row.get("set") or dataset)


def _in_languages(rows: list[dict[str, Any]], languages: Sequence[str], path: Path) -> list[dict[str, Any]]:
    """Return the rows in one of the languages; a row that names none is in all."""
    spoken = [row for row in rows if row.get("q_lang") is None or row["q_lang"] in languages]
    if not spoken:
        present = ", ".join(sorted({str(row["q_lang"]) for row in rows}))
        raise DataError(f"free.languages: no question of {path} is in {', '.join(languages)}; it has {present}")
    return spoken


def _open_file(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f"free_questions: {path} cannot be decoded: {error}") from error


def free_items(
    path: Path,
    images: Path,
    dataset: str,
    *,
    max_new_tokens: int,
    limit: int | None = None,
    languages: Sequence[str] = ("en",),
) -> list[Item]:
    """Return open and closed questions with a text as their answer, e.g. VQA-RAD's or SLAKE's own file.

    Args:
        path: JSON (a list) or JSON lines with `id` (or `qid`), `image` (`image_name`, `img_name`), `question`, `answer` and,
            optional, `answer_type` (`OPEN` or `CLOSED`), `q_lang` and `set`, the name of the dataset that a row is counted
            under.
        images: folder that image names are relative to.
        dataset: name of the dataset where a row names none.
        max_new_tokens: longest answer in tokens.
        limit: take only the first questions.
        languages: values of `q_lang` that are asked.

    Raises:
        DataError: if the file cannot be read or a question lacks a field, its image, or has another's id.
    """
    items, ids, mistakes = [], set(), []
    rows = _in_languages(_read_rows(path), languages, path)
    for number, (fields, kind, name) in enumerate(_fields(rows, dataset)):
        lacking = [field for field, value in fields.items() if not value]
        if lacking:
            mistakes.append(f"row {number + 1} has no {', '.join(lacking)}")
            continue
        image = images / fields["image"]
        if not image.is_file():
            mistakes.append(f"'{fields['id']}': {image} is missing")
        if fields["id"] in ids:
            mistakes.append(f"'{fields['id']}' occurs twice")
        if kind not in (None, "open", "closed"):
            mistakes.append(f"'{fields['id']}' has answer_type '{kind}', expected OPEN or CLOSED")
        ids.add(fields["id"])
        items.append(
            Item(
                id=fields["id"],
                task=FREE.name,
                dataset=name,
                image_id=fields["image"],
                prompt=FREE.render(fields["question"], ()),
                picture=partial(_open_file, image),
                max_new_tokens=max_new_tokens,
                reference=fields["answer"],
                kind=kind,
            )
        )
    refuse_rows(f"free_questions: {path}", mistakes, "questions are wrong")
    return items[:limit]
