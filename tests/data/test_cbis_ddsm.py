"""CBIS-DDSM: both editions, reports, the authors' questions and division, crops told from masks."""

import random
import shutil

import numpy as np
import pytest
from trees import SHARED, build, rows
from trees_medical import cbis_dicom_files, cbis_jpeg_files, cbis_row, cbis_tables

from ift_components.data.builders import cbis_ddsm
from ift_components.data.builders.cbis_ddsm import DISTRIBUTIONS, MARGINS, SHAPES, TYPES
from ift_components.errors import DataError

REAL = SHARED / "cbis_ddsm_csv"
TRAIN = [
    cbis_row("Mass-Training", f"P_{n:05d}", "IRREGULAR-ARCHITECTURAL_DISTORTION", "SPICULATED", "MALIGNANT")
    for n in range(1, 12)
]
ROWS = [
    *TRAIN,
    cbis_row("Calc-Training", "P_00030", "ROUND_AND_REGULAR-LUCENT_CENTERED", "NA", "BENIGN_WITHOUT_CALLBACK"),
    cbis_row("Mass-Test", "P_00016", "LYMPH_NODE", "ILL_DEFINED", "BENIGN"),
    cbis_row("Calc-Test", "P_00001", "PLEOMORPHIC", "CLUSTERED", "MALIGNANT"),
    cbis_row("Calc-Test", "P_00038", "PUNCTATE-PLEOMORPHIC", "NA", "BENIGN_WITHOUT_CALLBACK"),
]


@pytest.fixture(params=["jpeg", "dicom"])
def source(request, tmp_path):
    root = tmp_path / "in"
    cbis_tables(root / "csv" if request.param == "jpeg" else root, ROWS)
    return cbis_jpeg_files(root) if request.param == "jpeg" else cbis_dicom_files(root)


def test_reports_and_questions_of_hand_worked_rows(source, tmp_path):
    manifest = build(cbis_ddsm(source), tmp_path / "out")
    assert manifest["counts"] == {
        "reports": {"train": 11, "val": 1, "test": 3},
        "questions": {"train": 0, "val": 3, "test": 10},
    }
    test = rows(tmp_path / "out", "reports", "test")
    assert [row["report"] for row in test] == [
        "lymph node mass shape, ill defined mass margins, mass, benign",
        "pleomorphic calc type, clustered calc distribution, calcification, malignant",
        "punctate-pleomorphic calc type, calcification, benign",
    ]
    assert [row["group"] for row in test] == ["P_00016", "P_00001", "P_00038"]
    assert test[2]["attributes"][-1] == {"name": "pathology", "value": "BENIGN_WITHOUT_CALLBACK"}
    asked = rows(tmp_path / "out", "questions", "test")
    assert [row["question"] for row in asked[:4]] == [
        "What is the mass shape?", "What is the mass margin?", "What is the abnormality type?", "What is the pathology?",
    ]  # fmt: skip
    assert [row["attribute"] for row in asked] == [
        "mass shape", "mass margins", "abnormality type", "pathology",
        "calc type", "calc distribution", "abnormality type", "pathology",
        "abnormality type", "pathology",
    ]  # fmt: skip
    # The authors' options: four others drawn and all five shuffled, from random.seed(1).
    random.seed(1)
    for place, name, answer in ((0, SHAPES, "lymph node"), (1, MARGINS, "ill defined"), (4, TYPES, "pleomorphic"),
                                (5, DISTRIBUTIONS, "clustered")):  # fmt: skip
        options = [answer, *random.sample([text for text in name if text != answer], k=4)]
        random.shuffle(options)
        assert asked[place]["options"] == options
    assert asked[2]["options"] == ["calcification", "mass"]
    assert (asked[3]["options"], asked[3]["answer"]) == (["benign", "malignant"], 0)


def test_crops_not_masks_padded_to_squares(source, tmp_path):
    build(cbis_ddsm(source), tmp_path / "out")
    facts = rows(tmp_path / "out", ".", "files")
    assert {(fact["width"], fact["height"]) for fact in facts} == {(14, 14)}
    assert all("padded to a square" in fact["converted"] for fact in facts)


def test_validation_patients_are_the_authors(source, tmp_path):
    build(cbis_ddsm(source), tmp_path / "out")
    patients = sorted({row[0] for row in ROWS if "-Training_" in row[-2]})
    random.Random(0).shuffle(patients)
    assert {row["group"] for row in rows(tmp_path / "out", "reports", "val")} == set(
        patients[: int(len(patients) * 0.1)]
    )
    assert all(int(count * 0.1) == count // 10 for count in range(100_000))


def test_missing_crops_and_unknown_values_are_collected(source, tmp_path):
    case = next(source.rglob("*Mass-Test_P_00016*"), None)
    if case:
        shutil.rmtree(case)
    else:
        (source / "csv" / "dicom_info.csv").write_text("PatientID,SeriesDescription,image_path\n")
    with pytest.raises(DataError, match="no image of case 'Mass-Test_P_00016_LEFT_CC_1'" if case else "15 bad row"):
        build(cbis_ddsm(source), tmp_path / "out")


def test_unknown_values_are_named(tmp_path):
    cbis_tables(tmp_path / "in", [*ROWS, cbis_row("Mass-Test", "P_00099", "ROUND-SQUARE", "OBSCURED", "UNSURE")])
    cbis_dicom_files(tmp_path / "in", ".")
    with pytest.raises(DataError) as error:
        build(cbis_ddsm(tmp_path / "in"), tmp_path / "out")
    assert "mass shape is 'square', expected one of: architectural distortion" in str(error.value)
    assert "pathology is 'UNSURE', expected one of: BENIGN" in str(error.value)
    manifest = build(cbis_ddsm(tmp_path / "in", on_bad_row="skip"), tmp_path / "out")
    assert manifest["counts"]["reports"]["test"] == 3
    assert manifest["skipped"]["count"] == 2


def test_a_case_with_masks_alone_is_a_bad_row(tmp_path):
    cbis_tables(tmp_path / "in" / "csv", ROWS)
    root = cbis_jpeg_files(tmp_path / "in")
    mask = root / "jpeg" / "mask.jpg"
    for path in (root / "jpeg" / "1.3.6.0").iterdir():
        path.unlink()
        path.hardlink_to(mask)
    with pytest.raises(DataError, match=r"is missing: 2 file\(s\), all of them masks"):
        build(cbis_ddsm(root), tmp_path / "out")


def test_missing_tables_are_listed(tmp_path):
    (tmp_path / "csv").mkdir()
    with pytest.raises(
        DataError, match=r"lacks mass_case_description_train_set.csv, mass_case_description_test_set.csv"
    ):
        cbis_ddsm(tmp_path)


@pytest.mark.skipif(not REAL.is_dir(), reason="../shared/data/cbis_ddsm_csv is not there")
def test_real_tables(tmp_path):
    """The four real tables with generated images: counts, texts of single rows, the authors' question counts."""
    shutil.copytree(REAL, tmp_path / "in" / "csv")
    source = cbis_ddsm(cbis_jpeg_files(tmp_path / "in"), images="path", pad_to_square=False)
    manifest = build(source, tmp_path / "out")
    counts = manifest["counts"]
    assert counts["reports"]["train"] + counts["reports"]["val"] == 1318 + 1546
    assert counts["reports"]["test"] == 378 + 326
    # Counted off the tables: listed values of the four attributes, and two questions a row about type and pathology.
    assert counts["questions"]["test"] == (367 + 332) + (288 + 257) + 2 * 704
    first = rows(tmp_path / "out", "reports", "test")[0]
    assert (first["id"], first["group"]) == ("Mass-Test_P_00016_LEFT_CC_1", "P_00016")
    assert first["report"] == "irregular mass shape, spiculated mass margins, mass, malignant"
    groups = {split: {row["group"] for row in rows(tmp_path / "out", "reports", split)} for split in ("train", "val")}
    assert not groups["train"] & groups["val"]
    assert (
        manifest["checks"]["leaks"]["groups"]["count"] == 31
    )  # patients in training for one kind, in test for the other
    assert np.mean([row["image"]["bytes"] is None for row in rows(tmp_path / "out", "reports", "test")]) == 1
