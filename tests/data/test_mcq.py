"""Multiple-choice questions: the authors' protocol, and every option of our own."""

import random
from collections import Counter
from pathlib import Path

import pytest

from ift_components.data.mcq import QuestionMaker, QuestionOptions
from ift_components.data.schema import Attribute, Schema
from ift_components.data.source import Problems, Question, Record
from ift_components.errors import ConfigError, DataError

SHAPES = ("irregular", "lobulated", "oval", "round", "segmented", "unsegmented")
SCHEMA = Schema((Attribute("size", values=("big", "small")), Attribute("shape", values=SHAPES)))
SAMPLED = Schema((Attribute("shape", values=SHAPES, sampled=5),))


def record(number: int, split: str = "val", **given: object) -> Record:
    values = given.pop("values", {"size": "big", "shape": "unsegmented"})
    return Record(
        id=f"id{number}", split=split, image=Path("x.png"), where=f"table row {number}", values=values, **given
    )


def make(schema, records, pools=None, **options):
    maker = QuestionMaker(schema, QuestionOptions(**options), pools or {})
    problems = Problems()
    made = [row for one in records for row in maker.make(one, problems)]
    assert problems.count == 0
    return made


def test_full_lists_keep_the_schema_order_and_the_answer_is_an_index():
    size, shape = make(SCHEMA, [record(1)])
    assert size["question"] == "What is the size?"
    assert (size["options"], size["answer"]) == (["big", "small"], 0)
    assert (shape["options"], shape["answer"]) == (list(SHAPES), 5)
    assert [row["id"] for row in (size, shape)] == ["id1#0", "id1#1"]
    assert size["circular_group"] is None


def test_sampled_options_follow_the_authors_stream_from_the_start_of_each_split():
    records = [record(n, split) for split in ("val", "test") for n in range(4)]
    made = make(SAMPLED, records, seed=1)
    expected = []
    for _ in ("val", "test"):
        random.seed(1)  # the authors seed the process, and evaluate one split a run
        for _ in range(4):
            others = [text for text in SHAPES if text != "unsegmented"]
            options = ["unsegmented", *random.sample(others, k=4)]
            random.shuffle(options)
            expected.append(options)
    assert [row["options"] for row in made] == expected
    assert expected[:4] == expected[4:]
    assert all(row["options"][row["answer"]] == "unsegmented" for row in made)


def test_one_attribute_an_image_is_drawn_in_one_stream_over_val_and_test():
    schema = Schema(SCHEMA.attributes, one_per_image=True)
    drawn = [row["attribute"] for row in make(schema, [record(n, s) for s in ("val", "test") for n in range(5)])]
    random.seed(0)
    expected = []
    for _ in range(10):
        names = ["size", "shape"]
        random.shuffle(names)
        expected.append(names[0])
    assert drawn == expected
    assert set(drawn) == {"size", "shape"}
    full = make(schema, [record(1)], protocol="full")
    assert [row["attribute"] for row in full] == ["size", "shape"]


def test_n_options_keeps_the_answer_and_the_order():
    for number in range(30):
        rows = make(SCHEMA, [record(number)], n_options=3)
        assert len(rows[0]["options"]) == 2
        options = rows[1]["options"]
        assert len(options) == 3
        assert options == sorted(options, key=SHAPES.index)
        assert options[rows[1]["answer"]] == "unsegmented"


def test_shuffled_options_put_the_answer_everywhere_and_depend_on_seed_and_record_alone():
    records = [record(n) for n in range(300)]
    rows = make(SCHEMA, records, shuffle_options=True)
    places = Counter(row["answer"] for row in rows if row["attribute"] == "shape")
    assert set(places) == set(range(6))
    assert min(places.values()) > 25
    assert make(SCHEMA, records[::-1], shuffle_options=True)[::-1][1::2] == rows[::2]
    assert make(SCHEMA, records, shuffle_options=True, seed=2) != rows


def test_circular_variants_hold_every_rotation_once():
    rows = make(SCHEMA, [record(1)], circular=True)
    shape = [row for row in rows if row["attribute"] == "shape"]
    assert [row["rotation"] for row in shape] == list(range(6))
    assert [row["circular_group"] for row in rows] == ["id1#0"] * 2 + ["id1#2"] * 6
    assert len({row["id"] for row in rows}) == 8
    assert sorted(row["answer"] for row in shape) == list(range(6))
    for row in shape:
        turn = row["rotation"]
        assert row["options"] == list(SHAPES[turn:] + SHAPES[:turn])
        assert row["options"][row["answer"]] == "unsegmented"


def test_drawn_options_never_hold_a_second_right_answer():
    pool = {"abnormality": {"edema", "Edema", "effusion", "nodule", "mass", "fracture", "opacity"}}
    for number in range(50):
        choice = Question("abnormality", "What is it?", "edema", also_right=frozenset({"effusion", "nodule"}))
        (row,) = make(Schema(()), [record(number, values={}, questions=(choice,))], pool)
        assert sorted(row["options"]) == ["edema", "fracture", "mass", "opacity"]


def test_nested_texts_stay_apart():
    (row,) = make(
        Schema((Attribute("n", values=("segmented", "unsegmented")),)), [record(1, values={"n": "segmented"})]
    )
    assert (row["options"], row["answer"]) == (["segmented", "unsegmented"], 0)


def test_answers_outside_the_published_choices_are_not_asked():
    schema = Schema((Attribute("margin", lower=True, choices=("obscured", "spiculated")),))
    asked = make(
        schema, [record(1, values={"margin": "OBSCURED"}), record(2, values={"margin": "OBSCURED-SPICULATED"})]
    )
    assert [row["image_id"] for row in asked] == ["id1"]


def test_questions_that_cannot_be_asked_are_refused():
    many = Schema((Attribute("x", values=tuple(map(str, range(27)))),))
    with pytest.raises(DataError, match=r"attribute 'x' has 27 options, more than there are letters \(26\)"):
        QuestionMaker(many, QuestionOptions(), {}).check_attribute(many.attributes[0])
    QuestionMaker(many, QuestionOptions(n_options=26), {}).check_attribute(many.attributes[0])
    single = Schema((Attribute("x"),))
    with pytest.raises(DataError, match="has no wrong option"):
        QuestionMaker(single, QuestionOptions(), {"x": ["only"]}).check_attribute(single.attributes[0])
    alike = Schema((Attribute("x", values=("Yes", "yes")),))
    with pytest.raises(DataError, match="two options that read the same"):
        QuestionMaker(alike, QuestionOptions(), {}).check_attribute(alike.attributes[0])


@pytest.mark.parametrize("wrong", [{"protocol": "papr"}, {"n_options": 1}, {"n_options": 27}])
def test_wrong_question_options_are_config_errors(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        QuestionMaker(SCHEMA, QuestionOptions(**wrong), {})


def test_questions_without_a_wrong_option_are_collected_and_the_others_kept():
    problems = Problems()
    right = frozenset({"edema", "mass"})
    questions = (
        Question("abnormality", "What?", "edema", also_right=right),
        Question("presence", "Is it?", "no", options=("yes", "no")),
    )
    maker = QuestionMaker(Schema(()), QuestionOptions(), {"abnormality": {"edema", "mass"}})
    rows = maker.make(record(1, values={}, questions=questions), problems)
    assert [row["attribute"] for row in rows] == ["presence"]
    assert problems.first == ["table row 1: question 'abnormality' has no wrong option"]
