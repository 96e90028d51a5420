"""WBCAtt: reports, the authors' questions and the published splits, on a generated folder and on the real one."""

import csv
import hashlib
import random
import shutil

import pytest
from trees import LYMPHOCYTE, MONOCYTE, NEUTROPHIL, SHARED, build, edit, leftovers, rows, save_picture, wbcatt_tree

from ift_components.data.builders import wbcatt
from ift_components.data.prepared import load_questions, load_reports, read_manifest
from ift_components.errors import DataError

REAL = SHARED / "wbcatt"
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason="../shared/data/wbcatt is not there")
KEYS = [
    "cell_size", "cell_shape", "nucleus_shape", "nuclear_cytoplasmic_ratio", "chromatin_density", "cytoplasm_vacuole",
    "cytoplasm_texture", "cytoplasm_colour", "granularity", "granule_type", "granule_colour", "label",
]  # fmt: skip


def test_reports_and_questions_of_hand_worked_rows(tmp_path):
    manifest = build(wbcatt(wbcatt_tree(tmp_path / "in")), tmp_path / "out")
    assert manifest["counts"] == {
        "reports": {"train": 3, "val": 2, "test": 1},
        "questions": {"train": 0, "val": 2, "test": 1},
    }
    assert [row["report"] for row in rows(tmp_path / "out", "reports", "train")] == [
        (
            "big cell size, round cell shape, unsegmented-band nucleus shape, low nuclear cytoplasmic ratio, "
            "densely chromatin density, clear cytoplasm texture, light blue cytoplasm colour, granularity, "
            "small granule type, pink granule colour, Neutrophil"
        ),
        (
            "small cell size, irregular cell shape, irregular nucleus shape, high nuclear cytoplasmic ratio, "
            "densely chromatin density, frosted cytoplasm texture, purple blue cytoplasm colour, Lymphocyte"
        ),
        (
            "big cell size, irregular cell shape, unsegmented-indented nucleus shape, low nuclear cytoplasmic ratio, "
            "loosely chromatin density, cytoplasm vacuole, clear cytoplasm texture, blue cytoplasm colour, Monocyte"
        ),
    ]
    lymphocyte = {row["name"]: row["value"] for row in rows(tmp_path / "out", "reports", "train")[1]["attributes"]}
    assert lymphocyte["granularity"] == "no"
    assert "granule type" not in lymphocyte
    # Random(0).shuffle of 12, 10 and 10 keys puts these first (worked out in a bare interpreter).
    asked = [*rows(tmp_path / "out", "questions", "val"), *rows(tmp_path / "out", "questions", "test")]
    assert [(row["question"], row["options"], row["answer"]) for row in asked] == [
        ("What is the cell shape?", ["irregular", "round"], 1),
        ("What is the cytoplasm texture?", ["clear", "frosted"], 1),
        ("What is the cytoplasm colour?", ["blue", "light blue", "purple blue"], 0),
    ]


def test_full_protocol_asks_every_applicable_attribute(tmp_path):
    build(wbcatt(wbcatt_tree(tmp_path / "in")), tmp_path / "out", protocol="full")
    asked = rows(tmp_path / "out", "questions", "val")
    names = [row["attribute"] for row in asked]
    assert names == [key.replace("_", " ") for key in KEYS] + [
        key.replace("_", " ") for key in KEYS if not key.startswith("granule_")
    ]
    vacuole = asked[names.index("cytoplasm vacuole")]
    assert (vacuole["options"], vacuole["answer"]) == (["yes", "no"], 1)


def test_images_by_path_or_embedded(tmp_path):
    source = wbcatt_tree(tmp_path / "in")
    build(wbcatt(source, images="path"), tmp_path / "paths")
    build(wbcatt(source), tmp_path / "bytes")
    for out in ("paths", "bytes"):
        train = load_reports(tmp_path / out, "train")
        assert train[0]["image"].size == (16, 12)
    (by_path, *_), (embedded, *_) = (rows(tmp_path / out, "reports", "train") for out in ("paths", "bytes"))
    file = source / by_path["id"]
    assert by_path["image"] == {"bytes": None, "path": str(file)}
    assert embedded["image"] == {"bytes": file.read_bytes(), "path": file.name}
    assert load_questions(tmp_path / "paths", "test")[0]["image"].size == (16, 12)


def test_unknown_values_and_missing_images_are_collected(tmp_path):
    source = wbcatt_tree(tmp_path / "in", {"train": [NEUTROPHIL] * 15, "val": [LYMPHOCYTE], "test": [MONOCYTE]})
    edit(source / "pbc_attr_v1_train.csv", lambda text: text.replace("big", "huge"))
    shutil.rmtree(source / "PBC_dataset_normal_DIB" / "monocyte")
    with pytest.raises(DataError) as error:
        build(wbcatt(source), tmp_path / "out")
    message = str(error.value)
    assert "wbcatt: 16 bad row(s)\n  15 x value that the schema does not list (correct the cell" in message
    assert "\n  1 x image is missing (are the images in builder.root" in message
    assert "leave them out with builder.on_bad_row=skip, which loses 94% of the rows" in message
    assert "pbc_attr_v1_train.csv line 2: cell_size is 'huge', expected one of: big, small" in message
    assert message.count("\n    pbc_attr") == 4  # three examples of the first kind, one of the second
    assert leftovers(tmp_path / "out") == ["in"]
    with pytest.raises(DataError, match="split 'train' is empty; 16 bad row"):
        build(wbcatt(source, on_bad_row="skip"), tmp_path / "out")
    assert leftovers(tmp_path / "out") == ["in"]


def test_skipping_bad_rows_is_reported(tmp_path):
    source = wbcatt_tree(tmp_path / "in")
    edit(source / "pbc_attr_v1_train.csv", lambda text: text.replace("high", "higher"))
    manifest = build(wbcatt(source, on_bad_row="skip"), tmp_path / "out")
    assert manifest["counts"]["reports"]["train"] == 2
    assert manifest["skipped"]["count"] == 1
    assert "nuclear_cytoplasmic_ratio is 'higher'" in manifest["skipped"]["first"][0]


def test_missing_table_and_column(tmp_path):
    source = wbcatt_tree(tmp_path / "in")
    edit(source / "pbc_attr_v1_val.csv", lambda text: text.replace("cell_shape", "cell shape"))
    with pytest.raises(DataError, match=r"pbc_attr_v1_val.csv: no column 'cell_shape'; it has: 'img_name', 'label'"):
        build(wbcatt(source), tmp_path / "out")
    (source / "pbc_attr_v1_val.csv").unlink()
    with pytest.raises(DataError, match=r"lacks pbc_attr_v1_val.csv"):
        wbcatt(source)
    with pytest.raises(DataError, match="is not a folder"):
        wbcatt(tmp_path / "nowhere")


@needs_real
def test_real_tables_reproduce_the_authors_stream(tmp_path):
    """The real tables with one shared image in place of each file: counts, order, reports and the drawn questions."""
    for name in ("train", "val", "test"):
        shutil.copy(REAL / f"pbc_attr_v1_{name}.csv", tmp_path)
    tables = {
        s: list(csv.DictReader((REAL / f"pbc_attr_v1_{s}.csv").open(newline=""))) for s in ("train", "val", "test")
    }
    first = save_picture(tmp_path / "one.jpg", 0)
    for row in (row for table in tables.values() for row in table):
        path = tmp_path / row["path"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.hardlink_to(first)
    out = tmp_path / "out"
    manifest = build(wbcatt(tmp_path, images="path"), out)
    assert manifest["counts"]["reports"] == {"train": 6169, "val": 1030, "test": 1000}
    assert (
        manifest["tables"]["pbc_attr_v1_val.csv"]
        == hashlib.sha256((REAL / "pbc_attr_v1_val.csv").read_bytes()).hexdigest()
    )
    assert [row["id"] for row in rows(out, "reports", "train")] == [row["path"] for row in tables["train"]]
    random.seed(0)
    for split in ("val", "test"):
        asked = rows(out, "questions", split)
        assert len(asked) == len(tables[split])
        for question, row in zip(asked, tables[split], strict=True):
            keys = [key for key in KEYS if row[key] != "nil"]
            random.shuffle(keys)
            assert question["image_id"] == row["path"]
            assert question["question"] == f"What is the {keys[0].replace('_', ' ')}?"
            assert question["options"][question["answer"]] == row[keys[0]]
            values = sorted({r[keys[0]] for table in tables.values() for r in table} - {"nil"})
            assert question["options"] == (["yes", "no"] if values == ["no", "yes"] else values)
    assert read_manifest(out) == manifest
