"""A dataset of one's own from a table: inferred and edited schemas, splits, groups."""

import openpyxl
import pytest
import yaml
from trees import build, rows, save_csv, save_picture

from ift_components.data.builders import image_table
from ift_components.data.splitting import random_splits
from ift_components.errors import ConfigError, DataError

COLUMNS = ["image", "patient", "colour", "has_nucleus", "diameter", "stain", "set"]


def tree(root, count=30):
    table = []
    for n in range(count):
        save_picture(root / f"img/{n}.png", n)
        colour = ("red", "blue", "NA")[n % 3]
        set_ = ("train", "dev", "test")[n % 3]
        table.append([f"img/{n}.png", f"p{n // 3}", colour, ("True", "False")[n % 2], n / 7, "giemsa", set_])
    save_csv(root / "cells.csv", COLUMNS, table)
    return root


def test_schema_is_inferred_and_written_for_editing(tmp_path, capsys):
    source = image_table(tree(tmp_path / "in"), "cells.csv", group_column="patient", split_column="set")
    build(source, tmp_path / "out", protocol="full")
    written = yaml.safe_load((tmp_path / "out" / "schema.yaml").read_text())
    shown = {row["name"]: row for row in written["attributes"]}
    assert list(shown) == ["colour", "has nucleus", "stain"]
    assert shown["colour"]["values"] == ["blue", "red"]
    assert shown["has nucleus"]["values"] == ["True", "False"]
    assert shown["stain"]["asked"] is False
    notes = capsys.readouterr().out
    assert "column 'diameter' has 30 different values: not taken for an attribute" in notes
    assert "column 'stain' always holds 'giemsa': in reports, but not asked" in notes
    train = rows(tmp_path / "out", "reports", "train")
    assert [row["report"] for row in train[:2]] == ["red colour, has nucleus, giemsa stain", "red colour, giemsa stain"]
    assert train[0]["group"] == "p0"
    asked = rows(tmp_path / "out", "questions", "val")
    assert [(row["question"], row["options"], row["answer"]) for row in asked[:2]] == [
        ("What is the colour?", ["blue", "red"], 0),
        ("Is there nucleus?", ["yes", "no"], 1),
    ]


def test_one_phrase_for_all_names_what_reports_leave_out(tmp_path):
    source = image_table(tree(tmp_path / "in"), "cells.csv", split_column="set").with_phrase("{name}: {value}")
    manifest = build(source, tmp_path / "out", protocol="full")
    reports = [row["report"] for row in rows(tmp_path / "out", "reports", "train")[:2]]
    assert reports == [
        "colour: red, has nucleus: yes, stain: giemsa",
        "colour: red, has nucleus: no, stain: giemsa",
    ]
    assert {row["phrase"] for row in manifest["schema"]["attributes"]} == {"{name}: {value}"}
    with pytest.raises(ConfigError, match=r"report_phrase: '\{name\}' has no \{value\}"):
        source.with_phrase("{name}")


def test_edited_schema_wins(tmp_path):
    root = tree(tmp_path / "in")
    schema = tmp_path / "mine.yaml"
    schema.write_text(
        "attributes:\n"
        "- {name: hue, column: colour, values: [red, blue], absent: [NA], wording: {red: crimson}, phrase: '{value}'}\n"
        "- {name: nucleus, column: has_nucleus, values: ['True', 'False'], phrases: {'True': nucleated, 'False': bare}}\n"
    )
    source = image_table(root, "cells.csv", schema=str(schema), split_column="set")
    manifest = build(source, tmp_path / "out", protocol="full")
    assert rows(tmp_path / "out", "reports", "train")[0]["report"] == "crimson, nucleated"
    assert rows(tmp_path / "out", "reports", "train")[0]["attributes"][0] == {"name": "hue", "value": "red"}
    assert str(schema) in manifest["tables"]
    schema.write_text("attributes:\n- {name: hue, column: color, values: [red, blue]}\n")
    with pytest.raises(DataError, match="no column 'color'"):
        image_table(root, "cells.csv", schema=str(schema))


def test_groups_stay_together_and_the_division_is_repeatable(tmp_path):
    root = tree(tmp_path / "in")
    for out in ("one", "two"):
        build(image_table(root, "cells.csv", group_column="patient", test_fraction=0.2), tmp_path / out)
    groups = {
        split: {row["group"] for row in rows(tmp_path / "one", "reports", split)} for split in ("train", "val", "test")
    }
    assert {split: len(found) for split, found in groups.items()} == {"train": 7, "val": 1, "test": 2}
    assert not groups["train"] & groups["val"] | groups["train"] & groups["test"] | groups["val"] & groups["test"]
    assert [rows(tmp_path / "one", "reports", s) for s in groups] == [
        rows(tmp_path / "two", "reports", s) for s in groups
    ]


def test_workbook(tmp_path):
    book = openpyxl.Workbook()
    for row in (["image", "kind"], ["0.png", 1], ["1.png", 2], ["2.png", 1], ["3.png", 2]):
        book.active.append(row)
    for n in range(4):
        save_picture(tmp_path / "in" / f"{n}.png", n)
    book.save(tmp_path / "in" / "t.xlsx")
    manifest = build(image_table(tmp_path / "in", "t.xlsx", val_fraction=0.25, test_fraction=0.25), tmp_path / "out")
    assert manifest["counts"]["reports"] == {"train": 2, "val": 1, "test": 1}
    assert rows(tmp_path / "out", "questions", "val")[0]["options"] == ["1", "2"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"table": "other.csv"}, "lacks other.csv"),
        ({"image_column": "file"}, "no column 'file'"),
        ({"attributes": ["diameter"]}, "'diameter' has 30 different values, expected 1 to 26"),
        ({"split_column": "colour"}, "split is 'red', expected one of: train, val, test"),
        ({"schema": "none.yaml"}, "none.yaml cannot be read as YAML"),
    ],
)
def test_wrong_arguments(tmp_path, arguments, message):
    arguments = {"table": "cells.csv"} | arguments
    with pytest.raises(DataError) as error:
        build(image_table(tree(tmp_path / "in"), **arguments), tmp_path / "out")
    assert message in str(error.value)


def test_wrong_choices_are_config_errors(tmp_path):
    root = tree(tmp_path / "in", 6)
    with pytest.raises(ConfigError, match=r"builder.images is 'both', expected one of: embed, path"):
        image_table(root, "cells.csv", images="both")
    with pytest.raises(ConfigError, match=r"builder.on_bad_row is 'ignore'"):
        image_table(root, "cells.csv", on_bad_row="ignore")
    with pytest.raises(ConfigError, match="must leave something to train on"):
        image_table(root, "cells.csv", val_fraction=0.5, test_fraction=0.5)


def test_random_splits_by_hand():
    # sorted keys a to j, shuffled by Random(0): h i b f d e c a j g
    assert random_splits("jihgfedcba", 0.2, 0.1, 0) == {
        "h": "val", "i": "val", "b": "test", "f": "train", "e": "train", "c": "train", "d": "train", "a": "train",
        "g": "train", "j": "train",
    }  # fmt: skip
    with pytest.raises(DataError, match="too few"):
        random_splits("ab", 0.1, 0.1, 0)


def test_rows_without_a_group_are_divided_singly(tmp_path):
    root = tree(tmp_path / "in")
    text = (root / "cells.csv").read_text()
    for n in range(10):
        text = text.replace(f",p{n},", ",,")
    (root / "cells.csv").write_text(text)
    manifest = build(image_table(root, "cells.csv", group_column="patient"), tmp_path / "out")
    assert manifest["counts"]["reports"] == {"train": 24, "val": 3, "test": 3}
    assert rows(tmp_path / "out", "reports", "val")[0]["group"] is None
