"""A sheet on which a person grades answers without knowing whose they are, and the grades that come back."""

import csv
import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ift_components.errors import DataError
from ift_components.evaluation.judging.grading import HIGHEST, LOWEST
from ift_components.evaluation.judging.subjects import Subject
from ift_components.files import write_text
from ift_components.pages import environment

_COLUMNS = ("code", "question", "reference", "answer", "grade")


@dataclass
class SheetOptions:
    """The sheet for people.

    Attributes:
        answers: answers on it, drawn at random from all evaluations; 0 makes none.
        seed: seed of draw and order.
    """

    answers: int = 50
    seed: int = 0


def _cell(text: str) -> str:
    """Return text for a spreadsheet, which would take some first characters for those of a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def write_sheet(folder: Path, subjects: Sequence[Subject], options: SheetOptions) -> None:
    """Write sheet.csv and sheet.html, unless they are there: a person's grades may stand in them.

    Neither tells whose answer it is or what a judge said; a person gets the texts that judges get.

    Args:
        folder: the folder to write to.
        subjects: the answers to draw from; equal answers to one question are one.
        options: how many, and the seed.
    """
    unique = list({subject.code: subject for subject in subjects}.values())
    unique.sort(key=lambda s: hashlib.sha256(f"{options.seed}/{s.code}".encode()).digest())
    drawn = [
        {"code": s.code, "question": s.item.prompt, "reference": s.reference, "answer": s.answer, "grade": ""}
        for s in unique[: options.answers]
    ]
    if not drawn:
        return
    if not (folder / "sheet.csv").exists():
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, _COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: _cell(text) for name, text in row.items()} for row in drawn)
        # The mark at the beginning is what makes Excel read UTF-8.
        write_text(folder / "sheet.csv", "\ufeff" + buffer.getvalue().encode("utf-8", "backslashreplace").decode())
    if not (folder / "sheet.html").exists():
        page = environment("ift_components.evaluation").get_template("sheet.html").render(rows=drawn)
        write_text(folder / "sheet.html", page.encode("utf-8", "backslashreplace").decode())


def read_sheet(path: Path, subjects: Sequence[Subject], where: str) -> dict[str, float]:
    """Return a person's grades by code; rows without a grade are left out.

    Args:
        path: sheet.csv with grades in it, or what sheet.html saved; separated by commas, semicolons or tabs.
        subjects: the answers of the evaluations.
        where: the config key that names it, for messages.

    Raises:
        DataError: if it cannot be read, lacks a column, or a row has an unknown or repeated code or no grade from 0 to 10.
    """
    try:
        text = path.expanduser().read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{where}: {path} cannot be read as UTF-8 text: {error}") from error
    first = text.partition("\n")[0]
    separator = max(",;\t", key=first.count)
    rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator)
    missing = [name for name in ("code", "grade") if name not in (rows.fieldnames or ())]
    if missing:
        raise DataError(f"{where}: {path} has no column '{missing[0]}' in its first line; expected those of sheet.csv")
    codes = {subject.code for subject in subjects}
    grades: dict[str, float] = {}
    for row in rows:
        code, grade = (row["code"] or "").strip(), (row["grade"] or "").strip()
        if not grade:
            continue
        line = f"{where}: {path} line {rows.line_num}"
        if code not in codes:
            raise DataError(
                f"{line}: code '{code}' is of no answer in these evaluations; is it another folder's sheet?"
            )
        if code in grades:
            raise DataError(f"{line}: code '{code}' has two grades; leave one")
        grades[code] = _grade(grade, line)
    if not grades:
        raise DataError(f"{where}: {path} holds no grade yet; fill the column 'grade' with numbers from 0 to 10")
    return grades


def _grade(text: str, line: str) -> float:
    try:
        value = float(text.replace(",", "."))
    except ValueError:
        value = float("nan")
    if not LOWEST <= value <= HIGHEST:
        raise DataError(f"{line}: grade '{text}' is no number from 0 to 10")
    return value


def by_subject(grades: Mapping[str, float], subjects: Sequence[Subject]) -> dict[Subject, float]:
    """Return a person's grades by answer."""
    return {subject: grades[subject.code] for subject in subjects if subject.code in grades}
