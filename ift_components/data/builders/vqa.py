"""What the builders for published sets of questions share."""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ift_components.data.source import Problems, Question, Record, find_image
from ift_components.errors import ConfigError, DataError

Entry = Mapping[str, Any]


def read_entries(path: Path, fields: Iterable[str]) -> list[Entry]:
    """Return the objects of a JSON list, or of a file with one JSON object a line.

    Raises:
        DataError: if the file is neither, or an object lacks a field.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        is_list = text.lstrip()[:1] == "["
        entries = json.loads(text) if is_list else [json.loads(line) for line in text.split("\n") if line.strip()]
    except (OSError, ValueError) as error:
        raise DataError(f"{path.name} cannot be read as JSON: {error}") from error
    for number, entry in enumerate(entries, 1):
        missing = [name for name in fields if not isinstance(entry, dict) or name not in entry]
        if missing:
            raise DataError(f"{path.name} entry {number} lacks {', '.join(missing)}")
    return entries


def by_image(entries: Iterable[Entry], field: str) -> dict[str, list[tuple[int, Entry]]]:
    """Return the entries of each image with their numbers from 1, images in the order of their first entry."""
    groups: dict[str, list[tuple[int, Entry]]] = defaultdict(list)
    for number, entry in enumerate(entries, 1):
        groups[str(entry[field])].append((number, entry))
    return groups


def text_of(value: Any) -> str:
    """Return a cell as text with single spaces; numbers as they are written, null as nothing."""
    return "" if value is None else " ".join(str(value).split())


def shared_images(images: Mapping[str, Iterable[str]]) -> list[str]:
    """Return a sentence for each pair of splits that have images in common.

    Args:
        images: the names of each split's images.
    """
    names = {split: set(values) for split, values in images.items()}
    splits = list(names)
    return [
        f"{len(names[second] & names[first])} of {len(names[second])} {second} images occur in {first} too: the published "
        "split is by question, so a model has seen the image"
        for place, first in enumerate(splits)
        for second in splits[place + 1 :]
        if names[first] & names[second]
    ]


def require_choice(key: str, value: str, allowed: Iterable[str]) -> None:
    """Check an argument that is one of some words.

    Raises:
        ConfigError: naming the key and what it may be.
    """
    if value not in allowed:
        raise ConfigError(f"builder.{key} is '{value}', expected one of: {', '.join(allowed)}")


def question_records(
    entries: Mapping[str, Sequence[Entry]],
    files: Mapping[str, str],
    images: Path,
    *,
    image_field: str,
    values: Mapping[str, str],
    question: Callable[[Entry], Question | str],
) -> Callable[[Problems], Iterator[Record]]:
    """Return what yields a record for each image of each split, without a report, with its questions; it is its own group.

    An image of several splits is a record of each. Entries without an answer are counted and left out.

    Args:
        entries: the questions of each split.
        files: the file that each split's come from, for messages.
        images: the images' folder.
        image_field: names an entry's image.
        values: attribute names, and the fields that hold them.
        question: makes an entry's question, or says why it is left out.
    """

    def records(problems: Problems) -> Iterator[Record]:
        for split, rows in entries.items():
            for name, own in by_image(rows, image_field).items():
                number, first = own[0]
                outcomes = [question(entry) for _, entry in own]
                problems.left_out.update(reason for reason in outcomes if isinstance(reason, str))
                questions = tuple(outcome for outcome in outcomes if isinstance(outcome, Question))
                where = f"{files[split]} entry {number}"
                image = find_image(images, name, where, problems) if questions else None
                if image:
                    yield Record(
                        id=f"{split}/{name}",
                        split=split,
                        image=image,
                        where=where,
                        values={key: text_of(first[field]) for key, field in values.items()},
                        group=name,
                        report="",
                        questions=questions,
                    )

    return records


def closed_or_open(entry: Entry, attribute: str) -> Question | str:
    """Return an entry's question, closed or open as its `answer_type` says; one without an answer is left out."""
    answer = text_of(entry["answer"])
    if not answer:
        return "question without an answer"
    kind = text_of(entry["answer_type"]).upper()
    return Question(attribute, text_of(entry["question"]), answer, "closed" if kind == "CLOSED" else "open")
