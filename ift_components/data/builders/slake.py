"""SLAKE: questions in English and Chinese about 642 radiology images, in the published splits, which are by question."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from ift_components.data.builders.vqa import Entry, by_image, read_entries, require_choice, shared_images, text_of
from ift_components.data.problems import Problems
from ift_components.data.schema import Attribute, Schema
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

FILES = {"train": "train.json", "val": "validate.json", "test": "test.json"}
FIELDS = ("img_name", "question", "answer", "q_lang", "location", "modality", "answer_type", "content_type")


@builder
def slake(root: str, *, language: str = "en", images: ImageStore = "embed", on_bad_row: OnBadRow = "error") -> Source:
    """Return SLAKE's questions, closed and open; its images have no reports.

    A question's attribute is its category (`Modality`, `Plane`, `Shape`, `Size`, `Organ`, `Position`, `Abnormality`, `Color`,
    `Quantity`, `KG`). An image of several splits is a record of each.

    Args:
        root: holds `train.json`, `validate.json`, `test.json` and `imgs/`.
        language: `en`, `zh` or `all`.
        images: hold the images in the prepared files, or their paths.
        on_bad_row: stop at bad rows, or leave them out.

    Raises:
        ConfigError: for another language.
        DataError: if a file is missing or is not as published.
    """
    require_choice("language", language, ("en", "zh", "all"))
    folder = Path(root)
    paths = require_files(folder, FILES.values())
    entries = {split: read_entries(path, FIELDS) for split, path in zip(FILES, paths, strict=True)}

    def records(problems: Problems) -> Iterator[Record]:
        for split, rows in entries.items():
            for name, own in by_image(rows, "img_name").items():
                where = f"{FILES[split]} entry {own[0][0]}"
                questions = tuple(_questions(own, language, problems))
                image = find_image(folder / "imgs", name, where, problems) if questions else None
                if image:
                    first = own[0][1]
                    values = {"modality": text_of(first["modality"]), "location": text_of(first["location"])}
                    yield Record(
                        id=f"{split}/{name}", split=split, image=image, where=where, values=values, group=name, report="",
                        questions=questions,
                    )  # fmt: skip

    schema = Schema((Attribute("modality", asked=False), Attribute("location", asked=False)))
    notes = tuple(shared_images({split: [row["img_name"] for row in rows] for split, rows in entries.items()}))
    return Source(folder, schema, paths, records, images, on_bad_row, has_reports=False, notes=notes)


def _questions(own: Sequence[tuple[int, Entry]], language: str, problems: Problems) -> Iterator[Question]:
    for _, entry in own:
        answer, spoken = text_of(entry["answer"]), text_of(entry["q_lang"])
        if language not in (spoken, "all"):
            problems.left_out[f"question in language '{spoken}'"] += 1
        elif not answer:
            problems.left_out["question without an answer"] += 1
        else:
            closed = text_of(entry["answer_type"]).upper() == "CLOSED"
            category, question = text_of(entry["content_type"]), text_of(entry["question"])
            yield Question(category, question, answer, "closed" if closed else "open")
