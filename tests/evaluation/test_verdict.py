"""Where a model stands, in words, against figures set by hand."""

import json

import pytest

from ift_components.config import load_config
from ift_components.evaluation.run import tuning_steps
from ift_components.evaluation.settings import EvalSettings
from ift_components.evaluation.verdict import standing


@pytest.mark.parametrize(
    ("interval", "prior", "steps", "parts", "silent"),
    [
        ([0.70, 0.80], 0.60, 1000, ["better than not looking", "60.0 %", "tuned for 1000 steps"], "preview.html"),
        ([0.50, 0.70], 0.60, 80, ["not distinguishable", "80 steps", "Train longer"], "preview.html"),
        ([0.40, 0.50], 0.60, 5000, ["worse than not looking", "preview.html", "balance rare values"], "Train longer"),
        ([0.40, 0.50], 0.60, None, ["worse than not looking", "preview.html"], "steps"),
    ],
)
def test_the_sentence(interval, prior, steps, parts, silent):
    results = {
        "accuracy": sum(interval) / 2,
        "interval": interval,
        "prior_shown": prior,
        "majority": 0.9,
        "chance": 0.5,
    }
    sentence = standing(results, steps)
    assert all(part in sentence for part in parts)
    assert silent not in sentence


def test_without_training_questions_the_most_frequent_answer_counts():
    results = {"accuracy": 0.75, "interval": [0.7, 0.8], "prior_shown": None, "majority": 0.9, "chance": 0.5}
    assert "most frequent answer of these questions reaches 90.0 %" in standing(results)


def test_the_steps_are_those_of_the_run_beside_the_checkpoint(tmp_path):
    (tmp_path / "checkpoint").mkdir()
    cfg = load_config("tiny_eval.yaml", ["data=x", f"checkpoint_dir={tmp_path / 'checkpoint'}"], EvalSettings)
    assert tuning_steps(cfg) is None
    (tmp_path / "run.json").write_text(json.dumps({"steps": 186}))
    assert tuning_steps(cfg) == 186
