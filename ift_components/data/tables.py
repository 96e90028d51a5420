"""Reading source tables: every cell is text, and a malformed table is refused with the reason."""

import csv
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from ift_components.data.source import Problems
from ift_components.errors import DataError

Row = Mapping[str, str]


def require_columns(path: Path, found: Iterable[str], expected: Iterable[str]) -> None:
    """Check that a table has the columns that its reader needs.

    Raises:
        DataError: naming the missing columns and those that are there.
    """
    columns = list(found)
    missing = [name for name in dict.fromkeys(expected) if name not in columns]
    if not missing:
        return
    hint = ""
    if len(columns) == 1 and any(mark in columns[0] for mark in ";\t|"):
        hint = "; the delimiter does not seem to be a comma: save the table as comma-separated CSV"
    raise DataError(
        f"{path.name}: no column {', '.join(map(repr, missing))}; it has: {', '.join(map(repr, columns))}{hint}"
    )


def read_csv(path: Path, columns: Iterable[str], problems: Problems) -> Iterator[tuple[int, Row]]:
    """Yield the line number (of a row's end) and the cells of each row of a CSV file, as text and as they stand.

    A byte-order mark is dropped; names in the header and cells lose surrounding white space and line breaks; quoted
    line breaks are read; `NA`, `nil` and the like stay what they are.

    Args:
        path: a comma-separated file with a header, in UTF-8.
        columns: the columns that must be there.
        problems: where rows with more or fewer cells than the header are noted; they are left out.

    Raises:
        DataError: for a missing or repeated column, or another encoding.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = [name.strip() for name in next(reader, [])]
            twice = sorted({name for name in header if name and header.count(name) > 1})
            if twice:
                raise DataError(f"{path.name}: column {', '.join(map(repr, twice))} occurs more than once")
            require_columns(path, header, columns)
            for cells in reader:
                if not cells:
                    continue  # an empty line, commonly the last
                if len(cells) != len(header):
                    problems.add(
                        f"{path.name} line {reader.line_num}",
                        f"{len(cells)} cells, but the header has {len(header)}; quote cells that hold commas",
                    )
                    continue
                yield reader.line_num, {name: cell.strip() for name, cell in zip(header, cells, strict=True)}
    except UnicodeDecodeError as error:
        raise DataError(f"{path.name} is not UTF-8 (byte {error.start}); save it as CSV in UTF-8") from error
    except csv.Error as error:
        raise DataError(f"{path.name} is not a well-formed CSV file: {error}") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error
