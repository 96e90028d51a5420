"""Free-text datasets of one's own: text files or a table, sentences, questions from a table."""

import json
import os

import pytest
from trees import SHARED, build, rows, save_csv, save_picture

from ift_components.data.builders import image_text
from ift_components.data.sentences import split_sentences
from ift_components.errors import ConfigError, DataError
from ift_components.shuffling import shuffle_sections

TEXT = "The heart is normal. No effusion is seen!\n1. No acute disease."
REAL = SHARED / "iu_xray_text" / "annotation.json"


def text_files(root, count=10):
    for n in range(count):
        save_picture(root / f"a/{n}.png", n).with_suffix(".txt").write_text(f"Image {n}. {TEXT}")
    return root


def test_text_files_beside_images(tmp_path):
    manifest = build(image_text(text_files(tmp_path / "in")), tmp_path / "out")
    assert manifest["counts"] == {
        "reports": {"train": 8, "val": 1, "test": 1},
        "questions": {"train": 0, "val": 0, "test": 0},
    }
    (row,) = rows(tmp_path / "out", "reports", "val")
    number = row["id"].removeprefix("a/").removesuffix(".png")
    sentences = [f"Image {number}.", "The heart is normal.", "No effusion is seen!", "1. No acute disease."]
    assert row["report"] == " ".join(sentences)
    assert row["attributes"] == [{"name": "sentence", "value": text} for text in sentences]
    pairs = [(item["name"], item["value"]) for item in row["attributes"]]
    shuffled = shuffle_sections(["sentence"])(row["report"], pairs, (0, 0, 1))
    assert shuffled != row["report"]
    assert sorted(shuffled) == sorted(row["report"])


def test_free_text_takes_no_phrase(tmp_path):
    source = image_text(text_files(tmp_path / "in")).with_phrase("{value} {name}")
    with pytest.raises(ConfigError, match="report_phrase: reports of image_text are not made from attributes"):
        build(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_table_with_questions(tmp_path):
    root = tmp_path / "in"
    names = [save_picture(root / f"{n}.png", n).name for n in range(6)]
    parts = ["train"] * 4 + ["dev", "test"]
    save_csv(root / "t.csv", ["image", "text", "set"], [[n, TEXT, p] for n, p in zip(names, parts, strict=True)])
    asked = [
        ["4.png", "Where is it?", "left", "left|right|both", "place"],
        ["4.png", "What is it?", "edema", "", "disease"],
        ["5.png", "What is it?", "mass", "", "disease"],
    ]
    save_csv(root / "q.csv", ["image", "question", "answer", "options", "attribute"], asked)
    build(image_text(root, "t.csv", questions="q.csv", split_column="set"), tmp_path / "out")
    first, second = rows(tmp_path / "out", "questions", "val")
    assert (first["attribute"], first["question"], first["options"], first["answer"]) == (
        "place", "Where is it?", ["left", "right", "both"], 0,
    )  # fmt: skip
    assert (sorted(second["options"]), second["options"][second["answer"]]) == (["edema", "mass"], "edema")


@pytest.mark.parametrize(
    ("question", "message"),
    [
        (["5.png", "What?", "left", "right|both"], "q.csv row 2"),
        (["5.png", "What?", "left", "left"], "has no wrong option"),
        (["5.png", "What?", "left", "left|Left"], "two options that read the same"),
        (["5.png", "What?", "left", "left||right"], "has an empty option"),
        (
            ["5.png", "What?", "a", "|".join("abcdefghijklmnopqrstuvwxyz") + "|aa"],
            "27 options, more than there are letters",
        ),
        (["5.png", "", "left", "left|right"], "the question is empty"),
        (["9.png", "What?", "left", "left|right"], "asks about image '9.png', which has no description"),
    ],
)
def test_questions_that_cannot_be_asked(tmp_path, question, message):
    root = tmp_path / "in"
    names = [save_picture(root / f"{n}.png", n).name for n in range(6)]
    save_csv(root / "t.csv", ["image", "text", "set"], [[n, TEXT, ("train", "test")[n > "3"]] for n in names])
    save_csv(root / "q.csv", ["image", "question", "answer", "options"], [question])
    with pytest.raises(DataError) as error:
        build(image_text(root, "t.csv", questions="q.csv", split_column="set"), tmp_path / "out")
    assert message.replace("q.csv row 2", "does not offer its answer") in str(error.value)
    assert "1 bad row(s)" in str(error.value)


def test_bad_text_files_are_collected(tmp_path):
    root = text_files(tmp_path / "in")
    (root / "a" / "0.txt").unlink()
    (root / "a" / "1.txt").write_bytes(b"\xff\xfe\x00")
    (root / "a" / "2.txt").write_text("  \n")
    save_picture(root / "a" / "x.png", 99).rename(os.fsdecode(os.fsencode(root / "a") + b"/\xe9.png"))
    with pytest.raises(DataError) as error:
        build(image_text(root), tmp_path / "out")
    message = str(error.value)
    assert "4 bad row(s)" in message
    assert "image 'a/0.png': has no text file '0.txt' beside it" in message
    assert "image 'a/1.png': '1.txt' is not UTF-8" in message
    assert "image 'a/2.png': the report is empty" in message
    assert "image 'a/\\udce9.png': has a name that is not UTF-8; rename the file" in message


def test_wrong_arguments(tmp_path):
    with pytest.raises(ConfigError, match=r"need builder.table"):
        image_text(text_files(tmp_path / "in"), split_column="set")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no images"):
        image_text(tmp_path / "empty")
    with pytest.raises(DataError, match=r"lacks t.csv"):
        image_text(tmp_path / "in", "t.csv")


def test_changed_text_is_noticed(tmp_path):
    root = text_files(tmp_path / "in", 30)
    first = build(image_text(root), tmp_path / "out")
    assert list(first["tables"]) == ["30 files"]
    (root / "a" / "0.txt").write_text("Another text.")
    assert build(image_text(root), tmp_path / "again")["tables"] != first["tables"]


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("Measures 2.5 cm. No mass.", ["Measures 2.5 cm.", "No mass."]),
        ("1. Edema. 2. Effusion.", ["1. Edema.", "2. Effusion."]),
        ("No acute findings. .", ["No acute findings. ."]),
        ("Compared to Dr. Smith of 3.4.2020, no change.", ["Compared to Dr. Smith of 3.4.2020, no change."]),
        ("", []),
        ("...", ["..."]),
    ],
)
def test_sentences(text, sentences):
    assert split_sentences(text) == sentences


@pytest.mark.skipif(not REAL.is_file(), reason="../shared/data/iu_xray_text is not there")
def test_real_radiology_reports_lose_nothing():
    reports = [row["report"] for part in json.loads(REAL.read_text(encoding="utf-8")).values() for row in part]
    assert len(reports) == 3826
    for report in reports:
        sentences = split_sentences(report)
        assert "".join(" ".join(sentences).split()) == "".join(report.split())
        assert len(sentences) == 1 or all(any(c.isalpha() for c in text) for text in sentences)


def test_questions_whose_answers_offer_no_wrong_option(tmp_path):
    root = text_files(tmp_path / "in")
    save_csv(root / "q.csv", ["image", "question", "answer"], [[f"a/{n}.png", "What?", "left"] for n in range(10)])
    with pytest.raises(DataError, match=r"10 bad row(.|\n)*question 'question' has no wrong option"):
        build(image_text(root, questions="q.csv"), tmp_path / "out")
    manifest = build(image_text(root, questions="q.csv", on_bad_row="skip"), tmp_path / "out")
    assert manifest["counts"] == {
        "reports": {"train": 8, "val": 1, "test": 1},
        "questions": {"train": 0, "val": 0, "test": 0},
    }


def test_n_options_makes_room_for_questions_with_more_options_than_letters(tmp_path):
    root = text_files(tmp_path / "in")
    options = "|".join(f"kind {n}" for n in range(30))
    asked = [[f"a/{n}.png", "What?", "kind 7", options] for n in range(10)]
    save_csv(root / "q.csv", ["image", "question", "answer", "options"], asked)
    build(image_text(root, questions="q.csv"), tmp_path / "out", n_options=4)
    (row,) = rows(tmp_path / "out", "questions", "test")
    assert len(row["options"]) == 4
    assert row["options"][row["answer"]] == "kind 7"
