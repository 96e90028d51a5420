"""The card's table: one row a label, means over its seeds, and no row of what cannot be compared."""

import statistics

import pytest

from ift_components.errors import DataError
from ift_components.evaluation.pairs import Run
from ift_components.evaluation.records import Item, Prediction
from ift_components.miniature.table import attribute_table, card_table


def run(name, label, right, *, gap=0.25, split="test", questions=8, told=True):
    predictions = []
    for number in range(questions):
        item = Item(str(number), "choice", "cells", f"image-{number}", "?", options=("a", "b"), answer=0, attribute="x")
        is_right = number < right
        predictions.append(Prediction(item, forced=0).scored({"correct": is_right, "predicted": 0 if is_right else 1}))
    following = {"instruction_dependence": {"read_out_accuracy": right / questions + gap, "gap": gap}}
    attribute = {"accuracy": right / questions, "balanced_accuracy": right / questions, "prior_shown": 0.5}
    if told:
        attribute["read_out_accuracy"] = right / questions + gap
    results = {
        "attributes": {"x": attribute},
        "label": label, "dataset": "cells", "split": split, "config": {}, "constant": ["x"], "well_formed": 1.0,
        "balanced_accuracy": right / questions, "instruction_following": following, "prior_shown": 0.5,
        "free": {"sets": {"unrelated tasks": {"open_questions": 1, "open_accuracy": 1.0, "closed_questions": 3,
                                              "closed_accuracy": 0.6}}},
    }  # fmt: skip
    return Run(name, results, predictions)


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_row_holds_the_mean_of_its_seeds():
    lines = card_table([run("a0", "A", 4), run("a1", "A", 6, gap=0.05), run("b0", "B", 2)]).splitlines()
    head, rows = cells(lines[0]), {cells(line)[0]: cells(line) for line in lines[2:]}
    assert rows["most frequent training answer"][2] == "0.500"
    first = dict(zip(head, rows["A"], strict=True))
    assert first["seeds"] == "2"
    average, low, high = (float(word.strip("()")) for word in first["accuracy"].replace(" to ", " ").split())
    assert average == 0.625
    assert low < average < high
    assert first["gap"] == f"0.150 ± {statistics.stdev([0.25, 0.05]):.3f}"
    assert first["read-out"].startswith("0.775 ±")
    assert first["unrelated"].startswith("0.700 ±")
    assert dict(zip(head, rows["B"], strict=True))["balanced"] == "0.250"


@pytest.mark.parametrize(
    ("more", "message"), [({"split": "val"}, "one dataset"), ({"questions": 7}, "evaluate the same questions")]
)
def test_what_cannot_be_compared_is_refused(more, message):
    with pytest.raises(DataError, match=message):
        card_table([run("a", "A", 4), run("b", "B", 4, **more)])


def test_attributes_show_reports_beside_answers():
    runs = [run("a0", "A", 4), run("a1", "A", 6, gap=0.05), run("b0", "B", 2, told=False)]
    lines = attribute_table(runs).splitlines()
    row = dict(zip(cells(lines[0]), cells(lines[2]), strict=True))
    assert row == {
        "attribute": "x", "most frequent": "0.500", "A: reports": "0.775", "A: answers": "0.625", "A: balanced": "0.625",
        "B: reports": "", "B: answers": "0.250", "B: balanced": "0.250",
    }  # fmt: skip
