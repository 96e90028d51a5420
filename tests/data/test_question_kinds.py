"""Questions of every kind in every split, through checks, preview and exports; and folders of format 1."""

import json

import pandas as pd
import pyarrow.parquet as pq
import pytest
from trees import build, rows, save_csv, save_picture, wbcatt_tree

from ift_components.data.builders import image_text, wbcatt
from ift_components.data.exports import ExportOptions, export
from ift_components.data.prepared import QUESTION_FEATURES, load_questions
from ift_components.errors import DataError

HEADER = ["image", "question", "answer", "kind", "options", "attribute"]
ROWS = [
    ["0.png", "Where is it?", "left", "choice", "left|right", "place"],
    ["0.png", "What is seen?", "an old scar", "Open", "", "finding"],
    ["1.png", "Is it normal?", "no", "closed", "", "normality"],
    ["2.png", "Where is it?", "right", "", "left|right", "place"],
    ["2.png", "What is seen?", "nothing", "open", "", "finding"],
    ["2.png", "Is it normal?", "yes", "closed", "", "normality"],
]


@pytest.fixture
def mixed(tmp_path):
    root = tmp_path / "in"
    names = [save_picture(root / f"{n}.png", n).name for n in range(3)]
    sets = ("train", "val", "test")
    save_csv(root / "t.csv", ["image", "text", "set"], [[n, "Seen.", s] for n, s in zip(names, sets, strict=True)])
    save_csv(root / "q.csv", HEADER, ROWS)
    return root


def test_kinds_and_the_train_split(mixed, tmp_path):
    manifest = build(image_text(mixed, "t.csv", questions="q.csv", split_column="set"), tmp_path / "out")
    assert manifest["format"] == 2
    assert manifest["counts"]["questions"] == {"train": 2, "val": 1, "test": 3}
    choice, open_question = rows(tmp_path / "out", "questions", "train")
    assert list(choice) == list(QUESTION_FEATURES)
    assert (choice["kind"], choice["options"], choice["answer"]) == ("choice", ["left", "right"], 0)
    assert choice["answer_text"] == "left"
    assert (open_question["kind"], open_question["options"], open_question["answer"]) == ("open", None, None)
    assert open_question["answer_text"] == "an old scar"
    assert [row["kind"] for row in load_questions(tmp_path / "out", "test")] == ["choice", "open", "closed"]
    assert manifest["checks"]["questions"]["test"]["place"] == {"count": 1, "chance": 0.5, "majority": 1, "letter": 1}
    assert manifest["checks"]["questions"]["val"]["normality"] == {
        "count": 1, "chance": None, "majority": 1, "letter": None,
    }  # fmt: skip
    page = (tmp_path / "out" / "preview.html").read_text()
    assert 'What is seen?</b><br><span class="option right">an old scar</span>' in page


def test_only_choices_go_into_multiple_choice_formats(mixed, tmp_path):
    build(image_text(mixed, "t.csv", questions="q.csv", split_column="set"), tmp_path / "out")
    out = export(tmp_path / "out", ExportOptions("vlmevalkit"))
    assert sorted(path.name for path in out.iterdir()) == [
        ".export.json",
        "image_text_test.tsv",
        "image_text_train.tsv",
    ]
    assert list(pd.read_csv(out / "image_text_test.tsv", sep="\t")["answer"]) == ["B"]
    out = export(tmp_path / "out", ExportOptions("parquet"))
    assert [row["kind"] for row in rows(out, "questions", "test")] == ["choice", "open", "closed"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            ["0.png", "What?", "x", "essay", "", "a"],
            "question 'a' is of an unknown kind; expected choice or closed or open",
        ),
        (["0.png", "What?", "", "open", "", "a"], "question 'a' has no answer"),
    ],
)
def test_questions_of_no_kind_or_without_an_answer(mixed, tmp_path, row, message):
    save_csv(mixed / "q.csv", HEADER, [row])
    with pytest.raises(DataError, match=message):
        build(image_text(mixed, "t.csv", questions="q.csv", split_column="set"), tmp_path / "out")


def format_1(out):
    """Make a prepared folder what version 0.1 wrote: no train questions, no kind, no answer_text."""
    manifest = json.loads((out / "manifest.json").read_text())
    manifest["format"] = 1
    del manifest["counts"]["questions"]["train"], manifest["private"]
    (out / "manifest.json").write_text(json.dumps(manifest))
    (out / "questions" / "train.parquet").unlink()
    for split in ("val", "test"):
        path = out / "questions" / f"{split}.parquet"
        table = pq.read_table(path)
        pq.write_table(table.drop_columns(["kind", "answer_text"]), path)


def test_folders_of_format_1_are_read_as_choices(tmp_path):
    build(wbcatt(wbcatt_tree(tmp_path / "in")), tmp_path / "out", protocol="full")
    now = [dict(row) for row in load_questions(tmp_path / "out", "val")]
    format_1(tmp_path / "out")
    before = load_questions(tmp_path / "out", "val")
    assert before.column_names == list(QUESTION_FEATURES)
    assert len(before) == len(now)
    for old, new in zip(before, now, strict=True):
        assert old["image"].tobytes() == new["image"].tobytes()
        assert {k: v for k, v in old.items() if k != "image"} == {k: v for k, v in new.items() if k != "image"}
        assert old["answer_text"] == old["options"][old["answer"]]
    with pytest.raises(
        DataError, match=r"no questions in split 'train'; splits with questions: val \(22\), test \(10\)"
    ):
        load_questions(tmp_path / "out", "train")
    out = export(tmp_path / "out", ExportOptions("vlmevalkit"))
    assert len(pd.read_csv(out / "wbcatt_val.tsv", sep="\t")) == 22
