"""Any dataset of your own with free-text descriptions: a folder of images and a table, or a text file beside each image."""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from ift_components.data.schema import Schema
from ift_components.data.sentences import split_sentences
from ift_components.data.source import (
    Choice,
    ImageStore,
    OnBadRow,
    Problems,
    Record,
    Source,
    builder,
    find_image,
    require_files,
)  # fmt: skip
from ift_components.data.splitting import Division
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
    image_column: str = "image",
    text_column: str = "text",
    split_column: str | None = None,
    group_column: str | None = None,
    val_fraction: float = 0.1,
    test_fraction: float = 0.1,
    seed: int = 0,
    images: ImageStore = "embed",
    on_bad_row: OnBadRow = "error",
) -> Source:
    """Return a dataset of images with free-text descriptions; their sentences are kept apart for response shuffling.

    In the prepared folder every sentence is an entry `sentence` of the `attributes` column, for
    `shuffle_sections(names=[sentence])`.

    Args:
        root: the folder that holds the images.
        table: CSV, XLSX or Parquet table, relative to `root` or absolute; null takes every image that has a text file
            of the same name beside it (`a/1.png`, `a/1.txt`).
        questions: table with the columns `image, question, answer` and, optional, `options` (joined by `|`; without,
            wrong options are drawn from the other answers of the same kind) and `attribute` (the kind, under which
            accuracy is reported); null makes no questions.
        language: ISO 639-1 code of the descriptions, for splitting sentences.
        image_column: holds each image's path, relative to `root`.
        text_column: holds the description.
        split_column: holds train, val (or validation, dev) or test; by default rows are divided at random.
        group_column: rows of one group, such as a patient, are never divided between splits.
        val_fraction: part of the rows or groups for validation, without `split_column`.
        test_fraction: part for testing, without `split_column`.
        seed: seed of the division.
        images: hold the images in the prepared files, or their paths.
        on_bad_row: stop at bad rows, or leave them out.

    Raises:
        DataError: if a table or a column is missing, or there are no images.
    """
    folder = Path(root)
    if table is None and (split_column or group_column):
        raise ConfigError(
            "builder.split_column and builder.group_column need builder.table; text files have no columns"
        )
    paths = require_files(folder, [name for name in (table, questions) if name])
    division = Division(image_column, split_column, group_column, val_fraction, test_fraction, seed)

    def read(problems: Problems) -> Iterator[tuple[str, Row]]:
        if table:
            rows = read_table(paths[0], [text_column, *division.columns], problems)
            yield from ((f"{paths[0].name} row {number}", row) for number, row in rows)
        else:
            for name, text in _text_files(folder, problems):
                yield f"image '{name}'", {image_column: name, text_column: text}

    drawn = division.draw(row for _, row in read(Problems()))

    def records(problems: Problems) -> Iterator[Record]:
        asked = _read_questions(folder / questions, problems) if questions else {}
        for where, row in read(problems):
            name = row[image_column]
            image = find_image(folder, name, where, problems)
            choices = tuple(asked.pop(name, ()))
            sections = tuple(("sentence", text) for text in split_sentences(row[text_column], language))
            report = " ".join(text for _, text in sections)
            if image:
                split = division.split(row, drawn)
                yield Record(name, split, image, where, {}, division.group(row), report, choices, sections)
        for name in asked:
            problems.add(f"{questions}", f"asks about image '{name}', which has no description")

    if table is None:
        paths += tuple(sorted(folder.rglob("*.txt")))
    return Source(folder, Schema(()), paths, records, images, on_bad_row, splits=division.required(drawn))


def _text_files(root: Path, problems: Problems) -> Iterator[tuple[str, str]]:
    """Yield the path of every image under the root and the text of the file of the same name, sorted by path."""
    found = False
    for path in sorted(root.rglob("*")):
        if path.suffix.lower() not in SUFFIXES:
            continue
        name = str(path.relative_to(root))
        text = path.with_suffix(".txt")
        where = f"image {name!a}"
        found = True
        try:
            name.encode()
            yield name, text.read_text(encoding="utf-8-sig")
        except UnicodeEncodeError:
            problems.add(where, "has a name that is not UTF-8; rename the file")
        except UnicodeDecodeError:
            problems.add(where, f"{text.name!a} is not UTF-8")
        except OSError:
            problems.add(where, f"has no text file {text.name!a} beside it")
    if not found:
        raise DataError(f"builder.root: {root} holds no images ({', '.join(SUFFIXES)})")


def _read_questions(path: Path, problems: Problems) -> dict[str, list[Choice]]:
    """Return the questions of each image."""
    asked: dict[str, list[Choice]] = defaultdict(list)
    for number, row in read_table(path, ("image", "question", "answer"), problems):
        given = tuple(text.strip() for text in row.get("options", "").split("|")) if row.get("options") else None
        if not row["question"]:
            problems.add(f"{path.name} row {number}", "the question is empty")
            continue
        asked[row["image"]].append(Choice(row.get("attribute") or "question", row["question"], row["answer"], given))
    return asked
