"""Rates against counts made by hand."""

from collections import Counter

import numpy as np
import pytest
from statsmodels.stats.inter_rater import cohens_kappa
from statsmodels.stats.proportion import proportion_confint

from ift_components.evaluation.metrics import consistency, image_control, summarise
from ift_components.evaluation.records import Item, Prediction
from ift_components.evaluation.results import table


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
    readings = {
        "authors": predicted,
        "paper": predicted,
        "strict": predicted,
        "predicted": predicted,
        "correct": predicted == answer,
    }
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
    assert found["interval"] == pytest.approx(proportion_confint(1.5, 3, method="wilson"), abs=1e-6)  # three images
    assert size["interval"] == pytest.approx(proportion_confint(1, 2, method="wilson"), abs=1e-6)
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


def test_constant_answers_do_not_hide():
    """Eight of ten are big, and big is always answered: accuracy 0.8, and nothing was read from any image."""
    rows = [row(2 * n, "size", SIZE, 0 if n < 8 else 1, 0) for n in range(10)]
    rows += [row(100 + 2 * n, "colour", COLOUR, n % 3, n % 3 if n < 6 else None) for n in range(9)]
    found = summarise(rows, draws=400)
    size, colour = found["attributes"]["size"], found["attributes"]["colour"]
    assert (size["accuracy"], size["balanced_accuracy"], size["kappa"]) == (0.8, 0.5, 0)
    assert size["most_frequent_answer"] == {"text": "big", "share": 1, "letter_share": 1, "constant": True}
    assert size["two_valued"] == {"positive": "small", "sensitivity": 0, "specificity": 1}
    assert found["constant"] == ["size"]
    assert colour["balanced_accuracy"] == pytest.approx(2 / 3, abs=1e-6)
    assert "two_valued" not in colour
    assert found["balanced_accuracy"] == pytest.approx((0.5 + 2 / 3) / 2, abs=1e-6)
    low, high = found["balanced_interval"]
    assert low < found["balanced_accuracy"] < high
    table = np.zeros((4, 4))
    for n in range(9):
        table[n % 3, n % 3 if n < 6 else 3] += 1
    assert colour["kappa"] == pytest.approx(cohens_kappa(table).kappa, abs=1e-6)


def test_a_constant_letter_is_constant_too():
    rows = [row(2 * n, "feature", [f"t{n}", f"u{n}"][:: 1 if n % 2 else -1], n % 2, 0) for n in range(8)]
    assert summarise(rows, draws=20)["constant"] == ["feature"]
    same = [row(2 * n, "size", SIZE, 0, 0) for n in range(8)]  # all are big: nothing to be constant about
    assert summarise(same, draws=20)["constant"] == []


def test_the_positive_answer_of_a_diagnosis():
    rows = [row(2 * n, "pathology", ["benign", "malignant"], int(n < 7), int(n < 5)) for n in range(10)]
    sides = summarise(rows, draws=20)["attributes"]["pathology"]["two_valued"]
    assert sides == {"positive": "malignant", "sensitivity": pytest.approx(5 / 7, abs=1e-6), "specificity": 1}


def test_priors_with_and_without_a_look_at_the_options():
    """Where options are sampled, the most frequent training answer is often not shown; the best of those shown is."""
    priors = {"feature": Counter({"w": 9, "x": 5, "y": 3, "z": 1})}
    shown = [(["w", "x"], 0), (["x", "z"], 0), (["y", "z"], 0), (["z", "new"], 1), (["new", "newer"], 0)]
    rows = [row(2 * n, "feature", options, answer, 0) for n, (options, answer) in enumerate(shown)]
    found = summarise(rows, priors=priors, draws=20)
    assert found["prior"] == pytest.approx(1 / 5)
    assert found["prior_shown"] == pytest.approx((1 + 1 + 1 + 0 + 0.5) / 5)
    assert summarise(rows, draws=20)["prior"] is None


def test_image_control_by_hand():
    rows = [row(2 * n, "size", SIZE, n % 2, n % 2) for n in range(40)]
    controls = [row(2 * n, "size", SIZE, n % 2, 0) for n in range(40)]
    found = image_control(rows, controls, draws=500, seed=0)
    assert (found["accuracy"], found["balanced_accuracy"], found["difference"]) == (0.5, 0.5, 0.5)
    assert found["difference_interval"][0] < 0.5 < found["difference_interval"][1]
    assert found["attributes"] == {"size": 0.5}
    assert image_control(rows, [], draws=5, seed=0) is None


def test_reports_of_some_images_only():
    """Under a limit no image of an attribute need have a report: its place in the table is empty."""
    rows = [row(0, "size", SIZE, 0, 0, read_out_correct=True), row(1, "size", SIZE, 1, 0, read_out_correct=False)]
    found = summarise([*rows, row(2, "colour", COLOUR, 0, 0)], draws=50)
    assert found["read_out_accuracy"] == found["attributes"]["size"]["read_out_accuracy"] == 0.5
    assert "read_out_accuracy" not in found["attributes"]["colour"]
    head, colour, size, _ = (line.split() for line in table(found).splitlines()[:4])
    assert head[-1] == "read_out_accuracy"
    assert size[-1] == "0.500"
    assert len(colour) == len(size) - 1
