"""Questions about drawn cells: right answers, both kinds, the same ones again."""

from collections import Counter

import pytest

from ift_components.data.problems import Problems
from ift_components.errors import ConfigError
from ift_components.miniature.visual_questions import smear_questions
from ift_components.smears.dataset import smears


def records(source):
    return {record.id: record for record in source.records(Problems())}


def test_answers_are_those_of_the_cells(tmp_path):
    sizes = {"train": 200, "val": 10, "test": 200, "seed": 3, "root": str(tmp_path)}
    asked, drawn = records(smear_questions(questions=3, **sizes)), records(smears(**sizes))
    assert list(asked) == list(drawn)
    answers = Counter()
    for name, record in asked.items():
        values = drawn[name].values
        assert len(record.questions) == (3 if record.split == "train" else 1)
        assert len({question.attribute for question in record.questions}) == len(record.questions)
        assert record.report == ""
        for question in record.questions:
            value = values[question.attribute]
            if question.kind == "open":
                assert question.answer == value
                assert f"{value}?" not in question.text
            else:
                # "Is the cell size big?" and "Is it right that the cell size is big?"
                stated = question.text.removesuffix("?").split(f"the {question.attribute} ")[1].removeprefix("is ")
                assert question.answer == ("yes" if stated == value else "no"), question
            answers[record.split, question.kind, question.answer if question.kind == "closed" else ""] += 1
    for split, number in (("train", 300), ("test", 100)):
        assert answers[split, "open", ""] == number
        assert answers[split, "closed", "yes"] == pytest.approx(number / 2, abs=3 * (number / 4) ** 0.5)
    assert {attribute for r in asked.values() for attribute in (q.attribute for q in r.questions)} == set(
        smear_questions(**sizes).question_names
    )


def test_they_are_the_same_again_and_others_with_another_seed(tmp_path):
    def texts(seed, **sizes):
        source = smear_questions(**{"train": 8, "val": 4, "test": 4, **sizes}, seed=seed, root=str(tmp_path))
        return {name: [q.text for q in record.questions] for name, record in records(source).items()}

    first = texts(0)
    assert texts(0) == first
    assert texts(1) != first
    assert {name: asked for name, asked in texts(0, train=16).items() if name.startswith("test")} == {
        name: asked for name, asked in first.items() if name.startswith("test")
    }


def test_a_number_of_questions_that_cannot_be_is_named():
    with pytest.raises(ConfigError, match=r"builder.questions: 0 is not a number from 1 to \d+"):
        smear_questions(questions=0)
