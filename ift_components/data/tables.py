"""Reading source tables: every cell is text, and a malformed table is refused with the reason."""

import codecs
import csv
import gzip
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from ift_components.data.problems import Problems
from ift_components.data.workbook import cell_text, read_cells, titles_above
from ift_components.errors import DataError

Row = Mapping[str, str]
_LOOKED_AT = 50  # records of a CSV file by which its delimiter is found


def require_columns(path: Path, names: Iterable[str], expected: Iterable[str], *, private: bool = False) -> None:
    """Check that a table has the columns that its reader needs.

    Raises:
        DataError: naming the missing columns and, unless the table is private, those that are there: without a header
            they are its first row.
    """
    columns = list(names)
    missing = [name for name in dict.fromkeys(expected) if name not in columns]
    if not missing:
        return
    hint = ""
    if len(columns) == 1 and any(mark in columns[0] for mark in ";\t|"):
        hint = "; the delimiter does not seem to be a comma: save the table as comma-separated CSV"
    present = f"it has {len(columns)} others" if private else f"it has: {', '.join(map(repr, columns))}"
    raise DataError(f"{path.name}: no column {', '.join(map(repr, missing))}; {present}{hint}")


def _require_unique(path: Path, header: list[str], *, private: bool) -> None:
    twice = sorted({name for name in header if name and header.count(name) > 1})
    if twice:
        names = f"{len(twice)} name(s)" if private else ", ".join(map(repr, twice))
        raise DataError(f"{path.name}: column {names} occurs more than once")


@dataclass(frozen=True)
class _Form:
    """How a CSV file is written.

    Attributes:
        encoding: as Python calls it.
        delimiter: between cells.
        titles: records above the header.
    """

    encoding: str = "utf-8-sig"
    delimiter: str = ","
    titles: int = 0


def read_csv(
    path: Path, columns: Iterable[str], problems: Problems, form: _Form = _Form()
) -> Iterator[tuple[int, Row]]:
    """Yield the line number (of a row's end) and the cells of each row of a CSV file, as text and as they stand.

    A byte-order mark is dropped; names in the header lose line breaks, cells surrounding white space; quoted
    line breaks are read; `NA`, `nil` and the like stay what they are.

    Args:
        path: a comma-separated file with a header, in UTF-8.
        columns: the columns that must be there.
        problems: where rows with more or fewer cells than the header are noted; they are left out.
        form: what `read_table` found out about a user's own file.

    Raises:
        DataError: for a missing or repeated column, or another encoding.
    """
    try:
        with path.open(encoding=form.encoding, newline="") as file:
            reader = csv.reader(file, delimiter=form.delimiter, strict=True)
            header = [" ".join(name.split()) for name in next(itertools.islice(reader, form.titles, None), [])]
            _require_unique(path, header, private=problems.private)
            require_columns(path, header, columns, private=problems.private)
            for cells in reader:
                if not cells:
                    continue  # an empty line, commonly the last
                if len(cells) != len(header):
                    problems.add(
                        f"{path.name} line {reader.line_num}",
                        f"{len(cells)} cells, but the header has {len(header)}; quote cells that hold commas",
                        "wrong number of cells",
                    )
                    continue
                yield reader.line_num, {name: cell.strip() for name, cell in zip(header, cells, strict=True)}
    except UnicodeDecodeError as error:
        raise DataError(f"{path.name} is not UTF-8 (byte {error.start}); save it as CSV in UTF-8") from error
    except csv.Error as error:
        raise DataError(f"{path.name} is not a well-formed CSV file: {error}") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def read_table(
    path: Path, columns: Iterable[str], problems: Problems, notes: list[str] | None = None
) -> Iterator[tuple[int, Row]]:
    """Yield the row number and the cells of each row of a user's own CSV, XLSX or Parquet table, as text.

    Numbers lose a trailing `.0`, booleans read `yes` and `no`, empty cells are empty texts. Of a workbook the first
    sheet is read (`workbook`). Cells of a CSV file may be separated by semicolons or tabs, as spreadsheet programs write
    them; one that is not UTF-8 is read as UTF-16 if it begins so, else as Windows-1252. Titles above the header are passed
    over.

    Args:
        path: a table with a row (or a schema) that names the columns.
        columns: the columns that must be there.
        problems: where malformed rows are noted.
        notes: takes a line about whatever of this was found.

    Raises:
        DataError: for another file type, a table that cannot be read, or missing columns.
    """
    notes = [] if notes is None else notes
    readers = {".csv": _read_own_csv, ".xlsx": _read_workbook, ".parquet": _read_parquet}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path.name}: a table must be one of {', '.join(readers)}, got '{path.suffix}'")
    if not path.is_file():
        raise DataError(f"{path} is missing")
    yield from reader(path, columns, problems, notes)


def _read_own_csv(
    path: Path, columns: Iterable[str], problems: Problems, notes: list[str]
) -> Iterator[tuple[int, Row]]:
    form = _form(path)
    if form.encoding == "cp1252":
        notes.append(f"{path.name} is not UTF-8 and was read as Windows-1252; if letters look wrong, save it as UTF-8")
    if form.titles:
        notes.append(f"{path.name}: {form.titles} line(s) above the header passed over")
    yield from read_csv(path, columns, problems, form)


def _form(path: Path) -> _Form:
    """Return how a CSV file seems to be written; UTF-8 and commas where nothing else fits better."""
    encoding = _encoding(path)
    best, most = _Form(encoding), 0
    for delimiter in ",;\t":
        try:
            with path.open(encoding=encoding, newline="") as file:
                records = list(itertools.islice(csv.reader(file, delimiter=delimiter, strict=True), _LOOKED_AT))
        except (csv.Error, UnicodeDecodeError):
            continue
        titles = titles_above(records)
        width = len(records[titles]) if records else 0
        fitting = sum(len(record) == width for record in records[titles:])
        if width > 1 and fitting > most:
            best, most = _Form(encoding, delimiter, titles), fitting
    return best


def _encoding(path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    for encoding in ("utf-8-sig", "cp1252"):
        try:
            content.decode(encoding)
        except UnicodeDecodeError:
            continue
        return encoding
    return "utf-8-sig"


def _read_workbook(
    path: Path, columns: Iterable[str], problems: Problems, notes: list[str]
) -> Iterator[tuple[int, Row]]:
    titles, header, rows = read_cells(path, problems)
    if titles:
        notes.append(f"{path.name}: {titles} row(s) above the header passed over")
    _require_unique(path, header, private=problems.private)
    require_columns(path, header, columns, private=problems.private)
    for number, texts in rows:
        if any(texts[len(header) :]):
            problems.add(f"{path.name} row {number}", "has cells right of the last named column")
        elif any(texts):
            yield number, dict(itertools.zip_longest(header, texts[: len(header)], fillvalue=""))


def _read_parquet(
    path: Path, columns: Iterable[str], problems: Problems, notes: list[str]
) -> Iterator[tuple[int, Row]]:
    del notes  # its schema leaves nothing to find out
    try:
        with pq.ParquetFile(path) as file:
            require_columns(path, file.schema_arrow.names, columns, private=problems.private)
            number = 0
            for batch in file.iter_batches(10_000):
                for row in batch.to_pylist():
                    number += 1
                    yield number, {name: cell_text(cell) for name, cell in row.items()}
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path.name} is not a readable Parquet file") from error


def stream_columns(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Yield some columns of a large CSV file, plain or gzipped, as text, holding a few megabytes in memory.

    No message quotes a cell, nor a header, which may be a first row.

    Raises:
        DataError: for a missing column or a malformed file.
    """
    read = pa.csv.ReadOptions(block_size=8 << 20)
    parse = pa.csv.ParseOptions(newlines_in_values=True)
    try:
        with (gzip.open if path.suffix == ".gz" else Path.open)(path, "rt", encoding="utf-8-sig") as file:
            require_columns(path, next(csv.reader([file.readline()]), []), columns, private=True)
        convert = pa.csv.ConvertOptions(
            include_columns=columns, column_types=dict.fromkeys(columns, pa.string()), strings_can_be_null=False
        )
        with pa.input_stream(path, compression="gzip" if path.suffix == ".gz" else None) as stream:
            for batch in pa.csv.open_csv(stream, read, parse, convert):
                yield from zip(*(batch.column(name).to_pylist() for name in columns), strict=True)
    except (OSError, EOFError, UnicodeDecodeError, pa.ArrowInvalid, pa.ArrowKeyError) as error:
        # Arrow's messages quote the row that it stumbled over; what comes before that is about the form alone.
        form = re.match(r"CSV parse error: (Row #\d+: )?Expected \d+ columns, got \d+", str(error))
        raise DataError(f"{path.name} is not a readable CSV file{f': {form.group()}' if form else ''}") from error
