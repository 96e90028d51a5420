"""Leakage and sanity checks, each on a dataset that has the fault."""

import shutil

import pytest
from PIL import Image
from trees import BuildOptions, QuestionOptions, build, picture, save_csv, save_picture

from ift_components.data.build import prepare
from ift_components.data.builders import image_table

COLUMNS = ["image", "patient", "kind", "stain", "set"]


def tree(root, names=None):
    rows = []
    for n in range(12):
        name = names[n] if names else f"{n}.png"
        save_picture(root / name, n)
        rows.append([name, f"p{n}", ("round", "oval")[n % 2], "giemsa", ("train", "val", "test")[n % 3]])
    return rows


def checks(root, rows, **options):
    save_csv(root / "t.csv", COLUMNS, rows)
    source = image_table(root, "t.csv", split_column="set", group_column="patient")
    manifest = prepare(source, root.parent / "out", QuestionOptions(protocol="full"), BuildOptions(**options))
    return manifest["checks"]


def test_a_sound_dataset_raises_only_its_true_warning(tmp_path):
    found = checks(tmp_path / "in", tree(tmp_path / "in"))
    assert found["warnings"] == ["attribute 'stain' has one value only: giemsa"]
    assert found["leaks"]["groups"] == {"total": 12, "count": 0, "pairs": {}, "first": []}
    assert found["balance"]["kind"] == {split: {"round": 2, "oval": 2} for split in ("train", "val", "test")}
    assert found["questions"]["val"] == {"kind": {"count": 4, "chance": 0.5, "majority": 0.5, "letter": 0.5}}


def test_patients_in_two_splits(tmp_path, capsys):
    rows = tree(tmp_path / "in")
    rows[1][1] = rows[2][1] = "p0"
    rows[4][1] = "p3"
    found = checks(tmp_path / "in", rows)
    assert found["leaks"]["groups"] == {
        "total": 9,
        "count": 2,
        "pairs": {"train and val and test": 1, "train and val": 1},
        "first": ["p0", "p3"],
    }
    assert "warning: 2 groups (patients) in more than one split" in capsys.readouterr().out


def test_identical_images(tmp_path):
    rows = tree(tmp_path / "in")
    shutil.copy(tmp_path / "in" / "0.png", tmp_path / "in" / "2.png")  # train and test
    shutil.copy(tmp_path / "in" / "1.png", tmp_path / "in" / "4.png")  # val and val
    found = checks(tmp_path / "in", rows)
    assert found["leaks"]["identical_images"] == {
        "count": 1,
        "pairs": {"train and test": 1},
        "first": ["0.png"],
        "repeated_within_a_split": 1,
    }


def test_near_duplicates_on_request(tmp_path):
    root, rows = tmp_path / "in", tree(tmp_path / "in")
    for n in range(12):
        picture(n, (9, 8)).resize((90, 80), Image.Resampling.BICUBIC).save(root / f"{n}.png")
    with Image.open(root / "0.png") as image:
        image.resize((45, 40)).save(root / "1.png")
    assert "near_duplicates" not in checks(root, rows)["leaks"]
    shutil.rmtree(tmp_path / "out")
    found = checks(root, rows, near_duplicates=True)
    assert found["leaks"]["near_duplicates"] == {"count": 1, "pairs": {"train and val": 1}, "first": ["1.png ~ 0.png"]}
    assert found["leaks"]["identical_images"]["count"] == 0


def test_answers_in_paths_and_prefixes(tmp_path):
    found = checks(tmp_path / "in", tree(tmp_path / "in", [f"{('round', 'oval')[n % 2]}/{n}.png" for n in range(12)]))
    assert found["file_names"]["kind"]["named"] == 1
    assert "attribute 'kind': the answer stands in the path of 100% of the images asked about" in found["warnings"]


def test_coded_prefixes_are_noticed(tmp_path):
    root, rows = tmp_path / "in", []
    for n in range(36):
        name = save_picture(root / f"{('RX', 'OX')[n % 2]}_{n}.png", n).name
        rows.append([name, f"p{n}", ("round", "oval")[n % 2], "giemsa", ("train", "val", "test")[n % 3]])
    found = checks(root, rows)
    assert found["file_names"]["kind"] == {"named": 0.0, "by_prefix": 1.0, "majority": 0.5}
    assert any("file-name prefix give the answer away (100% right" in warning for warning in found["warnings"])


@pytest.mark.parametrize("text", ["segmented", "unsegmented"])
def test_nested_words_in_paths_are_told_apart(tmp_path, text):
    root, rows = tmp_path / "in", tree(tmp_path / "in", [f"unsegmented/{n}.png" for n in range(12)])
    for row in rows:
        row[2] = text if row[4] != "train" else ("segmented", "unsegmented")[int(row[0][12:-4]) % 2]
    found = checks(root, rows)
    assert found["file_names"]["kind"]["named"] == (text == "unsegmented")


def test_values_that_training_never_sees(tmp_path):
    rows = tree(tmp_path / "in")
    rows[1][2] = "square"
    assert "attribute 'kind': not in training: square" in checks(tmp_path / "in", rows)["warnings"]


def test_circular_variants_leave_no_favourite_letter(tmp_path):
    rows = tree(tmp_path / "in")
    save_csv(tmp_path / "in" / "t.csv", COLUMNS, rows)
    manifest = build(image_table(tmp_path / "in", "t.csv", split_column="set"), tmp_path / "out", circular=True)
    assert manifest["checks"]["questions"]["val"]["kind"] == {"count": 8, "chance": 0.5, "majority": 0.5, "letter": 0.5}
