"""SKINCON: concepts by name, the authors' division, one question about the whole combination."""

import random

import pytest
from trees import build, edit, rows
from trees_medical import skincon_row, skincon_tree

from ift_components.data.builders import skincon
from ift_components.errors import DataError

KINDS = (["Papule", "Erythema"], ["Plaque"], ["Vesicle", "Scale"], ["Nodule"], ["Patch"], ["Ulcer", "Crust", "Yellow"])


def tree(root, count=40):
    table = [skincon_row(n, f"{n * 37 % 100:032x}.jpg", KINDS[n % len(KINDS)]) for n in range(count)]
    table[1][0] = 1  # the trap: the index column holds a 1 too
    table.append(skincon_row(90, "excluded.jpg", ["Papule"], 1))
    table.append(skincon_row(91, "gone.jpg", ["Papule"]))
    table.append(skincon_row(92, "nothing.jpg", []))
    return skincon_tree(root, table)


def test_reports_division_and_options_follow_the_authors(tmp_path):
    manifest = build(skincon(tree(tmp_path / "in")), tmp_path / "out")
    assert manifest["counts"]["reports"] == {"train": 32, "val": 4, "test": 4}
    assert manifest["left_out"] == {
        "marked 'Do not consider this image'": 1,
        "no image file": 1,
        "no concept present": 1,
    }
    # The authors' steps, by hand: names with their texts, sorted, shuffled by Random(0), val first.
    texts = {f"{n * 37 % 100:032x}.jpg": ", ".join(KINDS[n % len(KINDS)]).lower() for n in range(40)}
    order = sorted(texts.items())
    random.Random(0).shuffle(order)
    pool = sorted(set(texts.values()))
    for split, part in (("val", order[:4]), ("test", order[4:8])):
        random.seed(1)
        reports, asked = rows(tmp_path / "out", "reports", split), rows(tmp_path / "out", "questions", split)
        assert [(row["id"], row["report"]) for row in reports] == [(f"fitzpatrick17k/{k}", v) for k, v in part]
        for question, (_, text) in zip(asked, part, strict=True):
            others = [other for other in pool if other != text]
            options = [text, *random.sample(others, k=min(len(others), 4))]
            random.shuffle(options)
            assert question["question"] == "What is the dermatologic feature?"
            assert question["options"] == options
            assert question["options"][question["answer"]] == text
    assert [row["id"] for row in rows(tmp_path / "out", "reports", "train")] == [
        f"fitzpatrick17k/{k}" for k, _ in order[8:]
    ]


def test_a_hand_worked_row(tmp_path):
    build(skincon(tree(tmp_path / "in")), tmp_path / "out")
    every = [row for split in ("train", "val", "test") for row in rows(tmp_path / "out", "reports", split)]
    (row,) = [row for row in every if row["id"] == f"fitzpatrick17k/{37:032x}.jpg"]
    assert row["report"] == "plaque"
    values = {item["name"]: item["value"] for item in row["attributes"]}
    assert len(values) == 49
    assert [name for name, value in values.items() if value == "1"] == ["plaque"]
    assert values["dermatologic feature"] == "plaque"


def test_padding_as_the_authors(tmp_path):
    build(skincon(tree(tmp_path / "in")), tmp_path / "padded")
    build(skincon(tmp_path / "in", pad_to_square=False), tmp_path / "kept")
    facts = [rows(tmp_path / out, ".", "files")[0] for out in ("padded", "kept")]
    assert [(fact["width"], fact["height"]) for fact in facts] == [(20, 20), (20, 10)]


def test_ddi_is_divided_by_itself(tmp_path):
    root = tree(tmp_path / "in")
    skincon_tree(root, [skincon_row(n, f"{n:06d}.png", ["Nodule"]) for n in range(20)], "annotations_ddi.csv")
    build(skincon(root), tmp_path / "without")
    manifest = build(skincon(root, ddi_table="annotations_ddi.csv"), tmp_path / "with")
    assert manifest["counts"]["reports"] == {"train": 48, "val": 6, "test": 6}
    for split, count in (("train", 32), ("val", 4), ("test", 4)):
        ids = [row["id"] for row in rows(tmp_path / "with", "reports", split)]
        assert ids[:count] == [row["id"] for row in rows(tmp_path / "without", "reports", split)]
        assert all(name.startswith("ddi/") for name in ids[count:])


def test_dirt_is_reported(tmp_path):
    root = tree(tmp_path / "in")
    table = root / "annotations_fitzpatrick17k.csv"
    edit(table, lambda text: text.replace("\n3,", "\n3,", 1).replace("Wheal", "Weal"))
    with pytest.raises(DataError, match="no column 'Wheal'"):
        build(skincon(root), tmp_path / "out")
    edit(table, lambda text: text.replace("Weal", "Wheal").replace(",0,0,0\n", ",0,0,NA\n"))
    with pytest.raises(DataError, match="'Do not consider this image' is 'NA', expected one of: 1, 0"):
        build(skincon(root), tmp_path / "out")
    with pytest.raises(DataError, match="lacks the image folder 'images'"):
        skincon(root, fitzpatrick_images="images")
