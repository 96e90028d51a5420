"""Rates against counts made by hand."""

import pytest

from ift_components.evaluation.metrics import consistency, summarise
from ift_components.evaluation.records import Item, Prediction


def row(number, attribute, options, answer, predicted, *, run=0, circular_group=None, **scores):
    item = Item(
        id=f"q{number}",
        task="choice",
        dataset="d",
        image_id=f"i{number // 2}",
        prompt="?",
        attribute=attribute,
        options=tuple(options),
        answer=answer,
        circular_group=circular_group,
    )
    readings = {"paper": predicted, "strict": predicted, "predicted": predicted, "correct": predicted == answer}
    return Prediction(item, run, "text", scores={**readings, **scores})


SIZE, COLOUR = ["big", "small"], ["pink", "purple", "red"]
ROWS = [
    row(0, "size", SIZE, 0, 0),
    row(1, "size", SIZE, 0, 1, strict=0),
    row(2, "size", SIZE, 1, None),
    row(3, "size", SIZE, 0, 0),
    row(4, "colour", COLOUR, 2, 2),
    row(5, "colour", COLOUR, 1, 2),
]


def test_rates_by_hand():
    found = summarise(ROWS, draws=200)
    assert found["questions"] == 6
    assert found["images"] == 3
    assert found["accuracy"] == 0.5
    assert found["macro_accuracy"] == pytest.approx((2 / 4 + 1 / 2) / 2)
    assert found["chance"] == pytest.approx((4 / 2 + 2 / 3) / 6, abs=1e-6)
    assert found["majority"] == pytest.approx((3 + 1) / 6, abs=1e-6)  # big three times of four; one colour of two
    assert (found["unparsed"], found["well_formed"]) == (1, pytest.approx(5 / 6, abs=1e-6))
    assert found["parsers"]["paper"] == {"accuracy": 0.5, "unparsed": 1}
    assert found["parsers"]["strict"] == {"accuracy": pytest.approx(4 / 6, abs=1e-6), "unparsed": 1}
    size = found["attributes"]["size"]
    assert (size["accuracy"], size["chance"], size["majority"]) == (0.5, 0.5, 0.75)
    assert size["confusion"] == {
        "labels": ["big", "small"],
        "columns": ["big", "small", "unparsed"],
        "counts": [[2, 1, 0], [0, 0, 1]],
    }
    assert found["interval"] == [0.5, 0.5]  # each image has one right and one wrong answer: images do not differ
    assert found["attributes"]["size"]["interval"][0] == found["attributes"]["size"]["interval"][1] == 0.5
    assert "runs" not in found
    assert "circular_accuracy" not in found


def test_circular_accuracy_needs_every_rotation():
    rows = [
        row(number, "size", SIZE, 0, choice, circular_group=group)
        for number, (group, choice) in enumerate([("a", 0), ("a", 0), ("b", 0), ("b", 1)])
    ]
    found = summarise(rows, draws=50)
    assert (found["accuracy"], found["circular_accuracy"]) == (0.75, 0.5)


def five(question, answer, *labels):
    return [row(question, "colour", COLOUR, answer, label, run=run) for run, label in enumerate(labels)]


def test_three_differing_labels_of_five_cost_a_point():
    rows = [
        *five(0, 0, 0, 0, 0, 0, 0),  # right, consistent: 1
        *five(1, 0, 0, 0, 0, 1, 1),  # right, two labels: 1
        *five(2, 0, 0, 0, 0, 1, 2),  # right by majority, three labels: 1 - 1
        *five(3, 0, 1, 1, 1, 1, 1),  # wrong: 0
        *five(4, 0, 0, 1, 2, None, 1),  # wrong, four labels: -1
        *five(5, 0, 0, 0, 1, 1, None),  # a tie is not right, and three labels: -1
    ]
    assert consistency(rows) == {
        "runs": 5,
        "differing_labels": 3,
        "score": pytest.approx((1 + 1 + 0 + 0 - 1 - 1) / 6),
        "accuracy": pytest.approx(3 / 6),
        "consistent_accuracy": pytest.approx(2 / 6),
        "inconsistent": pytest.approx(3 / 6),
    }
    found = summarise(rows, draws=50)
    assert found["questions"] == 6
    assert found["runs"]["accuracies"] == pytest.approx([5 / 6, 4 / 6, 3 / 6, 1 / 6, 1 / 6], abs=1e-6)
    assert found["runs"]["sd"] == pytest.approx(0.298142, abs=1e-6)
    assert found["runs"]["mean"] == pytest.approx(found["accuracy"])


def test_large_pools_have_no_confusion_matrix():
    options = [f"combination {i}" for i in range(13)]
    found = summarise([row(0, "feature", options, 0, 0)], draws=10)
    assert "confusion" not in found["attributes"]["feature"]
