"""Finding a table's images: values of a column against the files of a folder, the way a person would recognise them."""

import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath

from ift_components.data.problems import Problems
from ift_components.data.source import find_image
from ift_components.errors import DataError

SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".gif", ".webp", ".dcm")
ENOUGH = 0.5  # share of a column's values that must be files for it to be taken for the image column


def image_files(root: Path, *, follow_links: bool = False) -> Iterator[str]:
    """Yield the paths, relative to the root, of all image files under it, sorted; hidden ones are passed over."""
    for folder, folders, names in os.walk(root, followlinks=follow_links):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        relative = os.path.relpath(folder, root)
        for name in sorted(names):
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):  # a Mac's `._1.jpg` are no images
                yield name if relative == "." else f"{relative}/{name}"


def _plain(name: str) -> str:
    return str(PurePosixPath(os.path.normpath(name.replace("\\", "/"))))


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", _plain(name)).casefold()


def _stem(name: str) -> str:
    folded = _folded(name)
    suffix = next((suffix for suffix in SUFFIXES if folded.endswith(suffix)), "")
    return folded.removesuffix(suffix)


def _unpadded(name: str) -> str:
    """Return a file's stem, a number without the leading zeros that spreadsheet programs drop."""
    stem = _stem(name).rsplit("/", 1)[-1]
    return stem.lstrip("0") or "0" if stem.isdecimal() else stem


# From the strictest way to recognise a file to the loosest; the first that knows a value decides.
LEVELS: dict[str, Callable[[str], str]] = {
    "path": _plain,
    "path, but for case or Unicode form": _folded,
    "path without or with another extension": _stem,
    "name in a sub-folder": lambda name: _folded(name).rsplit("/", 1)[-1],
    "name in a sub-folder without or with another extension": lambda name: _stem(name).rsplit("/", 1)[-1],
    "number but for leading zeros": _unpadded,
}


class ImageIndex:
    """The image files of a folder, to be looked up by whatever a table calls them.

    Args:
        root: the dataset's folder.
        follow_links: whether to enter folders that are links.

    Attributes:
        root: the dataset's folder.
        files: paths relative to it.
    """

    def __init__(self, root: Path, *, follow_links: bool = False) -> None:
        self.root = root
        self.files = list(image_files(root, follow_links=follow_links))
        self._by_level: dict[str, Mapping[str, list[str]]] = {}

    def _at(self, level: str) -> Mapping[str, list[str]]:
        if level not in self._by_level:
            files: dict[str, list[str]] = defaultdict(list)
            for name in self.files:
                files[LEVELS[level](name)].append(name)
            self._by_level[level] = files
        return self._by_level[level]

    def candidates(self, value: str) -> tuple[str, list[str]]:
        """Return how a value was recognised and the files that it may mean; an empty list if none."""
        for level, key in LEVELS.items():
            files = self._at(level).get(key(value)) if value else None
            if files:
                return level, files
        return "", []

    def find(self, value: str, where: str, problems: Problems) -> tuple[str, Path] | None:
        """Return the relative and the absolute path of the image that a value means, or note why there is none."""
        _, files = self.candidates(value)
        if len(files) > 1:
            names = " or ".join(f"'{name}'" for name in files[:3])
            problems.add(where, f"image '{value}' could be {names}", "image could be several files")
            return None
        name = files[0] if files else value
        path = find_image(self.root, name, where, problems)
        return None if path is None else (name, path)

    def matches(self, values: Iterable[str]) -> Counter[str]:
        """Return how many values were recognised in each way; those that were not count under an empty text."""
        return Counter(self.candidates(value)[0] for value in values)


def named(column: str, columns: Iterable[str], *, private: bool) -> str:
    """Return how a message names a column: of a private table by its place, for without a header it is a cell's text."""
    return f"number {list(columns).index(column) + 1}" if private else repr(column)


def image_column(index: ImageIndex, rows: Sequence[Mapping[str, str]], table: str, *, private: bool = False) -> str:
    """Return the column of a table whose values are the folder's images.

    Args:
        index: the folder's images.
        rows: the table's rows.
        table: the table's name, for messages.
        private: name no column.

    Raises:
        DataError: if there is none, or two columns name images equally well but not the same ones.
    """
    shares = {}
    for column in rows[0]:
        values = [row[column] for row in rows if row[column]]
        distinct = set(values)
        recognised = sum(count for level, count in index.matches(distinct).items() if level)
        # One row an image: a column of few values that happen to be names of files is none.
        shares[column] = (
            recognised / len(distinct) * len(values) / len(rows) if distinct and 2 * len(distinct) > len(values) else 0
        )
    best = max(shares, key=lambda column: shares[column])
    name = partial(named, columns=list(shares), private=private)
    if shares[best] < ENOUGH:
        if "image" in rows[0]:
            return "image"  # what the column is called by default: its rows say what is missing
        raise DataError(
            f"{table}: no column names the images in builder.root ({len(index.files)} image files); the nearest is "
            f"{name(best)}, of whose values {shares[best]:.0%} are files; name it with builder.image_column"
        )
    for other in (column for column in shares if column != best and shares[column] == shares[best]):
        pairs = ((index.candidates(row[best])[1], index.candidates(row[other])[1]) for row in rows)
        if any(first != second for first, second in pairs):
            raise DataError(
                f"{table}: both {name(best)} and {name(other)} name images; choose with builder.image_column"
            )
    return best


def matching_note(index: ImageIndex, column: str, rows: Sequence[Mapping[str, str]], *, private: bool = False) -> str:
    """Return a sentence on how the images that a table's column names were found."""
    values = [row[column] for row in rows]
    counts = index.matches(values)
    missing = counts.pop("", 0)
    ways = ", ".join(f"{count} by {level}" for level, count in counts.most_common()) or "none"
    used = {name for value in values for name in index.candidates(value)[1]}
    idle = len(index.files) - len(used)
    more = (f"; {missing} not found" if missing else "") + (f"; {idle} image files are named by no row" if idle else "")
    return f"images are named by column {named(column, rows[0], private=private)}: {ways}{more}"
