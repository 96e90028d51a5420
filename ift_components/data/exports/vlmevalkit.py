"""VLMEvalKit: one tab-separated file a split, which the kit loads as a custom multiple-choice set."""

import base64
import csv
from pathlib import Path

import pandas as pd

from ift_components.data.exports.common import Job, choices, image_bytes
from ift_components.data.mcq import LETTERS
from ift_components.errors import DataError

SPECIAL = ("MMT", "MMMU", "MMSci", "MMVP")  # the kit treats sets with these in their names in other ways


def export_vlmevalkit(job: Job) -> None:
    """Write `NAME_SPLIT.tsv` with `index, image, question, A, B, ..., answer, category, split`.

    A repeated image is written once; later rows hold the index of the first.

    Raises:
        DataError: if an option would not come back as the text that it is, or there are no questions.
    """
    if any(word in job.name for word in SPECIAL):
        raise DataError(
            f"VLMEvalKit treats sets with {', '.join(SPECIAL)} in the name in other ways: rename '{job.name}'"
        )
    for split in job.choice_splits():
        _write(job.folder, split, job.out / f"{job.name}_{split}.tsv")


def _write(folder: Path, split: str, path: Path) -> None:
    widest = max(len(row["options"]) for row in choices(folder, split))
    letters = list(LETTERS[:widest])
    first: dict[str, int] = {}
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(["index", "image", "question", *letters, "answer", "category", "split"])
        for index, row in enumerate(choices(folder, split)):
            shown_at = first.setdefault(row["image_id"], index)
            image = base64.b64encode(image_bytes(row["image"])).decode() if shown_at == index else str(shown_at)
            options = row["options"] + [""] * (widest - len(row["options"]))
            answer = LETTERS[row["answer"]]
            writer.writerow([index, image, row["question"], *options, answer, row["attribute"], split])
    _check(folder, split, path, letters)


def _check(folder: Path, split: str, path: Path, letters: list[str]) -> None:
    """Read the options back as the kit does; pandas may take a word for a missing cell or a column for numbers."""
    table = pd.read_csv(path, sep="\t", usecols=letters)
    for row, (_, cells) in zip(choices(folder, split), table.iterrows(), strict=True):
        for letter, text in zip(letters, row["options"], strict=False):
            cell = cells[letter]
            if pd.isna(cell) or str(cell) != text:
                what = "missing" if pd.isna(cell) else f"'{cell}'"
                raise DataError(
                    f"question '{row['id']}': VLMEvalKit reads the option '{text}' as {what}; give it another wording"
                )
