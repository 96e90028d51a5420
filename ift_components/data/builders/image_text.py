"""Any dataset of your own with free-text descriptions: a folder of images and a table, or a text file beside each image."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import cast

from ift_components.data.builders.own import OwnData
from ift_components.data.matching import SUFFIXES, ImageIndex, image_column, matching_note
from ift_components.data.problems import Problems
from ift_components.data.schema import Schema
from ift_components.data.sentences import split_sentences
from ift_components.data.source import (
    Question,
    QuestionKind,
    Record,
    Source,
    builder,
    require_files,
)  # fmt: skip
from ift_components.data.tables import Row, read_table
from ift_components.errors import ConfigError, DataError


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
    index = ImageIndex(folder, follow_links=options.follow_links)
    notes: list[str] = []
    if table:
        problems = options.problems()
        rows = [row for _, row in read_table(paths[0], [*texts, *options.columns], problems, notes)]
        if not rows:
            raise DataError(
                f"{paths[0].name} has no usable row" + (f"\n{problems.summary()}" if problems.count else "")
            )
        options = replace(
            options,
            image_column=options.image_column or image_column(index, rows, paths[0].name, private=options.private),
        )
        notes.append(matching_note(index, options.key_column, rows, private=options.private))

    def read(problems: Problems) -> Iterator[tuple[str, Row]]:
        if table:
            numbered = read_table(paths[0], [*texts, *options.columns], problems)
            yield from ((f"{paths[0].name} row {number}", row) for number, row in numbered)
        else:
            for name, text in _text_files(index, problems):
                yield f"image '{name}'", {options.key_column: name, text_column: text}

    drawn = options.draw(row for _, row in read(options.problems()))

    def records(problems: Problems) -> Iterator[Record]:
        by_image = _read_questions(folder / questions, index, problems) if questions else {}
        for where, row in read(problems):
            image = index.find(row[options.key_column], where, problems)
            if image is None:
                continue
            sentences = split_sentences(row[text_column], language)
            context = split_sentences(row[context_column], language) if context_column else []
            yield Record(
                id=image[0],
                split=options.split(row, drawn),
                image=image[1],
                where=where,
                group=options.group(row),
                report=" ".join(sentences),
                questions=tuple(by_image.pop(image[0], ())),
                sections=(*(("sentence", text) for text in sentences), *(("context", text) for text in context)),
            )
        for name, asked_about in by_image.items():
            for _ in asked_about:
                what = f"asks about image '{name}', which has no description"
                problems.add(f"{questions}", what, "question about an image without a description")

    if table is None:
        paths += tuple(sorted(folder / Path(name).with_suffix(".txt") for name in index.files))
        paths = tuple(path for path in paths if path.is_file())
    return Source(
        folder,
        Schema(()),
        paths,
        records,
        options.images,
        options.on_bad_row,
        splits=options.required(drawn),
        private=options.private,
        notes=tuple(notes),
    )


def _text_files(index: ImageIndex, problems: Problems) -> Iterator[tuple[str, str]]:
    """Yield the path of every image under the root and the text of the file of the same name, sorted by path."""
    if not index.files:
        raise DataError(f"builder.root: {index.root} holds no images ({', '.join(SUFFIXES)})")
    for name in index.files:
        text = (index.root / name).with_suffix(".txt")
        where = f"image {name!a}"
        try:
            name.encode()
            yield name, text.read_text(encoding="utf-8-sig")
        except UnicodeEncodeError:
            problems.add(where, "has a name that is not UTF-8; rename the file")
        except UnicodeDecodeError:
            problems.add(where, f"{text.name!a} is not UTF-8", "text file is not UTF-8")
        except OSError:
            problems.add(where, f"has no text file {text.name!a} beside it", "no text file")


def _read_questions(path: Path, index: ImageIndex, problems: Problems) -> dict[str, list[Question]]:
    """Return the questions of each image, by the path that the index knows it under."""
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
        _, files = index.candidates(row["image"])
        by_image[files[0] if len(files) == 1 else row["image"]].append(question)
    return by_image
