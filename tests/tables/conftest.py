"""A plan of toy stages that take no time, written where a test wants it."""

import copy
import os
from pathlib import Path

import pytest
import yaml

from ift_components.evaluation import parsing

HERE = Path(__file__).resolve().parent
PLAN = {
    "title": "A toy's table",
    "output_dir": "out",
    "seeds": [0, 1],
    "datasets": {"toys": {"folder": "toys"}},
    "stages": {
        "warmup": {
            "recipe": "toy_train",
            "config": "toy_train.yaml",
            "overrides": {"data": "@dataset", "seed": "@seed", "lr": 0.1},
            "resume": "flag",
            "finished": "run.json",
        },
        "tune": {
            "recipe": "toy_train",
            "config": "toy_train.yaml",
            "overrides": {"data": "@dataset", "seed": "@seed", "start": "@warmup/weights.json"},
            "resume": "flag",
            "finished": "run.json",
            "minutes": 3,
        },
        "evaluate": {
            "recipe": "toy_eval",
            "config": "toy_eval.yaml",
            "overrides": {
                "data": "@dataset",
                "weights": "@tune/weights.json",
                "parser_version": parsing.VERSION,
            },
            "resume": "itself",
        },
    },
    "rows": {
        "untuned": {"without": ["warmup", "tune"]},
        "baseline": {"without": ["warmup"]},
        "method": {"paper": {"accuracy": 0.684}},
        "better method": {"like": "method", "tune": {"lr": 0.8}, "paper": {"toys": {"accuracy": 0.752}}},
        "prior": {"like": "untuned", "values": {"accuracy": "prior_shown"}},
    },
    "columns": {
        "accuracy": "accuracy",
        "balanced": "balanced_accuracy",
        "other image": "image_control.accuracy",
        "constant": {"key": "constant", "unit": "number"},
        "trained": {"key": "trained_share", "stage": "tune", "file": "run.json"},
    },
}


@pytest.fixture(autouse=True)
def _toys_everywhere(monkeypatch):
    """Have processes that are started find the toy recipes."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]))


@pytest.fixture
def write_plan(tmp_path, monkeypatch):
    """A function that changes the toy plan, writes it and returns its path; the test's folder is where one stands."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toys").mkdir()
    (tmp_path / "toys" / "manifest.json").write_text("{}\n")
    for name in ("toy_train", "toy_eval"):
        (tmp_path / f"{name}.yaml").write_text("output_dir: ???\ndata: ???\n")

    def write(change=None, name="plan.yaml"):
        plan = copy.deepcopy(PLAN)
        if change is not None:
            change(plan)
        path = tmp_path / name
        path.write_text(yaml.safe_dump(plan, sort_keys=False))
        return path

    return write
