"""Open questions about cells and tasks about shapes, and their score."""

import json

import pytest

from ift_components.miniature.questions import OPEN, UNRELATED, write_questions
from ift_components.miniature.scores import correct
from ift_components.smears.dataset import prepared_smears


def test_open_and_closed_answers_count_alike():
    sets = {UNRELATED: {"open_questions": 30, "open_accuracy": 1.0, "closed_questions": 10, "closed_accuracy": 0.2}}
    assert correct({"free": {"sets": sets}}, UNRELATED) == pytest.approx(0.8)


def test_questions_are_about_a_splits_images(tmp_path):
    path = write_questions(tmp_path / "q", prepared_smears("smear"), count=20)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["set"] for row in rows] == [OPEN] * 20 + [UNRELATED] * 20
    assert all((path.parent / row["image"]).is_file() for row in rows)
    assert {row["answer_type"] for row in rows[:20]} == {"OPEN"}
    assert {row["answer"] for row in rows if row["answer_type"] == "CLOSED"} <= {"Yes.", "No.", "True.", "False."}
    assert write_questions(tmp_path / "again", prepared_smears("smear"), count=20).read_bytes() == path.read_bytes()
    other = write_questions(tmp_path / "train", prepared_smears("smear"), count=20, split="train")
    assert (other.parent / "cell-00000.png").read_bytes() != (path.parent / "cell-00000.png").read_bytes()
