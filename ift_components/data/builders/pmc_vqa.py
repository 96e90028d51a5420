"""PMC-VQA: questions about figures of papers, with four choices or as a blank to fill."""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path

from ift_components.data.builders.vqa import require_choice
from ift_components.data.problems import Problems
from ift_components.data.schema import Schema
from ift_components.data.sentences import split_sentences
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
from ift_components.data.splitting import random_splits
from ift_components.data.tables import read_csv
from ift_components.errors import ConfigError, DataError

COLUMNS = ("Figure_path", "Question", *(f"Choice {letter}" for letter in "ABCD"))
IMAGE_FOLDERS = ("images", "images_2", "figures")
ANSWERS = ("Answer_label", "Answer", "Anwser")  # the last is the spelling of some copies
_LETTER = re.compile(r"^\s*([A-D])\s*[:.)]\s*")


@builder
def pmc_vqa(
    root: str,
    *,
    version: int = 2,
    form: str = "choice",
    image_folder: str | None = None,
    val_fraction: float = 0.0,
    seed: int = 0,
    images: ImageStore = "path",
    on_bad_row: OnBadRow = "error",
    private: bool = False,
) -> Source:
    """Return PMC-VQA's questions in the published splits; the captions are reports where the table has them.

    Args:
        root: holds `train_2.csv`, `test_2.csv` (version 2: single figures) or `train.csv`, `test.csv` (version 1), and the
            unpacked images in `images/`, `images_2/` or `figures/`.
        version: 1 or 2.
        form: `choice` offers the four choices, `blank` asks without (kind open), `both` asks each question twice.
        image_folder: the images' folder, if it has another name.
        val_fraction: part of the training images that is taken for validation; the published sets have none.
        seed: seed of that division.
        images: name the images where they lie, or hold them in the prepared files.
        on_bad_row: stop at bad rows, or leave them out.
        private: keep captions and questions out of messages, manifest and preview.

    Raises:
        ConfigError: for another version or form.
        DataError: if a file or a column is missing.
    """
    if version not in (1, 2):
        raise ConfigError(f"builder.version is {version}, expected 1 or 2")
    require_choice("form", form, ("choice", "blank", "both"))
    folder = Path(root)
    ending = {1: ".csv", 2: "_2.csv"}[version]
    paths = require_files(folder, [f"{split}{ending}" for split in ("train", "test")])
    places = [image_folder] if image_folder else IMAGE_FOLDERS
    pictures = next((folder / name for name in places if (folder / name).is_dir()), None)
    if pictures is None:
        raise DataError(
            f"builder.image_folder: {folder} has no folder {', '.join(places)}; give the unpacked images' folder"
        )
    tables = dict(zip(("train", "test"), paths, strict=True))
    has_captions = "Caption" in next((row for _, row in read_csv(paths[0], COLUMNS, Problems(private=private))), {})
    division: Mapping[str, str] = {}
    if val_fraction:
        names = {row["Figure_path"] for _, row in read_csv(paths[0], COLUMNS, Problems(private=private))}
        division = random_splits(names, val_fraction, 0.0, seed)

    def records(problems: Problems) -> Iterator[Record]:
        for table, path in tables.items():
            for name, rows in _by_figure(path, problems).items():
                where = f"{path.name} line {rows[0][0]}"
                image = find_image(pictures, name, where, problems)
                of_rows = (_questions(row, form, f"{path.name} line {number}", problems) for number, row in rows)
                questions = tuple(chain.from_iterable(of_rows))
                if image and questions:
                    sentences = split_sentences(rows[0][1].get("Caption", ""))
                    yield Record(
                        id=f"{table}/{name}", split=division.get(name, table) if table == "train" else table, image=image,
                        where=where, group=name, report=" ".join(sentences), questions=questions,
                        sections=tuple(("sentence", text) for text in sentences),
                    )  # fmt: skip

    splits = ("train", "val", "test") if val_fraction else ("train", "test")
    return Source(folder, Schema(()), paths, records, images, on_bad_row, splits=splits, has_reports=has_captions)


def _by_figure(path: Path, problems: Problems) -> dict[str, list[tuple[int, Mapping[str, str]]]]:
    groups: dict[str, list[tuple[int, Mapping[str, str]]]] = defaultdict(list)
    for number, row in read_csv(path, COLUMNS, problems):
        groups[row["Figure_path"]].append((number, row))
    return groups


def _questions(row: Mapping[str, str], form: str, where: str, problems: Problems) -> Iterator[Question]:
    """Yield a row's question in the forms asked for; a row whose answer is none of its choices is noted."""
    choices = tuple(_LETTER.sub("", row[f"Choice {letter}"]).strip() for letter in "ABCD")
    stated = next((row[name] for name in ANSWERS if row.get(name)), "")
    letter, text = _LETTER.match(f"{stated}:"), _LETTER.sub("", stated).strip()
    if text in choices:
        answer = text
    elif letter and not text.removeprefix(letter[1]):
        answer = choices["ABCD".index(letter[1])]
    else:
        problems.add(where, "the answer is none of the choices")
        return
    if not answer or not row["Question"]:
        problems.add(where, "the question or its answer is empty")
        return
    if form != "blank":
        if "" in choices or len({choice.casefold() for choice in choices}) < len(choices):
            problems.left_out["question with an empty choice, or two that read the same"] += 1
        else:
            yield Question("choice", row["Question"], answer, "choice", choices)
    if form != "choice":
        yield Question("blank", row["Question"], answer, "open")
