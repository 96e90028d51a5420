"""A page to look at a prepared dataset: images with their reports and questions, and statistics as plots.

The page is one file without scripts. Everything from the dataset is escaped, images are encoded anew, and a content
security policy forbids whatever might slip through.
"""

import io
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from ift_components.data.mcq import LETTERS
from ift_components.data.parts import part_rows, rows_at
from ift_components.data.prepared import SPLITS
from ift_components.data.schema import Attribute, Schema
from ift_components.pages import data_url, environment

SAMPLES = 8  # images shown of each split
QUESTIONS = 12  # questions shown of each image
SIDE = 640  # pixels of an enlarged image
_COLOURS = {"train": "#3b6ea5", "val": "#c98a2b", "test": "#5a9367"}


def preview_page(folder: Path, manifest: Mapping[str, Any]) -> str:
    """Return the page of a build whose Parquet files are written; a private one shows statistics only.

    Args:
        folder: the prepared folder.
        manifest: its manifest.
    """
    package, questions = manifest["package"], manifest["questions"]
    provenance = f"prepared by {package['name']} {package['version']}, builder {manifest['builder']['name']}; "
    provenance += f"questions: protocol {questions['protocol']}, seed {questions['seed']}"
    question_splits = [split for split in SPLITS if manifest["checks"]["questions"].get(split)]
    template = environment("ift_components.data").get_template("preview.html")
    return template.render(
        title=dataset_title(manifest),
        provenance=provenance,
        notes=[*_left_out(manifest), *manifest["notes"]],
        warnings=manifest["checks"]["warnings"],
        colours=_COLOURS,
        counts=_counts(manifest["counts"]),
        balance=_balance(manifest),
        questions=_question_table(manifest["checks"]["questions"], question_splits),
        question_splits=question_splits,
        private=manifest["private"],
        samples=[] if manifest["private"] else list(_samples(folder, manifest["counts"]["reports"])),
    )


def dataset_title(manifest: Mapping[str, Any]) -> str:
    """Return the name under which a person knows a dataset: that of its folder, and the builder's."""
    builder = manifest["builder"]
    root = Path(str(builder["arguments"].get("root") or "")).name
    return f"{root} ({builder['name']})" if root else builder["name"]


def _left_out(manifest: Mapping[str, Any]) -> Iterator[str]:
    for reason, count in manifest["left_out"].items():
        yield f"{count} left out: {reason}"
    if manifest["skipped"]["count"]:
        yield f"{manifest['skipped']['count']} bad rows skipped"


def _counts(counts: Mapping[str, Mapping[str, int]]) -> dict[str, list[tuple[str, int, float]]]:
    """Return of reports and questions the count of each split and its share of the highest count."""
    highest = max(1, *counts["reports"].values(), *counts["questions"].values())
    return {
        kind: [(split, count, count / highest) for split, count in by_split.items()]
        for kind, by_split in counts.items()
    }


def _balance(manifest: Mapping[str, Any]) -> dict[str, list[tuple[str, list[tuple[str, float]], int, int]]]:
    """Return of each attribute its values as reports word them: share of each split, count and share in percent of all."""
    attributes: dict[str, Attribute] = {}
    if manifest["schema"]["attributes"]:
        attributes = {attribute.name: attribute for attribute in Schema.from_dict(manifest["schema"]).attributes}
    table = {}
    for name, by_split in manifest["checks"]["balance"].items():
        texts: dict[str, Counter[str]] = {split: Counter() for split in SPLITS if by_split[split]}
        for split, counter in texts.items():  # several source values may have one wording
            for value, count in by_split[split].items():
                label = attributes[name].text(value) if name in attributes else value
                counter[label or "(blank)"] += count
        totals = {split: counter.total() for split, counter in texts.items()}
        trained = texts.get("train", Counter())
        rows = []
        for label in sorted(dict.fromkeys(t for counter in texts.values() for t in counter), key=lambda t: -trained[t]):
            count = sum(counter[label] for counter in texts.values())
            shares = [(split, counter[label] / totals[split]) for split, counter in texts.items()]
            rows.append((label, shares, count, round(100 * count / sum(totals.values()))))
        table[name] = rows
    return table


def _question_table(
    questions: Mapping[str, Mapping[str, Mapping[str, float | None]]], splits: list[str]
) -> dict[str, list[Mapping[str, float | None] | None]]:
    """Return of each attribute asked about the figures of each split, None where it is not asked in that split."""
    names = dict.fromkeys(name for split in splits for name in questions[split])
    return {name: [questions[split].get(name) for split in splits] for name in names}


def _samples(folder: Path, counts: Mapping[str, int]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Yield the splits that hold images, with some of them, their reports and questions."""
    for split in SPLITS:
        places = (n * counts[split] // SAMPLES for n in range(SAMPLES))
        rows = rows_at(folder / "reports" / f"{split}.parquet", places)
        questions = _questions_about(folder, split, {row["id"] for row in rows})
        if rows:
            cards = [{**row, "image": _picture(row["image"]), "questions": questions[row["id"]]} for row in rows]
            yield split, cards


def _questions_about(folder: Path, split: str, ids: set[str]) -> dict[str, list[dict[str, Any]]]:
    """Return the first questions about some images: sentence, and options as (letter, text, whether it is right)."""
    questions: dict[str, list[dict[str, Any]]] = defaultdict(list)
    columns = ["image_id", "question", "options", "answer", "answer_text", "rotation"]
    for row in part_rows(folder / "questions" / f"{split}.parquet", columns):
        about = questions[row["image_id"]]
        if row["image_id"] not in ids or row["rotation"] or len(about) == QUESTIONS:
            continue
        options = [(LETTERS[n], text, n == row["answer"]) for n, text in enumerate(row["options"] or ())]
        about.append({"question": row["question"], "options": options or [("", row["answer_text"], True)]})
    return questions


def _picture(image: Mapping[str, Any]) -> str:
    """Return a stored image as a data URL, reduced."""
    with Image.open(io.BytesIO(image["bytes"]) if image["bytes"] else image["path"]) as opened:
        opened.draft("RGB", (2 * SIDE, 2 * SIDE))
        return data_url(opened, SIDE)
