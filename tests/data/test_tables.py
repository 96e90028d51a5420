"""Tables as people send them: encodings, delimiters, quoting, empty cells, workbooks."""

import csv

import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ift_components.data.source import Problems
from ift_components.data.tables import read_csv, read_table
from ift_components.errors import DataError


def cells(path, columns=()):
    problems = Problems()
    return [row for _, row in read_table(path, columns, problems)], problems


def test_byte_order_mark_quoted_line_breaks_na_and_white_space(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(b'\xef\xbb\xbfimage, kind ,file\r\na.png,NA,"x/y.dcm\n"\r\nb.png,nil,"p,q"\r\n\r\n')
    found, problems = cells(path, ["image", "kind"])
    assert found == [
        {"image": "a.png", "kind": "NA", "file": "x/y.dcm"},
        {"image": "b.png", "kind": "nil", "file": "p,q"},
    ]
    assert problems.count == 0


def test_rows_of_another_length_are_collected_with_their_lines(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("a,b\n1,2\n3\n4,5,6\n7,8\n")
    found, problems = cells(path)
    assert [row["a"] for row in found] == ["1", "7"]
    assert problems.first == [
        "t.csv line 3: 1 cells, but the header has 2; quote cells that hold commas",
        "t.csv line 4: 3 cells, but the header has 2; quote cells that hold commas",
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"image;kind\na.png;x\n", "the delimiter does not seem to be a comma"),
        (b"picture,kind\n", "no column 'image'; it has: 'picture', 'kind'"),
        (b"image,kind,kind\n", "column 'kind' occurs more than once"),
        (b"image,kind\n\xe9.png,x\n", "not UTF-8 (byte 11)"),
        (b'image,kind\n"a.png,x\n', "not a well-formed CSV file"),
        (b"", "no column 'image', 'kind'"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path, content, message):
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    with pytest.raises(DataError) as error:
        list(read_csv(path, ["image", "kind"], Problems()))
    assert message in str(error.value)


HEADER, ROWS = (
    ["image", "Größe", "shape (0: round; 1: oval)"],
    [["a", "2,5", "0"], ["b", "1;2", "1"], ["ä", "x\ty", ""]],
)


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize(
    ("encoding", "note"),
    [("utf-8", None), ("utf-8-sig", None), ("utf-16", None), ("cp1252", "was read as Windows-1252")],
)
@pytest.mark.parametrize("titles", [0, 2])
def test_own_csv_files_as_spreadsheet_programs_write_them(tmp_path, delimiter, encoding, note, titles):
    path = tmp_path / "t.csv"
    above = [["A study of 2022", "", ""], ["", "", ""]][:titles]
    with path.open("w", encoding=encoding, newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows([*above, [HEADER[0] + "\n", *HEADER[1:]], *ROWS])
    notes = []
    found = list(read_table(path, HEADER, Problems(), notes))
    assert [row for _, row in found] == [dict(zip(HEADER, row, strict=True)) for row in ROWS]
    assert [number for number, _ in found] == [titles + 3 + n for n in range(3)]  # the header takes two lines
    expected = [note, f"{titles} line(s) above the header passed over" if titles else None]
    assert len(notes) == len([text for text in expected if text])
    assert all(text in line for text, line in zip(filter(None, expected), notes, strict=True))


def test_titles_above_a_workbooks_header(tmp_path):
    book = openpyxl.Workbook()
    for row in (["Study"], [], ["image", "shape", "side"], ["a", "round", "left"], ["b", None, "right"]):
        book.active.append(row)
    book.active.merge_cells("A1:C1")
    book.active.merge_cells("B4:B5")
    book.save(tmp_path / "t.xlsx")
    notes = []
    found = list(read_table(tmp_path / "t.xlsx", ["image"], Problems(), notes))
    assert found == [
        (4, {"image": "a", "shape": "round", "side": "left"}),
        (5, {"image": "b", "shape": "round", "side": "right"}),
    ]
    assert notes == ["t.xlsx: 2 row(s) above the header passed over"]


def test_a_narrow_header_is_no_title(tmp_path):
    """A header of one name over cells that have none stays a mistake."""
    (tmp_path / "t.csv").write_text("image\na.png,red\n")
    found, problems = cells(tmp_path / "t.csv", ["image"])
    assert not found
    assert problems.first == ["t.csv line 2: 2 cells, but the header has 1; quote cells that hold commas"]


def test_workbook_cells_become_text(tmp_path):
    book = openpyxl.Workbook()
    sheet = book.active
    for row in (["image", "age", "flag", "note"], ["a.png", 3.0, True, None], [None] * 4, ["b.png", 2.5, False, " x "]):
        sheet.append(row)
    book.save(tmp_path / "t.xlsx")
    found, problems = cells(tmp_path / "t.xlsx", ["image"])
    assert found == [
        {"image": "a.png", "age": "3", "flag": "yes", "note": ""},
        {"image": "b.png", "age": "2.5", "flag": "no", "note": "x"},
    ]
    assert problems.count == 0


def test_parquet_cells_become_text(tmp_path):
    pq.write_table(pa.table({"image": ["a.png"], "n": [7], "x": [float("nan")]}), tmp_path / "t.parquet")
    assert cells(tmp_path / "t.parquet", ["image"])[0] == [{"image": "a.png", "n": "7", "x": ""}]


@pytest.mark.parametrize("name", ["t.xlsx", "t.parquet"])
def test_damaged_workbooks_and_parquet_files(tmp_path, name):
    (tmp_path / name).write_bytes(b"not it")
    with pytest.raises(DataError, match=f"{name} is not a readable"):
        cells(tmp_path / name)


def test_other_file_types_and_absent_tables(tmp_path):
    with pytest.raises(DataError, match=r"must be one of .csv, .xlsx, .parquet, got '.xls'"):
        cells(tmp_path / "t.xls")
    with pytest.raises(DataError, match="is missing"):
        cells(tmp_path / "t.csv")
