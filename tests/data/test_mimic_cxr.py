"""MIMIC-CXR on made-up entries: filters, sections, questions, and no report text outside the Parquet files."""

import json

import pytest
from trees import build, edit, rows
from trees_medical import mimic_entry, mimic_tree

from ift_components.data.builders import mimic_cxr
from ift_components.data.builders.mimic_cxr import choice_questions
from ift_components.data.json_stream import stream_json_list
from ift_components.errors import DataError

PRIVATE = "UNREPEATABLE"
TRAIN = [
    mimic_entry(10000001, 50000001, "aaa", f"Clear lungs {PRIVATE}.", f"Normal {PRIVATE}."),
    mimic_entry(10000001, 50000001, "lateral", f"Clear {PRIVATE}.", None, view="LATERAL"),
    mimic_entry(10000002, 50000002, "poor", f"Blurred {PRIVATE}.", None),
    mimic_entry(10000003, 50000003, "number", 17, None),
    mimic_entry(10000004, 50000004, "twice", f"By rule {PRIVATE}.", None, generate_method="rule-based"),
    mimic_entry(10000004, 50000004, "twice", f"By model {PRIVATE}.", f"Edema {PRIVATE}."),
    mimic_entry(10000005, 50000005, "oblique", f"Rotated {PRIVATE}.", None),
]
ENTRIES = {
    "train": TRAIN,
    "dev": [mimic_entry(11000001, 51000001, "val", f"Effusion {PRIVATE}.", None, view="AP")],
    "test": [
        mimic_entry(12000001, 52000001, "test1", f"Edema {PRIVATE}.", f"Failure {PRIVATE}."),
        mimic_entry(12000001, 52000001, "test2", None, f"Failure {PRIVATE}."),
    ],
}
QUESTIONS = [
    [50000001, 10000001, "abnormality", "what abnormalities are seen?", "mass"],
    [51000001, 11000001, "abnormality", "what abnormalities are seen?", "atelectasis"],
    [52000001, 12000001, "abnormality", "what abnormalities are seen?", "edema, pleural effusion"],
    [52000001, 12000001, "presence", "is there edema?", "Yes"],
    [52000001, 12000001, "view", "which view is this?", "PA view"],
    [51000001, 11000001, "location", "where is the effusion?", "left side"],
    [52000001, 12000001, "location", "where is the edema?", "right lung area and left lung area"],
]


@pytest.fixture
def source(tmp_path):
    return mimic_tree(tmp_path / "in", ENTRIES, {"poor": 0.6999}, {"oblique": "LL", "lateral": "LATERAL"}, QUESTIONS)


def test_filters_sections_and_groups(source, tmp_path):
    manifest = build(mimic_cxr(source), tmp_path / "out")
    assert manifest["counts"]["reports"] == {"train": 2, "val": 1, "test": 2}
    first, second = rows(tmp_path / "out", "reports", "train")
    assert first == {
        "id": "aaa",
        "image": {"bytes": None, "path": str(source / "files/p10/p10000001/s50000001/aaa.jpg")},
        "report": f"Clear lungs {PRIVATE}. Normal {PRIVATE}.",
        "attributes": [
            {"name": "findings", "value": f"Clear lungs {PRIVATE}."},
            {"name": "impression", "value": f"Normal {PRIVATE}."},
        ],
        "group": "10000001",
    }
    assert second["report"] == f"By model {PRIVATE}. Edema {PRIVATE}."
    assert rows(tmp_path / "out", "reports", "test")[1]["attributes"] == [
        {"name": "impression", "value": f"Failure {PRIVATE}."}
    ]
    assert manifest["left_out"] == {
        "not a frontal view": 2,
        "not in the metadata, or its lung mask is too uncertain": 1,
        "neither findings nor impression": 1,
        "annotated by another method, or better by another": 1,
    }


def test_questions_become_multiple_choice(source, tmp_path):
    build(mimic_cxr(source), tmp_path / "out")
    asked = [row for row in rows(tmp_path / "out", "questions", "test") if row["image_id"] == "test1"]
    found = [(row["attribute"], row["options"][row["answer"]], sorted(row["options"])) for row in asked]
    assert found == [
        ("abnormality", "edema", ["atelectasis", "edema"]),  # the other disease is right too, so it is no option
        ("abnormality", "pleural effusion", ["atelectasis", "pleural effusion"]),
        ("presence", "yes", ["no", "yes"]),
        ("location", "right lung area and left lung area", ["left side", "right lung area and left lung area"]),
    ]
    assert asked[0]["question"] == "what abnormalities are seen?"
    assert {row["image_id"] for row in rows(tmp_path / "out", "questions", "test")} == {"test1", "test2"}
    assert [row["attribute"] for row in rows(tmp_path / "out", "questions", "val")] == ["abnormality", "location"]


def test_answers_become_choices():
    (no,) = choice_questions("presence", "is it?", "No")
    assert (no.answer, no.options) == ("no", ("yes", "no"))
    both = choice_questions("abnormality", "what?", "edema, mass, edema")
    assert [choice.answer for choice in both] == ["edema", "mass"]
    assert both[0].also_right == {"edema", "mass"}
    (where,) = choice_questions("location", "where?", "left lung area and right lung area")
    assert where.also_right == {"left lung area", "right lung area"}


def test_no_report_text_outside_the_parquet_files(source, tmp_path, capfd):
    broken = json.loads((source / "chat_train_MIMIC_CXR_all_gpt4extract_rulebased_v1.json").read_text())
    broken += [
        f"just {PRIVATE}",
        {**TRAIN[0], "id": None},
        {**TRAIN[0], "conversations": PRIVATE},
        {"impression": PRIVATE},
    ]
    broken += [mimic_entry(10000009, 50000009, "../../../../../../climb", f"{PRIVATE}", None)]
    broken += [{**TRAIN[0], "image": "mimic/p10/gone.jpg"}]
    (source / "chat_train_MIMIC_CXR_all_gpt4extract_rulebased_v1.json").write_text(json.dumps(broken))
    with pytest.raises(DataError) as error:
        build(mimic_cxr(source), tmp_path / "out")
    assert "4 bad row(s)" in str(error.value)
    assert "item 7: id, image, generate_method or conversations is missing" in str(error.value)
    build(mimic_cxr(source, on_bad_row="skip"), tmp_path / "out")
    printed = capfd.readouterr()
    others = [
        path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file() and path.suffix != ".parquet"
    ]
    assert len(others) >= 2
    for text in (str(error.value), printed.out, printed.err, *(other.decode() for other in others)):
        assert PRIVATE not in text


def test_split_of_the_official_table_is_required(source, tmp_path):
    val = json.loads((source / "chat_dev_MIMIC_CXR_all_gpt4extract_rulebased_v1.json").read_text())
    path = source / "chat_test_MIMIC_CXR_all_gpt4extract_rulebased_v1.json"
    path.write_text(json.dumps(json.loads(path.read_text()) + val))
    (source / "chat_dev_MIMIC_CXR_all_gpt4extract_rulebased_v1.json").write_text("[]")
    with pytest.raises(DataError, match=r"1 x image of another split"):
        build(mimic_cxr(source), tmp_path / "out")


def test_optional_tables_and_other_names(source, tmp_path):
    (source / "MIMIC-CXR-JPG.csv").unlink()
    (source / "medical-cxr-vqa-questions.csv").rename(source / "medical_cxr_vqa_questions.csv")
    manifest = build(mimic_cxr(source, masks=None), tmp_path / "out")
    assert manifest["counts"]["reports"] == {"train": 3, "val": 1, "test": 2}
    assert manifest["counts"]["questions"] == {"train": 0, "val": 2, "test": 8}
    with pytest.raises(DataError, match="split 'val' is empty"):
        build(mimic_cxr(source, masks=None, methods=["rule-based"]), tmp_path / "rules")
    with pytest.raises(DataError, match=r"lacks MIMIC-CXR-JPG.csv"):
        mimic_cxr(source)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("MIMIC-CXR-JPG.csv", lambda text: text.replace("(Mean)", "(mean)"), "no column 'Dice RCA (Mean)'"),
        ("MIMIC-CXR-JPG.csv", lambda text: text.replace("0.6999", "high"), "of an image is no number"),
        (
            "medical-cxr-vqa-questions.csv",
            lambda text: text.replace("question_type", "type"),
            "no column 'question_type'",
        ),
        (
            "medical-cxr-vqa-questions.csv",
            lambda text: text.replace("location", "place"),
            "question_type is not one of",
        ),
        ("chat_dev_MIMIC_CXR_all_gpt4extract_rulebased_v1.json", lambda text: text[:-20], "cut short at item 0"),
        ("chat_dev_MIMIC_CXR_all_gpt4extract_rulebased_v1.json", lambda _: "{}", "does not hold a JSON list"),
    ],
)
def test_damaged_tables(source, tmp_path, name, change, message):
    edit(source / name, change)
    with pytest.raises(DataError) as error:
        build(mimic_cxr(source), tmp_path / "out")
    assert message in str(error.value)


def test_damaged_gzip(source, tmp_path):
    path = source / "mimic-cxr-2.0.0-metadata.csv.gz"
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(DataError, match=r"mimic-cxr-2.0.0-metadata.csv.gz is not a readable CSV file"):
        build(mimic_cxr(source), tmp_path / "out")


@pytest.mark.parametrize("chunk", [1, 7, 1000])
@pytest.mark.parametrize("indent", [None, 2])
def test_json_lists_are_streamed(tmp_path, monkeypatch, chunk, indent):
    monkeypatch.setattr("ift_components.data.json_stream.CHUNK", chunk)
    items = [{"text": 'a ] , [ \\ " é', "n": [1, None, -2.5]}, "s,]", 12345, [], {}] * 20
    path = tmp_path / "items.json"
    path.write_text(json.dumps(items, indent=indent))
    assert list(stream_json_list(path)) == items
    path.write_text("[]")
    assert list(stream_json_list(path)) == []
