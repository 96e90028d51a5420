"""Reading a JSON list item by item, however long it is."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ift_components.errors import DataError

CHUNK = 1 << 20
LONGEST = 64 << 20  # an item longer than this is taken for damage


def stream_json_list(path: Path) -> Iterator[Any]:
    """Yield the items of a JSON list, holding little more than one in memory. NaN is read as a number.

    Args:
        path: a file that holds `[item, item, ...]` in UTF-8.

    Raises:
        DataError: if the file is not such a list or ends early; the message names the item, never its content.
    """
    decoder = json.JSONDecoder()
    count = 0
    with path.open(encoding="utf-8-sig") as file:
        try:
            text, position = file.read(CHUNK).lstrip(), 1
            if not text.startswith("["):
                raise DataError(f"{path.name} does not hold a JSON list")
            while True:
                position = _skip(text, position, first=count == 0)
                if text[position : position + 1] == "]":
                    return
                try:
                    item, end = decoder.raw_decode(text, position)
                    # A number at the end of the text might go on; an object or a string is complete.
                    complete = end < len(text)
                except json.JSONDecodeError:
                    complete = False
                if complete:
                    yield item
                    count, position = count + 1, end
                    continue
                more = file.read(CHUNK)
                text, position = text[position:] + more, 0
                if not more or len(text) > LONGEST:
                    raise DataError(f"{path.name} is damaged or cut short at item {count}")
        except UnicodeDecodeError as error:
            raise DataError(f"{path.name} is not UTF-8 near item {count}") from error


def _skip(text: str, position: int, *, first: bool) -> int:
    """Return the position after white space and, but before the first item, one comma."""
    comma = first
    while position < len(text) and (text[position].isspace() or (text[position] == "," and not comma)):
        comma = comma or text[position] == ","
        position += 1
    return position
