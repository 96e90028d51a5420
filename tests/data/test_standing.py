"""The sentence after tuning, against figures worked out by hand."""

import pytest
from trees import build, save_csv, save_picture

from ift_components.data.builders import image_table
from ift_components.data.standing import Priors, priors, standing


def test_priors_of_a_split(tmp_path):
    kinds = ["a", "a", "a", "b", "a", "a", "a", "c", "b", "a"]
    table = [[save_picture(tmp_path / "in" / f"{n}.png", n).name, kind, "test"] for n, kind in enumerate(kinds)]
    table += [[save_picture(tmp_path / "in" / "t.png", 99).name, "a", "train"]]
    save_csv(tmp_path / "in" / "t.csv", ["image", "kind", "set"], table)
    for circular in (False, True):
        out = tmp_path / f"out{circular}"
        build(image_table(tmp_path / "in", "t.csv", split_column="set"), out, circular=circular)
        assert priors(out, "test") == Priors(10, pytest.approx(1 / 3), 0.7)


def test_the_sentence():
    split = Priors(200, 0.25, 0.6)
    assert standing(0.75, split, 1000) == (
        "accuracy 75.0% after 1000 steps on 200 questions; always the most frequent answer would have 60.0%, chance 25.0%."
    )
    assert "not above guessing: train longer" in standing(0.6, split, 80)
    assert "look at preview.html" in standing(0.5, split, 5000)
