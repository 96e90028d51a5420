"""MedPix 2.0: CT and MR images of clinical cases with captions, in the official splits, which divide cases."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from ift_components.data.builders.vqa import Entry, by_image, read_entries, text_of
from ift_components.data.problems import Problems
from ift_components.data.schema import Attribute, Schema
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

FOLDER = "splitted_dataset"
SPLITS = {"train": "train", "val": "dev", "test": "test"}
_ASKED = {
    "modality": "modality of this image",
    "plane": "plane of this image",
    "location": "part of the body in this image",
}
# Values that name nothing an image shows.
_NOTHING = ("", "none", "left blank", "nos - not specified", "other view (see caption)", "n/a", "generalized")


@builder
def medpix2(root: str, *, context: bool = True, images: ImageStore = "embed", on_bad_row: OnBadRow = "error") -> Source:
    """Return MedPix 2.0's images; the report is the caption, and questions ask for modality, plane and location as choices.

    In the `attributes` column stand modality, plane and location, every sentence of the caption as `sentence`, for response
    shuffling, and every sentence of the case's findings as `context`, for generating questions; findings are about all of a
    case's images. Cases are groups.

    Args:
        root: holds `splitted_dataset/` (`descriptions_{train,dev,test}.jsonl` and `data_{train,dev,test}.jsonl`; those of
            test may be absent) and `images/` (`<image>.png`).
        context: keep the findings of the case.
        images: hold the images in the prepared files, or their paths.
        on_bad_row: stop at bad rows, or leave them out.

    Raises:
        DataError: if a file is missing or is not as published.
    """
    folder = Path(root)
    kinds = ("descriptions", "data") if context else ("descriptions",)
    has_test = (folder / FOLDER / f"descriptions_{SPLITS['test']}.jsonl").is_file()
    present = {split: part for split, part in SPLITS.items() if split != "test" or has_test}
    names = [f"{FOLDER}/{kind}_{part}.jsonl" for part in present.values() for kind in kinds]
    paths = require_files(folder, names)
    by_name = dict(zip(names, paths, strict=True))
    entries = {
        split: read_entries(
            by_name[f"{FOLDER}/descriptions_{part}.jsonl"], ("image", "U_id", "Location", "Description")
        )
        for split, part in present.items()
    }
    findings: dict[str, tuple[tuple[str, str], ...]] = {}
    for part in present.values() if context else ():
        for row in read_entries(by_name[f"{FOLDER}/data_{part}.jsonl"], ("U_id", "Case")):
            findings[row["U_id"]] = tuple(
                ("context", text) for text in split_sentences(_stated(row["Case"].get("Findings")))
            )

    def records(problems: Problems) -> Iterator[Record]:
        for split, rows in entries.items():
            for name, own in by_image(rows, "image").items():
                number, entry = own[0]
                where = f"descriptions_{present[split]}.jsonl line {number}"
                if len(own) > 1:
                    problems.add(where, f"image '{name}' occurs {len(own)} times")
                image = find_image(folder / "images", f"{name}.png", where, problems)
                if not image:
                    continue
                values = _values(entry, problems)
                sentences = split_sentences(text_of(entry["Description"].get("Caption")))
                yield Record(
                    id=name,
                    split=split,
                    image=image,
                    where=where,
                    values=values,
                    group=text_of(entry["U_id"]),
                    report=" ".join(sentences),
                    questions=tuple(Question(key, f"What is the {_ASKED[key]}?", text) for key, text in values.items()),
                    sections=(*(("sentence", text) for text in sentences), *findings.get(entry["U_id"], ())),
                )

    schema = Schema(tuple(Attribute(name, asked=False) for name in _ASKED))
    notes = tuple(_notes(entries))
    return Source(folder, schema, paths, records, images, on_bad_row, splits=tuple(present), notes=notes)


def _values(entry: Entry, problems: Problems) -> dict[str, str]:
    """Return modality, plane and location; one that is not stated is counted, and not asked."""
    description = entry["Description"]
    stated = {
        "modality": _stated(description.get("Modality")),
        "plane": _stated(description.get("Plane")),
        "location": _stated(entry["Location"]),
    }
    for name in (name for name, text in stated.items() if not text):
        problems.left_out[f"question about a {name} that is not stated"] += 1
    return {name: text for name, text in stated.items() if text}


def _stated(value: object) -> str:
    text = text_of(value)
    return "" if text.casefold() in _NOTHING else text


def _notes(entries: dict[str, list[Entry]]) -> Iterator[str]:
    for split, rows in entries.items():
        captions = Counter(text_of(row["Description"].get("Caption")) for row in rows)
        shared = sum(count for count in captions.values() if count > 1)
        cases = len({row["U_id"] for row in rows})
        yield f"{split}: {len(rows)} images of {cases} cases; {shared} images share their caption with another"
    if "test" not in entries:
        yield "the official test split is not in the folder"
