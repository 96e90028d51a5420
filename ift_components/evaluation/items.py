"""What is asked of a prepared folder: its questions and its reports, read and checked before anything runs."""

import random
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from ift_components.data.prepared import load_questions, load_reports
from ift_components.data.rows import Rows
from ift_components.data.wording import letters
from ift_components.errors import DataError
from ift_components.evaluation.records import Item
from ift_components.evaluation.tasks import CHOICE, CONTROLS, REPORT, task_of_kind

_SHOWN = 10  # bad rows named in an error
_KINDS = ("choice", "closed", "open")


def refuse_rows(where: Path | str, mistakes: Sequence[str], what: str) -> None:
    """Raise a `DataError` that names the first mistakes and counts all, if there are any."""
    if mistakes:
        more = f" and {len(mistakes) - _SHOWN} more" if len(mistakes) > _SHOWN else ""
        raise DataError(f"{where}: {len(mistakes)} {what}: {'; '.join(mistakes[:_SHOWN])}{more}")


def _picture(data: Rows, index: int) -> Image.Image:
    picture: Image.Image = data[index]["image"]
    return picture


def _limited(data: Rows, limit: int | None) -> Rows:
    """Return the first rows, and of the rotation groups that these begin the rest, wherever it stands."""
    if limit is None or limit >= len(data):
        return data
    if "circular_group" not in data.column_names:
        return data.select(range(limit))
    groups = data["circular_group"]
    begun = set(groups[:limit]) - {None}
    return data.select([index for index, group in enumerate(groups) if index < limit or group in begun])


def _mistake(row: dict[str, Any], kind: str) -> str | None:
    """Return what is wrong with a question's row; None if nothing is."""
    options, answer = row["options"] or (), row["answer"]
    if kind not in _KINDS:
        return f"'{row['id']}' is of kind '{kind}', expected one of {', '.join(_KINDS)}"
    if kind != CHOICE.name:
        return None if row.get("answer_text") else f"'{row['id']}' has no answer_text"
    if answer is None or not 0 <= answer < len(options):
        return f"'{row['id']}' has answer {answer} of {len(options)} options"
    if len(options) > len(letters(26)):
        return f"'{row['id']}' has {len(options)} options, more than there are letters"
    return None


def question_items(
    folder: Path, split: str, dataset: str, *, max_new_tokens: int = 50, limit: int | None = None
) -> list[Item]:
    """Return the questions of a prepared folder, of whatever kind.

    Args:
        folder: the prepared folder.
        split: `train`, `val` or `test`.
        dataset: name of the dataset.
        max_new_tokens: longest answer in tokens.
        limit: take only the first questions.

    Raises:
        DataError: if folder or split are missing, or a question has no image, an answer outside of its options, too many
            options or another's id.
    """
    data = load_questions(folder, split)
    where = f"{folder}: questions of split '{split}'"
    refuse_rows(where, data.missing_images(), "questions have no image")
    data = _limited(data, limit)
    pictures = data.select_columns(["id", "image"])
    items, ids, mistakes = [], set(), []
    for index, row in enumerate(data.remove_columns("image")):
        kind = row.get("kind") or CHOICE.name  # folders of format 1 hold nothing else
        mistake = _mistake(row, kind)
        if mistake:
            mistakes.append(mistake)
            continue
        if row["id"] in ids:
            mistakes.append(f"'{row['id']}' occurs twice")
        ids.add(row["id"])
        task, options = task_of_kind(kind), tuple(row["options"] or ())
        items.append(
            Item(
                id=row["id"],
                task=task.name,
                dataset=dataset,
                image_id=row["image_id"],
                prompt=task.render(row["question"], options),
                picture=partial(_picture, pictures, index),
                max_new_tokens=max_new_tokens,
                attribute=row["attribute"],
                options=options,
                answer=row["answer"] if options else -1,
                circular_group=row.get("circular_group"),
                reference=str(row.get("answer_text") or "") if not options else "",
                kind=kind,
            )
        )
    refuse_rows(where, mistakes, "questions are wrong")
    return items


def control_items(items: Sequence[Item]) -> list[Item]:
    """Return the questions again, each with the pixels of another image.

    The images, shuffled by a fixed seed, are moved on by one (a derangement): every image is another's control once. With a
    single image there is nothing to exchange.

    Args:
        items: the questions of one dataset.
    """
    pictures = {item.image_id: item.picture for item in items}
    if len(pictures) <= 1:
        return []
    images = list(pictures)
    random.Random(0).shuffle(images)
    others = dict(zip(images, [*images[1:], images[0]], strict=True))
    return [
        replace(
            item,
            task=CONTROLS[item.task].name,
            image_id=others[item.image_id],
            picture=pictures[others[item.image_id]],
        )
        for item in items
    ]


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
    refuse_rows(f"{folder}: reports of split '{split}'", data.missing_images(), "reports have no image")
    data = _limited(data, limit)
    pictures = data.select_columns(["id", "image"])
    return [
        Item(
            id=row["id"],
            task=REPORT.name,
            dataset=dataset,
            image_id=row["id"],
            prompt=REPORT.render(instruction, ()),
            picture=partial(_picture, pictures, index),
            max_new_tokens=max_new_tokens,
            reference=row["report"],
        )
        for index, row in enumerate(data.select_columns(["id", "report"]))
    ]
