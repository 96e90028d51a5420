"""Questions asked while a run trains: they say what an evaluation says, and change nothing of the run."""

import json

import pytest
import torch

from ift_components.config import load_config
from ift_components.distributed import World
from ift_components.errors import ConfigError
from ift_components.evaluation.run import Evaluation
from ift_components.evaluation.settings import EvalSettings
from ift_components.models.hf_layout import read_weights
from ift_components.models.tiny import TINY_CHECKPOINT, TINY_PROXY
from ift_components.training.checks import check_settings
from ift_components.training.run import TrainingRun
from ift_components.training.watch import Best

COMPONENT = "ift_components.evaluation.watching.ValidationQuestions"
ASKED = ["val_questions_every_steps=2", f"val_questions={{_component_: {COMPONENT}, data: '${{data}}', limit: 12}}"]


class KilledError(Exception):
    """Stands for a kill."""


@pytest.fixture
def run(train_config, world, tmp_path):
    """A function that trains some steps, or dies before one, and returns the run's records."""

    def train(name, *overrides, die_before=None):
        start = [f"checkpoint_dir={TINY_CHECKPOINT}", f"proxy.path={TINY_PROXY}", "epochs=9"]
        cfg = train_config(*start, f"output_dir={tmp_path / name}", *overrides)
        training = TrainingRun(cfg, world, check_settings(cfg))
        training.prepare()
        step = training.trainer.step

        def deadly(batches):
            if training.trainer.steps == die_before:
                training.checkpointer.wait()
                raise KilledError
            return step(batches)

        training.trainer.step = deadly
        training.train()
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    return train


def test_questions_leave_the_run_as_it_is(run, tmp_path):
    plain, asked = run("plain", "max_steps=4"), run("asked", "max_steps=4", *ASKED)
    keys = [key for key in plain[0] if key not in ("seconds", "samples_per_second")]
    assert [[row[key] for key in keys] for row in plain] == [[row[key] for key in keys] for row in asked]
    assert ["val_questions" in row for row in asked] == [False, True, False, True]
    left, right = (dict(read_weights(tmp_path / name / "checkpoint")) for name in ("plain", "asked"))
    assert all(torch.equal(left[name], right[name]) for name in left)
    assert (tmp_path / "asked" / "questions_curve.png").is_file()


@pytest.mark.parametrize("fusion", ["full", "scaffold"])
def test_questions_say_what_the_evaluation_says(run, prepared, world, tmp_path, fusion):
    row = run("run", "max_steps=2", f"tuning.fusion={fusion}", *ASKED)[-1]
    options = [f"data={prepared}", "split=val", "limit=12", "scoring=generate", "image_control=false"]
    options += [f"checkpoint_dir={tmp_path / 'run' / 'checkpoint'}", f"output_dir={tmp_path / 'evaluation'}"]
    results = Evaluation(load_config("tiny_eval.yaml", options, EvalSettings), world).run()
    assert row["val_questions"] == pytest.approx(results["accuracy"], abs=1e-6)
    assert row["val_balanced"] == pytest.approx(results["balanced_accuracy"], abs=1e-6)
    assert row["val_constant"] == len(results["constant"])
    assert row["val_gap"] == pytest.approx(row["val_read_out"] - row["val_questions"])


def test_best_is_kept_and_the_run_ends_early_and_resumes_so(run, tmp_path, monkeypatch):
    scores = iter([0.2, 0.5, 0.4, 0.4, 0.9])
    monkeypatch.setattr(
        f"{COMPONENT}.measures", lambda *_: {"questions": next(scores), "balanced": 0.1, "constant": 0.0}
    )
    options = [*ASKED, "keep_best=questions", "early_stopping=2", "checkpoint_every_steps=3", "resume=true"]
    with pytest.raises(KilledError):
        run("run", "max_steps=12", *options, die_before=6)
    # It goes on from step 6: there the best was 0.5 of step 4, with one look since.
    assert [path.name for path in (tmp_path / "run").glob("best_*")] == ["best_4"]
    rows = run("run", "max_steps=12", *options)
    assert len(rows) == 8
    assert [path.name for path in (tmp_path / "run").glob("best_*")] == ["best_4"]
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert facts["best"] == {"value": 0.5, "step": 4, "since": 2}


def test_first_value_is_best_even_if_nothing_is_right():
    best = Best()
    assert best.see(0.0, 1)
    assert not best.see(0.0, 2)
    again = Best()
    again.load(best.state())
    assert again == best


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["val_questions_every_steps=2"], "val_questions_every_steps: there are no val_questions"),
        (["keep_best=accuracy", *ASKED], "keep_best: 'accuracy' is not one of"),
        (["early_stopping=2", *ASKED], "early_stopping: 2 looks"),
        (["frozen_dtype=nf4", "tuning={encoder: lora, fusion: lora, decoder: frozen}", *ASKED], "val_questions: are asked of"),
    ],
)  # fmt: skip
def test_bad_settings_are_named(train_config, overrides, message):
    with pytest.raises(ConfigError, match=message):
        check_settings(train_config(f"checkpoint_dir={TINY_CHECKPOINT}", f"proxy.path={TINY_PROXY}", *overrides))


def test_processes_share_the_questions(prepared, train_config, monkeypatch, world):
    """Each of two processes answers about half of the images; what the other gave comes by the gathering."""
    from ift_components.evaluation import watching  # noqa: PLC0415

    cfg = train_config(*ASKED)
    asked = []
    monkeypatch.setattr(
        watching.OwnPredictor, "answer", lambda _, work: asked.append([w.item.image_id for w in work]) or iter(())
    )
    monkeypatch.setattr(watching.OwnPredictor, "__init__", lambda *_, **__: None)
    monkeypatch.setattr(watching.dist, "all_gather_object", lambda shares, texts: None)
    from ift_components.config import instantiate  # noqa: PLC0415
    from ift_components.training.watch import WatchContext  # noqa: PLC0415

    for rank in (0, 1):
        half = World(rank, 2, world.device, world.mesh)
        context = WatchContext(instantiate(cfg.tokenizer, "tokenizer"), half, "bilinear", None)
        questions = instantiate(cfg.val_questions, "val_questions", context)
        with pytest.raises(KeyError):
            questions._answers(None, questions._choices)
    assert asked[0]
    assert asked[1]
    assert not set(asked[0]) & set(asked[1])
