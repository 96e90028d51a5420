"""VLMEvalKit: one tab-separated file a split, which the kit loads as a custom multiple-choice set."""

import base64
import csv
from pathlib import Path

from ift_components.data.exports.common import Job, choices, image_bytes
from ift_components.data.mcq import LETTERS
from ift_components.errors import DataError

# Words that the kit's table reader (pandas) takes for a missing cell.
MISSING = {
    "", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA",
    "NULL", "NaN", "None", "n/a", "nan", "null",
}  # fmt: skip
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
            for text in row["options"]:
                _check(text, row["id"])
            known = first.setdefault(row["image_id"], index)
            image = base64.b64encode(image_bytes(row["image"])).decode() if known == index else str(known)
            options = row["options"] + [""] * (widest - len(row["options"]))
            answer = LETTERS[row["answer"]]
            writer.writerow([index, image, row["question"], *options, answer, row["attribute"], split])


def _check(text: str, question: str) -> None:
    if text in MISSING:
        raise DataError(
            f"question '{question}': VLMEvalKit reads the option '{text}' as missing; give it another wording"
        )
    try:
        float(text)
    except ValueError:
        return
    raise DataError(f"question '{question}': VLMEvalKit reads the option '{text}' as a number; give it another wording")
