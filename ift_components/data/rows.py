"""Rows of a prepared folder's Parquet file, read where they lie: nothing is copied into a cache elsewhere.

Text columns are read whole, once a process. Images stay in the file. When one of a row group is asked for, pyarrow reads the
group and the places of its images in the file are noted; from then on each is read from there. Where they do not lie in the
file as they are (compressed pages, as other programs may write them), groups are read again, and the last few are remembered.
"""

import bisect
import io
import itertools
import os
import struct
import threading
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from ift_components.errors import DataError

_REMEMBERED = 32_000_000  # bytes of row groups whose images stay in memory; the newest always does


class _Reader:
    """An open Parquet file with what was found out about its row groups; threads of its process may share it."""

    def __init__(self, path: Path) -> None:
        self.process = os.getpid()
        self._bytes = pa.memory_map(str(path))
        self._file = pq.ParquetFile(self._bytes)
        self._spans: dict[int, array[int] | None] = {}  # by group; None where its images cannot be read in place
        self._groups: OrderedDict[int, tuple[list[bytes | None], int]] = OrderedDict()  # by group: images, bytes
        self._held = 0
        self._lock = threading.Lock()

    def image(self, group: int, row: int) -> bytes | None:
        """Return the bytes of the image of a row of a row group; None where it has none."""
        spans = self._spans.get(group)
        if spans is None:
            with self._lock:
                images = self._remembered(group)
            return images[row]
        start, size = spans[2 * row], spans[2 * row + 1]
        return self._bytes.read_at(size, start) if size >= 0 else None

    def _remembered(self, group: int) -> list[bytes | None]:
        """Return the images of a row group that is read by pyarrow, and note where they lie if it is the first time."""
        if group in self._groups:
            self._groups.move_to_end(group)
            return self._groups[group][0]
        column = self._file.read_row_group(group, ["image.bytes"], use_threads=False).column("image")
        images = [(cell or {}).get("bytes") for cell in column.to_pylist()]
        if group not in self._spans:
            self._spans[group] = image_spans(self._chunk(group), images)
        if self._spans[group] is None:
            self._groups[group] = images, column.nbytes
            self._held += column.nbytes
            while len(self._groups) > 1 and self._held > _REMEMBERED:
                _, (_, size) = self._groups.popitem(last=False)
                self._held -= size
        return images

    def _chunk(self, group: int) -> tuple[int, bytes]:
        """Return where the column of a row group's images begins in the file, and its bytes."""
        chunk = _image_chunk(self._file.metadata.row_group(group))
        assert chunk is not None  # noqa: S101 (its images were read)
        start = chunk.dictionary_page_offset if chunk.has_dictionary_page else chunk.data_page_offset
        return start, self._bytes.read_at(chunk.total_compressed_size, start)


def image_spans(chunk: tuple[int, bytes], images: Sequence[bytes | None]) -> "array[int] | None":
    """Return where the images of a row group lie in the file: for each its offset and its size, -1 if it has none.

    Values are stored one after another, each behind its size, once each where they have a dictionary:
    https://parquet.apache.org/docs/file-format/data-pages/encodings/ (PLAIN). Every span was compared with the image itself.

    Args:
        chunk: where the column chunk begins in the file, and its bytes.
        images: what a reader of Parquet says that the rows hold.

    Returns:
        None if one is not found: pages are compressed, or stored in another encoding.
    """
    start, content = chunk
    spans, place_of, end = array("q"), dict[bytes, int](), 0
    for image in images:
        if image is None:
            spans.extend((0, -1))
            continue
        if image not in place_of:
            stored = struct.pack("<I", len(image)) + image
            place = end if content.startswith(stored, end) else content.find(stored)
            if place < 0:
                return None
            place_of[image], end = start + place + 4, place + len(stored)
        spans.extend((place_of[image], len(image)))
    return spans


class _File:
    """One Parquet file, opened in the process that reads it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._reader: _Reader | None = None
        try:
            with pq.ParquetFile(path) as file:
                self.columns = file.schema_arrow.names
                groups = [file.metadata.row_group(n) for n in range(file.num_row_groups)]
                counts = [group.num_rows for group in groups]
                self.nulls = [_null_bytes(group) for group in groups]
        except (OSError, pa.ArrowInvalid) as error:
            raise DataError(f"{path} is not a readable Parquet file; prepare the folder again") from error
        self.starts = [0, *itertools.accumulate(counts)]

    def __getstate__(self) -> dict[str, Any]:
        return {
            "path": self.path,
            "columns": self.columns,
            "starts": self.starts,
            "nulls": self.nulls,
            "_reader": None,
        }

    def _open(self) -> "_Reader":
        # A forked loader worker must not read through its parent's handle, and a pickled one has none.
        reader = self._reader
        if reader is None or reader.process != os.getpid():
            reader = self._reader = _Reader(self.path)
        return reader

    def texts(self) -> pa.Table:
        """Return every column but the image, of which only the path is read."""
        if not hasattr(self, "_texts"):
            leaves = [name if name != "image" else "image.path" for name in self.columns]
            with pq.ParquetFile(self.path) as file:
                self._texts = file.read(leaves, use_threads=False).combine_chunks()
        return self._texts

    def lacks_bytes(self, place: int) -> bool:
        """Tell whether the image at a place, or another of its row group, may be stored without its bytes."""
        return self.nulls[bisect.bisect_right(self.starts, place) - 1] != 0

    def image(self, place: int) -> tuple[bytes | None, str | None]:
        """Return the bytes of the image of the row at a place of the file, or else its path."""
        group = bisect.bisect_right(self.starts, place) - 1
        content = self._open().image(group, place - self.starts[group])
        path = (self.texts().column("image")[place].as_py() or {}).get("path") if content is None else None
        return content, path


def _image_chunk(group: pq.RowGroupMetaData) -> pq.ColumnChunkMetaData | None:
    """Return the part of a row group that holds the bytes of its images, if it has one."""
    chunks = (group.column(number) for number in range(group.num_columns))
    return next((chunk for chunk in chunks if chunk.path_in_schema == "image.bytes"), None)


def _null_bytes(group: pq.RowGroupMetaData) -> int | None:
    """Return how many rows of a row group hold no bytes of an image; None where the file does not say."""
    chunk = _image_chunk(group)
    if chunk is None:
        return 0
    return chunk.statistics.null_count if chunk.statistics else None


class Rows(Sequence[dict[str, Any]]):
    """The rows of one split's reports or questions: a sequence of dictionaries whose `image` is a PIL image.

    Rows, selections and all can be pickled to other processes; each opens the file for itself.

    Args:
        path: the Parquet file.

    Raises:
        DataError: if it is not a Parquet file; when a row is read, if its image is gone or damaged.
    """

    def __init__(self, path: Path) -> None:
        self._file = _File(path)
        self._places: Sequence[int] = range(self._file.starts[-1])
        self.column_names = list(self._file.columns)

    def _view(self, places: Sequence[int], names: list[str]) -> "Rows":
        view = object.__new__(type(self))
        view.__dict__.update(self.__dict__, _places=places, column_names=names)
        return view

    def select(self, indices: Iterable[int]) -> "Rows":
        """Return the rows at some indices, in that order."""
        return self._view([self._places[index] for index in indices], self.column_names)

    def select_columns(self, names: str | Sequence[str]) -> "Rows":
        """Return the rows with these columns only; reading a row without `image` decodes none."""
        names = [names] if isinstance(names, str) else list(names)
        missing = [name for name in names if name not in self.column_names]
        if missing:
            raise KeyError(f"no column {', '.join(missing)}; there are {', '.join(self.column_names)}")
        return self._view(self._places, names)

    def remove_columns(self, names: str | Sequence[str]) -> "Rows":
        """Return the rows without these columns."""
        removed = {names} if isinstance(names, str) else set(names)
        return self._view(self._places, [name for name in self.column_names if name not in removed])

    def missing_images(self) -> list[str]:
        """Return the rows without an image, as words for a message: the id, and the path of a file that is gone."""
        missing: list[str] = []
        for place in self._places:
            if not self._file.lacks_bytes(place):
                continue
            content, path = self._file.image(place)
            if content is None and not (path and Path(path).is_file()):
                key = self._file.texts().column("id")[place].as_py()
                missing.append(f"'{key}'" + (f" ({path} is missing)" if path else ""))
        return missing

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self._row(place) for place in self._places)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> "Rows": ...
    @overload
    def __getitem__(self, index: str) -> list[Any]: ...

    def __getitem__(self, index: int | slice | str) -> Any:
        """Return a row, a stretch of rows, or a column as a list."""
        if isinstance(index, str):
            return [row[index] for row in self.select_columns(index)]
        if isinstance(index, slice):
            return self._view(self._places[index], self.column_names)
        return self._row(self._places[index])

    def _row(self, place: int) -> dict[str, Any]:
        return {name: self._cell(name, place) for name in self.column_names}

    def _cell(self, name: str, place: int) -> Any:
        if name == "image":
            return self._picture(place)
        return self._file.texts().column(name)[place].as_py()

    def _picture(self, place: int) -> Image.Image:
        content, path = self._file.image(place)
        try:
            # Without bytes or path the path is empty, and opening it says so.
            opened = Image.open(io.BytesIO(content) if content is not None else path or "")
            opened.load()
        except (OSError, SyntaxError, ValueError) as error:
            key = self._file.texts().column("id")[place].as_py()
            reason = getattr(error, "strerror", None) or str(error)
            raise DataError(f"'{key}': its image cannot be decoded ({reason}); prepare the folder again") from error
        return opened


class ChoiceRows(Rows):
    """Questions of format 1, all of them choices, in the columns of format 2.

    Args:
        path: the Parquet file.
        names: the columns of format 2, in order.
    """

    def __init__(self, path: Path, names: Sequence[str]) -> None:
        super().__init__(path)
        self.column_names = list(names)

    def _cell(self, name: str, place: int) -> Any:
        if name == "kind":
            return "choice"
        if name == "answer_text":
            return super()._cell("options", place)[super()._cell("answer", place)]
        return super()._cell(name, place)
