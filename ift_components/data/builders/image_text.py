"""Any dataset of your own with free-text descriptions: a folder of images and a table, or a text file beside each image."""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import cast

from ift_components.data.builders.own import OwnData
from ift_components.data.schema import Schema
from ift_components.data.sentences import split_sentences
from ift_components.data.source import (
    Problems,
    Question,
    QuestionKind,
    Record,
    Source,
    builder,
    find_image,
    require_files,
)  # fmt: skip
from ift_components.data.tables import Row, read_table
from ift_components.errors import ConfigError, DataError

SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp", ".dcm")


@builder
def image_text(
    root: str,
    table: str | None = None,
    *,
    questions: str | None = None,
    language: str = "en",
    text_column: str = "text",
    context_column: str | None = None,
    options: OwnData,
) -> Source:
    """Return a dataset of images with free-text descriptions; their sentences are kept apart for response shuffling.

    In the prepared folder every sentence is an entry `sentence` of the `attributes` column, for
    `shuffle_sections(names=[sentence])`.

    Args:
        root: the folder that holds the images.
        table: CSV, XLSX or Parquet table, relative to `root` or absolute; null takes every image that has a text file
            of the same name beside it (`a/1.png`, `a/1.txt`).
        questions: table with the columns `image, question, answer` and, optional, `kind` (choice, closed or open; choice
            by default), `options` of a choice (joined by `|`; without, wrong options are drawn from the other answers to
            the same attribute) and `attribute` (the name under which accuracy is reported); null makes no questions.
        language: ISO 639-1 code of the descriptions, for splitting sentences.
        text_column: holds the description.
        context_column: holds what else is said about the image, such as a paper's sentences that mention it; each sentence
            becomes an entry `context` of the `attributes` column, for generating questions.
        options: where rows lie, how they are divided and stored; each field is a keyword of the builder.

    Raises:
        DataError: if a table or a column is missing, or there are no images.
    """
    folder = Path(root)
    if table is None and (options.split_column or options.group_column or context_column):
        raise ConfigError(
            "builder.split_column, group_column and context_column need builder.table; text files have no columns"
        )
    paths = require_files(folder, [name for name in (table, questions) if name])
    texts = [text_column, *([context_column] if context_column else [])]

    def read(problems: Problems) -> Iterator[tuple[str, Row]]:
        if table:
            rows = read_table(paths[0], [*texts, *options.columns], problems)
            yield from ((f"{paths[0].name} row {number}", row) for number, row in rows)
        else:
            for name, text in _text_files(folder, problems):
                yield f"image '{name}'", {options.image_column: name, text_column: text}

    drawn = options.draw(row for _, row in read(Problems()))

    def records(problems: Problems) -> Iterator[Record]:
        by_image = _read_questions(folder / questions, problems) if questions else {}
        for where, row in read(problems):
            name = row[options.image_column]
            image = find_image(folder, name, where, problems)
            own_questions = tuple(by_image.pop(name, ()))
            sentences = split_sentences(row[text_column], language)
            context = split_sentences(row[context_column], language) if context_column else []
            if image:
                yield Record(
                    id=name,
                    split=options.split(row, drawn),
                    image=image,
                    where=where,
                    group=options.group(row),
                    report=" ".join(sentences),
                    questions=own_questions,
                    sections=(*(("sentence", text) for text in sentences), *(("context", text) for text in context)),
                )
        for name in by_image:
            problems.add(f"{questions}", f"asks about image '{name}', which has no description")

    if table is None:
        paths += tuple(sorted(folder.rglob("*.txt")))
    required = options.required(drawn)
    return Source(folder, Schema(()), paths, records, options.images, options.on_bad_row, splits=required)


def _text_files(root: Path, problems: Problems) -> Iterator[tuple[str, str]]:
    """Yield the path of every image under the root and the text of the file of the same name, sorted by path."""
    any_image = False
    for path in sorted(root.rglob("*")):
        if path.suffix.lower() not in SUFFIXES:
            continue
        name = str(path.relative_to(root))
        text = path.with_suffix(".txt")
        where = f"image {name!a}"
        any_image = True
        try:
            name.encode()
            yield name, text.read_text(encoding="utf-8-sig")
        except UnicodeEncodeError:
            problems.add(where, "has a name that is not UTF-8; rename the file")
        except UnicodeDecodeError:
            problems.add(where, f"{text.name!a} is not UTF-8")
        except OSError:
            problems.add(where, f"has no text file {text.name!a} beside it")
    if not any_image:
        raise DataError(f"builder.root: {root} holds no images ({', '.join(SUFFIXES)})")


def _read_questions(path: Path, problems: Problems) -> dict[str, list[Question]]:
    """Return the questions of each image."""
    by_image: dict[str, list[Question]] = defaultdict(list)
    for number, row in read_table(path, ("image", "question", "answer"), problems):
        if not row["question"]:
            problems.add(f"{path.name} row {number}", "the question is empty")
            continue
        question = Question(
            attribute=row.get("attribute") or "question",
            text=row["question"],
            answer=row["answer"],
            kind=cast("QuestionKind", row.get("kind", "").lower() or "choice"),  # checked with the record
            options=tuple(text.strip() for text in row["options"].split("|")) if row.get("options") else None,
        )
        by_image[row["image"]].append(question)
    return by_image
