"""What the builders for published sets of questions share."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

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
