"""Parts of a build: complete Parquet files of some hundred records, so that an interrupted build continues.

A part holds everything that becomes of its records: the report row, the question rows, and facts about the image file.
Merging streams the parts of a split into the prepared folder's files; neither needs more memory than a row group.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ift_components.data.decode import Opened
from ift_components.data.prepared import QUESTION_FEATURES, REPORT_FEATURES
from ift_components.data.source import ImageStore, Record
from ift_components.errors import DataError
from ift_components.files import atomic_path

PART_ROWS = 512  # records a part: what an interruption can lose
GROUP_ROWS = 64  # records whose images are in memory at a time
READ_BYTES = 250_000  # a prepared file's row group: what reading one image at random costs
_REPORTS = REPORT_FEATURES.arrow_schema
_QUESTIONS = QUESTION_FEATURES.arrow_schema
FILE_SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "split": pa.string(),
        "file": pa.string(),
        "size": pa.int64(),
        "mtime_ns": pa.int64(),
        "sha256": pa.string(),
        "width": pa.int32(),
        "height": pa.int32(),
        "converted": pa.string(),
        "perceptual": pa.uint64(),
        "problem": pa.string(),  # why the record is left out; null where it is not
        "where": pa.string(),
    }
)
_QUESTION_LIST = pa.list_(pa.struct([f for f in _QUESTIONS if f.name != "image"]))
_PART = pa.schema([*_REPORTS, pa.field("questions", _QUESTION_LIST), pa.field("facts", pa.struct(list(FILE_SCHEMA)))])

Job = tuple[Record, str, list[dict[str, Any]]]  # the record, its report and its questions


def _leaves(field: pa.Field, inside: str = "") -> Iterator[str]:
    """Yield the paths of the columns that a field is stored in."""
    path = f"{inside}{field.name}"
    if pa.types.is_struct(field.type):
        for child in field.type:
            yield from _leaves(child, f"{path}.")
    elif pa.types.is_list(field.type):
        yield from _leaves(pa.field("element", field.type.value_type), f"{path}.list.")
    else:
        yield path


class Writer:
    """Writes rows to a Parquet file in row groups of bounded size; the file carries its Hugging Face features.

    Used as a context manager. Repeated images of neighbouring rows are stored once a row group (dictionary encoding).
    """

    def __init__(self, path: Path, schema: pa.Schema, rows: int = 128, group_bytes: int = 64_000_000) -> None:
        self.schema, self.rows, self.group_bytes = schema, rows, group_bytes
        self.last_image: object = None
        # Images are compressed already: once more would gain nothing and cost every reading.
        compression = {leaf: "NONE" if leaf == "image.bytes" else "zstd" for field in schema for leaf in _leaves(field)}
        self.file = pq.ParquetWriter(
            path, schema, compression=compression, dictionary_pagesize_limit=64_000_000, write_page_index=True
        )
        self.buffer: list[dict[str, Any]] = []
        self.held = 0

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *error: object) -> None:
        if error[0] is None:
            self.flush()
        self.file.close()

    def write(self, row: dict[str, Any]) -> None:
        """Add a row; a full row group is written out."""
        self.buffer.append(row)
        image = row.get("image")
        if image is not None and image is not self.last_image:  # the questions about one image share it
            self.held += len(image["bytes"] or b"")
        self.last_image = image
        self.held += 1000
        if len(self.buffer) >= self.rows or self.held >= self.group_bytes:
            self.flush()

    def flush(self) -> None:
        """Write out the rows held back."""
        if self.buffer:
            self.file.write_table(pa.Table.from_pylist(self.buffer, schema=self.schema))
            self.buffer, self.held = [], 0


def write_part(
    path: Path,
    jobs: list[Job],
    store: ImageStore,
    open_one: Callable[[Sequence[Path]], Opened],
    pool: Executor,
    *,
    done: Callable[[], object],
) -> None:
    """Open the images of some records in parallel and write the part; an image that cannot be used is noted in it.

    Args:
        path: the part's file, complete or absent.
        jobs: the records in order, with their reports and questions.
        store: hold images, or their paths. An image that had to be converted is always held.
        open_one: opens an image; raises DataError where it cannot be used.
        pool: runs `open_one`.
        done: called once a record.
    """

    def row(job: Job) -> dict[str, Any]:
        record, report, questions = job
        facts: dict[str, Any] = {"id": record.id, "split": record.split}
        try:
            opened = open_one((record.image, *record.alternatives))
        except DataError as error:
            facts |= _stat(record.image)
            problem = f"image {record.image.name!r} {error}"
            return {"id": record.id, "facts": facts | {"problem": problem, "where": record.where}}
        facts |= _stat(opened.path)
        facts |= {"sha256": opened.sha256, "width": opened.size[0], "height": opened.size[1]}
        facts |= {"converted": opened.converted or None, "perceptual": opened.pixels}
        embedded = store == "embed" or bool(opened.converted)
        path = opened.path.name if embedded else str(opened.path)
        image = {"bytes": opened.content if embedded else None, "path": path}
        attributes = [{"name": name, "value": value} for name, value in (*record.values.items(), *record.sections)]
        return {
            "id": record.id, "image": image, "report": report, "attributes": attributes, "group": record.group,
            "questions": questions, "facts": facts,
        }  # fmt: skip

    with atomic_path(path) as temporary, Writer(temporary, _PART, GROUP_ROWS) as writer:
        for start in range(0, len(jobs), GROUP_ROWS):
            for part_row in pool.map(row, jobs[start : start + GROUP_ROWS]):
                writer.write(part_row)
                done()


def _stat(path: Path) -> dict[str, Any]:
    try:
        stat = path.stat()
    except OSError:  # it vanished after the tables were read
        return {"file": str(path)}
    return {"file": str(path), "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}


def part_rows(path: Path, columns: list[str] | None = None) -> Iterator[dict[str, Any]]:
    """Yield the rows of a part or of another file of the build, a row group in memory at a time."""
    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            yield from file.read_row_group(group, columns).to_pylist()


def rows_at(path: Path, places: Iterable[int]) -> list[dict[str, Any]]:
    """Return the rows at some places of a file, reading only the row groups that hold them."""
    wanted = sorted(set(places))
    rows: list[dict[str, Any]] = []
    with pq.ParquetFile(path) as file:
        start = 0
        for group in range(file.num_row_groups):
            end = start + file.metadata.row_group(group).num_rows
            inside = [place - start for place in wanted if start <= place < end]
            if inside:
                rows += file.read_row_group(group).take(inside).to_pylist()
            start = end
    return rows


def is_current(path: Path, ids: list[str]) -> bool:
    """Tell whether a part was finished for exactly these records and their image files have not changed since."""
    try:
        facts = [row["facts"] for row in part_rows(path, ["facts"])]
    except (OSError, pa.ArrowInvalid):
        return False
    return [fact["id"] for fact in facts] == ids and all(map(unchanged, facts))


def unchanged(fact: dict[str, Any]) -> bool:
    """Tell whether an image file still has the size and time that it had when it was read."""
    try:
        stat = Path(fact["file"]).stat()
    except OSError:
        return fact["size"] is None
    return (stat.st_size, stat.st_mtime_ns) == (fact["size"], fact["mtime_ns"])


def merge(parts: list[Path], reports: Path, files: Writer) -> int:
    """Merge the report rows of a split's parts into one file, and tell `files` about every image file.

    Returns:
        The number of reports written.
    """
    count = 0
    with Writer(reports, _REPORTS, group_bytes=READ_BYTES) as out:
        for row in (row for part in parts for row in part_rows(part, [*REPORT_FEATURES, "facts"])):
            files.write(row["facts"])
            if row["facts"]["problem"] is None:
                out.write({name: row[name] for name in REPORT_FEATURES})
                count += 1
    return count


def merge_questions(parts: list[Path], questions: Path) -> int:
    """Merge the question rows of a split's parts into one file; returns their number."""
    count = 0
    with Writer(questions, _QUESTIONS, group_bytes=READ_BYTES) as out:
        for row in (row for part in parts for row in part_rows(part, ["image", "questions"])):
            for question in row["questions"] or ():  # null where the image could not be used
                out.write({**question, "image": row["image"]})
                count += 1
    return count
