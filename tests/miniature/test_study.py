"""The study's table, what each method changes, and the questions asked."""

import json

import pytest

from ift_components.config import load_config
from ift_components.miniature.demo import comparison
from ift_components.miniature.questions import OPEN, UNRELATED, write_questions
from ift_components.miniature.scores import CONTROL, correct
from ift_components.miniature.study import INSTRUCTION, METHODS, table
from ift_components.proxy import UpdateRule
from ift_components.smears.dataset import prepared_smears
from ift_components.training.checks import check_settings
from ift_components.training.settings import TrainSettings

ROW = {
    "accuracy": 0.5,
    "balanced_accuracy": 0.45,
    CONTROL: 0.35,
    "well_formed": 1.0,
    "forced_accuracy": 0.5,
    "chance": 0.3,
    "majority": 0.4,
    OPEN: 0.2,
    UNRELATED: 0.9,
}


def test_methods_are_configs_of_their_rule(tmp_path):
    rules = {}
    for name, method in METHODS.items():
        given = [*method.overrides(tmp_path / "proxy.safetensors"), f"data={tmp_path}", f"output_dir={tmp_path}"]
        cfg = load_config("tiny_ift.yaml", given, TrainSettings)
        rules[name] = check_settings(cfg).rule
        assert (cfg.dataset["shuffling"] is not None) == method.shuffled == ("shuffling" in name)
        assert cfg.instruction == (INSTRUCTION if method.rule is None else None)
    assert set(rules.values()) == {*UpdateRule, None}


def test_table_gives_mean_and_standard_deviation():
    text = table({"without": [ROW], "FT": [ROW, {**ROW, "accuracy": 0.7}]})
    assert "| without | 1 | 0.500 | 0.450 | 0.350 | 1.000" in text
    assert "| FT | 2 | 0.600 ± 0.141 | 0.450 ± 0.000 | 0.350 ± 0.000 | 1.000 ± 0.000" in text
    assert text.splitlines()[0].startswith("| | seeds | accuracy | balanced_accuracy | another image |")
    assert "majority" not in text.splitlines()[0]
    assert text.splitlines()[-1].startswith("Without looking at an image: chance ")


def test_comparison_is_one_row_a_model():
    lines = comparison({"a": ROW, "longer name": ROW}).splitlines()
    assert [line.split()[-7:] for line in lines[1:]] == [
        ["0.500", "0.450", "0.350", "1.000", "0.500", "0.200", "0.900"]
    ] * 2
    assert len({len(line) for line in lines}) == 1


def test_open_and_closed_answers_count_alike():
    sets = {UNRELATED: {"open_questions": 30, "open_accuracy": 1.0, "closed_questions": 10, "closed_accuracy": 0.2}}
    assert correct({"free": {"sets": sets}}, UNRELATED) == pytest.approx(0.8)


def test_questions_are_about_the_test_images(tmp_path):
    path = write_questions(tmp_path / "q", prepared_smears("smear"), count=20)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["set"] for row in rows] == [OPEN] * 20 + [UNRELATED] * 20
    assert all((path.parent / row["image"]).is_file() for row in rows)
    assert {row["answer_type"] for row in rows[:20]} == {"OPEN"}
    assert {row["answer"] for row in rows if row["answer_type"] == "CLOSED"} <= {"Yes.", "No.", "True.", "False."}
    assert write_questions(tmp_path / "again", prepared_smears("smear"), count=20).read_bytes() == path.read_bytes()
