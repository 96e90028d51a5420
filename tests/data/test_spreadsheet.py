"""A real spreadsheet: one command, one look at the schema, one rebuild."""

import zipfile

import openpyxl
import pytest
import yaml
from dirty import dirty_tree
from trees import build, rows, save_csv, save_picture

from ift_components.data.builders import image_table, image_text
from ift_components.data.headers import read_header
from ift_components.data.infer import infer_schema
from ift_components.data.matching import ImageIndex
from ift_components.data.problems import Problems
from ift_components.data.tables import read_table
from ift_components.errors import DataError
from ift_components.shuffling import shuffle_parts


def test_one_command_reads_the_workbook(tmp_path, capsys):
    root = dirty_tree(tmp_path / "in")
    manifest = build(image_table(root, "lesions.xlsx"), tmp_path / "out", protocol="full")
    assert sum(manifest["counts"]["reports"].values()) == 40
    assert manifest["skipped"]["count"] == 0
    every = {row["id"]: row for split in ("train", "val", "test") for row in rows(tmp_path / "out", "reports", split)}
    assert every["images/P004.jpg"]["report"] == ("oval Lesion shape, Melanoma, red, partly white Colour")
    assert (
        every["images/P015.jpg"]["report"]
        == "round Lesion shape, Margin, Nevus, Ulceration, Itching, Crust, brown Colour"
    )
    said = capsys.readouterr().out
    assert (
        "images are named by column 'Patient ID': 40 by name in a sub-folder without or with another extension" in said
    )
    assert "columns 'Nevus', 'Melanoma', 'Keratosis' exclude each other: one attribute 'Dx'" in said
    for name, what in (("Exam date", "looks like dates"), ("Remarks", "has 40 different values")):
        assert f"column '{name}' {what}: not taken for an attribute" in said
    asked = {row["attribute"]: row for row in rows(tmp_path / "out", "questions", "val")}
    assert asked["Dx"]["question"] == "What is the Dx?"
    assert sorted(asked["Dx"]["options"]) == ["Keratosis", "Melanoma", "Nevus"]
    assert asked["Ulceration"]["question"] == "Is there Ulceration?"
    assert asked["Lesion shape"]["options"] == ["round", "oval", "irregular"]


def test_a_look_at_the_schema_and_a_rebuild(tmp_path):
    root = dirty_tree(tmp_path / "in")
    build(image_table(root, "lesions.xlsx"), tmp_path / "first")
    text = (tmp_path / "first" / "schema.yaml").read_text()
    assert "# columns 'Nevus', 'Melanoma', 'Keratosis' exclude each other" in text
    written = yaml.safe_load(text)
    assert list(written) == ["attributes"]
    assert next(a for a in written["attributes"] if a["name"] == "Colour") == {
        "name": "Colour", "values": ["brown", "red, partly white"], "absent": [""],
    }  # fmt: skip
    edited = text.replace("- name: Dx\n", "- name: diagnosis\n  question: Which diagnosis is most likely?\n")
    (tmp_path / "mine.yaml").write_text(edited)
    build(image_table(root, "lesions.xlsx", schema=str(tmp_path / "mine.yaml")), tmp_path / "out", protocol="full")
    questions = {row["question"] for row in rows(tmp_path / "out", "questions", "val")}
    assert "Which diagnosis is most likely?" in questions


def test_a_comma_inside_a_value_is_never_cut(tmp_path):
    root = dirty_tree(tmp_path / "in")
    build(image_table(root, "lesions.xlsx"), tmp_path / "out")
    row = next(r for r in rows(tmp_path / "out", "reports", "train") if "partly white" in r["report"])
    pairs = [(item["name"], item["value"]) for item in row["attributes"]]
    orders = {shuffle_parts(",")(row["report"], pairs, (0, 0, n)) for n in range(20)}
    assert len(orders) > 5
    assert all("red, partly white Colour" in order for order in orders)


@pytest.mark.parametrize(
    ("text", "name", "legend", "codes"),
    [
        ("Shape\n(0 = round, 1=oval)", "Shape", {"0": "round", "1": "oval"}, ("0", "1")),
        ("Grade [1: low grade; 2: high]", "Grade", {"1": "low grade", "2": "high"}, ("1", "2")),
        ("Shape (0/1/2)", "Shape", {}, ("0", "1", "2")),
        ("Margin_type (P/N)", "Margin type", {}, ("P", "N")),
        ("Diameter (mm)", "Diameter (mm)", {}, ()),
        ("Brown(Hyperpigmentation)", "Brown(Hyperpigmentation)", {}, ()),
    ],
)
def test_headers(text, name, legend, codes):
    header = read_header(text)
    assert (header.name, dict(header.legend), header.codes) == (name, legend, codes)


def test_images_are_recognised_as_a_person_would(tmp_path):
    for name in ("a/One.JPG", "a/café.png", "b/two.tif", "masks/three.png", "pictures/three.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    index = ImageIndex(tmp_path)
    for value, file in (
        ("./a/One.JPG", "a/One.JPG"), ("A\\one.jpg", "a/One.JPG"), ("one", "a/One.JPG"), ("cafe\u0301", "a/café.png"),
        ("b/two.jpg", "b/two.tif"), ("two", "b/two.tif"),
    ):  # fmt: skip
        assert index.find(value, "row", Problems())[0] == file
    problems = Problems()
    assert index.find("three", "row 5", problems) is None
    assert problems.first == ["row 5: image 'three' could be 'masks/three.png' or 'pictures/three.png'"]


def test_numbers_that_lost_their_zeros_and_a_macs_litter(tmp_path):
    for name in ("007.jpg", "010.jpg", "1.jpg", "sub/0.png", "001.jpg"):
        save_picture(tmp_path / name, 1)
    (tmp_path / "._007.jpg").write_bytes(b"resource fork")
    index = ImageIndex(tmp_path)
    assert len(index.files) == 5
    found = {value: index.candidates(value)[1] for value in ("7", "010", "10", "1", "0", "01", "70")}
    assert found == {
        "7": ["007.jpg"], "010": ["010.jpg"], "10": ["010.jpg"], "1": ["1.jpg"], "0": ["sub/0.png"],
        "01": ["001.jpg", "1.jpg"], "70": [],
    }  # fmt: skip


def test_the_same_image_under_two_spellings_is_one_record(tmp_path):
    save_picture(tmp_path / "in" / "3.jpg", 3)
    table = [
        ["3.jpg", "a"],
        ["./3.jpg", "b"],
        *([save_picture(tmp_path / "in" / f"{n}.jpg", n).name, "ab"[n % 2]] for n in range(4, 12)),
    ]
    save_csv(tmp_path / "in" / "t.csv", ["image", "kind"], table)
    with pytest.raises(DataError, match=r"id '3\.jpg' occurs a second time"):
        build(image_table(tmp_path / "in", "t.csv"), tmp_path / "out")


def inferred(header, rows):
    notes = []
    return infer_schema([dict(zip(header, row, strict=True)) for row in rows], header, notes, chosen=False), notes


def test_spellings_legends_and_flags_that_never_hold():
    """Values that differ by case or spaces are one; a legend of yes and no makes a flag; a finding nobody has is no text."""
    header = ["Quality", "Oedema (1 = absent, 2 = present)", "Disc (pale/normal)", "Dx A", "Dx B", "Ulcer (0/1)"]
    rows = [
        [("Good", "good", "Good", "Poor", "poor")[n % 5] if n else "POOR", str(1 + n % 2),
         ("pale", "normal")[n // 2 % 2], "xX"[n // 2 % 2] if n % 2 else "", "" if n % 2 else "X", "0"]
        for n in range(20)
    ]  # fmt: skip
    schema, notes = inferred(header, rows)
    assert [attribute.name for attribute in schema.attributes] == ["Quality", "Oedema", "Disc", "Dx", "Ulcer"]
    quality, oedema, disc, dx, ulcer = schema.attributes
    assert quality.option_texts() == ("Good", "Poor")
    assert (
        "column 'Quality' spells values in several ways: 'POOR' as 'Poor', 'good' as 'Good', 'poor' as 'Poor'" in notes
    )
    assert [oedema.in_report("1"), oedema.in_report("2"), oedema.text("2")] == ["", "Oedema", "yes"]
    assert disc.in_report("pale") == "pale Disc"
    assert dx.one_of == {"Dx A": "A", "Dx B": "B"}
    assert (ulcer.in_report("0"), ulcer.asked) == ("", False)
    read, faults = schema.read(dict(zip(header, rows[1], strict=True)))
    assert (read["Dx"], faults) == ("A", [])


def test_spellings_are_one_value_in_checks_and_preview(tmp_path):
    """The rarer spelling occurs in the test split alone."""
    table = []
    for n in range(12):
        split = ("train", "val", "test")[max(0, n - 9)]
        word = "good" if split == "test" else ("Good", "Poor")[n % 2]
        table.append([save_picture(tmp_path / "in" / f"{n}.png", n).name, split, word])
    save_csv(tmp_path / "in" / "t.csv", ("image", "set", "quality"), table)
    source = image_table(tmp_path / "in", "t.csv", split_column="set")
    manifest = build(source, tmp_path / "out", protocol="full")
    assert not [warning for warning in manifest["checks"]["warnings"] if "not in training" in warning]
    page = (tmp_path / "out" / "preview.html").read_text()
    assert (page.count("7 (58 %)"), page.count("5 (42 %)")) == (1, 1)  # Good and Poor, each once
    assert "good quality" not in page


def test_all_negative_is_a_report(tmp_path):
    table = [[save_picture(tmp_path / "in" / f"{n}.png", n).name, n % 2, int(n % 4 == 1)] for n in range(20)]
    save_csv(tmp_path / "in" / "t.csv", ["image", "edema", "mass"], table)
    manifest = build(image_table(tmp_path / "in", "t.csv", empty_report="Normal."), tmp_path / "out")
    reports = [row["report"] for split in ("train", "val", "test") for row in rows(tmp_path / "out", "reports", split)]
    assert sum(manifest["counts"]["reports"].values()) == 20
    assert sorted(set(reports)) == ["Normal.", "edema", "edema, mass"]
    assert reports.count("Normal.") == 10


def sheet_rows(path):
    problems = Problems()
    return [row for _, row in read_table(path, ["image"], problems)], problems


def test_merged_cells_errors_and_formulas(tmp_path):
    book = openpyxl.Workbook()
    sheet = book.active
    for row in (["image", "kind"], ["a", "x"], ["b", None], ["c", "=1+1"], ["d", "#N/A"], ["e", "y"]):
        sheet.append(row)
    sheet["B5"].data_type = "e"
    sheet.merge_cells("B2:B3")
    book.save(tmp_path / "t.xlsx")
    found, problems = sheet_rows(tmp_path / "t.xlsx")
    assert found == [{"image": "a", "kind": "x"}, {"image": "b", "kind": "x"}, {"image": "e", "kind": "y"}]
    assert problems.first == [
        "t.xlsx row 4: cell B4 holds a formula without a value",
        "t.xlsx row 5: cell B5 holds #N/A",
    ]


def test_the_stated_dimension_is_not_trusted(tmp_path):
    book = openpyxl.Workbook()
    for n in range(20):
        book.active.append(["image" if n == 0 else f"{n}", n])
    book.active["B1"] = "kind"
    book.save(tmp_path / "whole.xlsx")
    with zipfile.ZipFile(tmp_path / "whole.xlsx") as old, zipfile.ZipFile(tmp_path / "t.xlsx", "w") as new:
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, content.replace(b'ref="A1:B20"', b'ref="A1:B4"'))
    assert len(sheet_rows(tmp_path / "t.xlsx")[0]) == 19
    with zipfile.ZipFile(tmp_path / "whole.xlsx") as old, zipfile.ZipFile(tmp_path / "bad.xlsx", "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name)[: -200 if "sheet1" in name else None])
    with pytest.raises(DataError, match=r"^bad.xlsx is not a readable XLSX workbook \(\w+\)$"):
        sheet_rows(tmp_path / "bad.xlsx")


def test_a_table_whose_extensions_differ_from_the_files_loses_no_row(tmp_path, capsys):
    names = [save_picture(tmp_path / "in" / f"{n}.{('jpg', 'png')[n % 2]}", n).name for n in range(20)]
    listed = [name.replace(".png", ".jpeg").replace(".jpg", ".JPG") for name in names]
    save_csv(tmp_path / "in" / "t.csv", ["image", "text"], [[name, f"A mass in {name}."] for name in listed])
    manifest = build(image_text(tmp_path / "in", "t.csv"), tmp_path / "out")
    assert sum(manifest["counts"]["reports"].values()) == 20
    said = "images are named by column 'image': 10 by path, but for case or Unicode form, 10 by path without or with another"
    assert said in capsys.readouterr().out
    kept = {row["id"] for split in ("train", "val", "test") for row in rows(tmp_path / "out", "reports", split)}
    assert kept == set(names)


def test_images_that_no_row_names_and_rows_without_an_image_are_told(tmp_path, capsys):
    names = [save_picture(tmp_path / "in" / f"{n}.jpg", n).name for n in range(20)]
    save_csv(tmp_path / "in" / "t.csv", ["image", "text"], [[n, "A mass."] for n in [*names[:15], "x.jpg", "y.jpg"]])
    with pytest.raises(DataError, match=r"2 x image is missing (.|\n)*which loses 12% of the rows"):
        build(image_text(tmp_path / "in", "t.csv"), tmp_path / "out")
    assert "15 by path; 2 not found; 5 image files are named by no row" in capsys.readouterr().out


def test_flags_by_letters_that_the_header_lists_and_remarks(tmp_path, capsys):
    header = ["image", "Ulcer\n(J/N)", "Grade (O/N)", "Type", "Remarks"]
    table = [
        [
            save_picture(tmp_path / "in" / f"{n}.png", n).name,
            "JN"[n % 2],
            "ON"[n % 2],
            "ON"[n % 2],
            ("as before", "new, seen twice")[n % 2],
        ]
        for n in range(20)
    ]
    save_csv(tmp_path / "in" / "t.csv", header, table)
    build(image_table(tmp_path / "in", "t.csv"), tmp_path / "out")
    assert "column 'Remarks' looks like free text: not taken for an attribute" in capsys.readouterr().out
    schema = yaml.safe_load((tmp_path / "out" / "schema.yaml").read_text())["attributes"]
    assert [(row["name"], row.get("question")) for row in schema] == [
        ("Ulcer", "Is there {name}?"), ("Grade", "Is there {name}?"), ("Type", None),
    ]  # fmt: skip
    assert schema[0]["column"] == "Ulcer (J/N)"
