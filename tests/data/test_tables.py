"""Tables as people send them: encodings, delimiters, quoting, empty cells, workbooks."""

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
