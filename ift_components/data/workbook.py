"""Cells of an Excel workbook as text: merged cells repeat their value, and a cell that holds no value is a problem."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import openpyxl

from ift_components.data.problems import Problems
from ift_components.errors import DataError

TITLES = 9  # rows at most above a table's header


def cell_text(cell: object) -> str:
    """Return a cell as text: whole numbers without `.0`, booleans as yes and no, nothing as an empty text."""
    if cell is None:
        return ""
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, float):
        return "" if math.isnan(cell) else str(int(cell)) if cell.is_integer() else repr(cell)
    return str(cell).strip()


def titles_above(records: Sequence[Sequence[str]]) -> int:
    """Return how many records stand above a table's header: titles, of one cell at most, over a header of three or more."""
    filled = [sum(bool(cell.strip()) for cell in record) for record in records[: TITLES + 1]]
    first = next((number for number, count in enumerate(filled) if count > 1), 0)
    return first if filled and filled[first] > 2 else 0  # noqa: PLR2004


def read_cells(path: Path, problems: Problems) -> tuple[int, list[str], Iterator[tuple[int, list[str]]]]:
    """Return the rows above the header of a workbook's first sheet, the header, and the other rows, numbered, as texts.

    Every row that the sheet holds is read, whatever dimension it states. A merged cell's value stands in each cell that it
    covers. A row with an error (`#N/A`) or a formula that was never computed is noted in `problems` and left out.

    Args:
        path: an XLSX file.
        problems: where such rows go.

    Raises:
        DataError: if it is no workbook, or a damaged one.
    """
    try:
        sheet = openpyxl.load_workbook(path, data_only=True).worksheets[0]
        formulas = openpyxl.load_workbook(path).worksheets[0]
        top = sheet.iter_rows(1, min(TITLES + 1, sheet.max_row))
        titles = titles_above([[cell_text(cell.value) for cell in row] for row in top])
        _repeat_merged(sheet, titles + 2)
    except Exception as error:
        raise DataError(f"{path.name} is not a readable XLSX workbook ({type(error).__name__})") from error
    header = [" ".join(cell_text(cell.value).split()) for cell in sheet[titles + 1]] if sheet.max_row else []
    while header and not header[-1]:
        header.pop()  # columns that were only formatted

    def rows() -> Iterator[tuple[int, list[str]]]:
        first = titles + 2
        both = zip(sheet.iter_rows(first), formulas.iter_rows(first), strict=True)
        for number, (cells, sources) in enumerate(both, first):
            bad = [c for c, source in zip(cells, sources, strict=True) if _without_value(c, source)]
            if bad:
                where, kind = f"{path.name} row {number}", "cell holds an error or a formula without a value"
                problems.add(
                    where, f"cell {bad[0].coordinate} holds {bad[0].value or 'a formula without a value'}", kind
                )
            else:
                yield number, [cell_text(cell.value) for cell in cells]

    return titles, header, rows()


def _without_value(cell: Any, source: Any) -> bool:
    return cell.data_type == "e" or (cell.value is None and source.data_type == "f")


def _repeat_merged(sheet: Any, first: int) -> None:
    for area in list(sheet.merged_cells.ranges):
        value = sheet.cell(area.min_row, area.min_col).value
        sheet.unmerge_cells(str(area))
        for row in range(max(first, area.min_row), area.max_row + 1):  # a header cell names one column
            for column in range(area.min_col, area.max_col + 1):
                sheet.cell(row, column).value = value
