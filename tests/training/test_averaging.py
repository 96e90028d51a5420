"""Averaging of the trained weights: what is saved and validated is the average by hand, and the run itself does not change."""

import json

import pytest
import torch
from torch.distributed.tensor import DTensor

from ift_components.errors import ConfigError
from ift_components.models.hf_layout import read_weights
from ift_components.training.averaging import trained_weights
from ift_components.training.checks import check_settings
from ift_components.training.run import TrainingRun

VALIDATION = "val_dataset={_component_: ift_components.data.report_dataset, source: '${data}', split: val}"


class KilledError(Exception):
    """Stands for a kill."""


@pytest.fixture
def run(train_config, world, tmp_path):
    """A function that trains five steps, or dies before one; returns rows, saved weights and the weights after every step."""

    def train(name, *overrides, die_before=None):
        options = [f"output_dir={tmp_path / name}", "max_steps=5", "optimizer.lr=1e-2", "val_every_steps=2", VALIDATION]
        cfg = train_config(*options, "dataset.limit=20", "epochs=9", "save_dtype=fp32", *overrides)
        stage = check_settings(train_config(*options, *overrides, "proxy.path=x"))  # the proxy is a random one
        training = TrainingRun(cfg, world, stage)
        training.prepare()
        trainer, taken = training.trainer, []
        step = trainer.step

        def snapshot():
            weights = trained_weights(trainer.module.model)
            return {n: (p.full_tensor() if isinstance(p, DTensor) else p).detach().clone() for n, p in weights.items()}

        def watched(batches):
            if trainer.steps == die_before:
                training.checkpointer.wait()
                raise KilledError
            taken.append(snapshot()) if not taken else None
            metrics = step(batches)
            taken.append(snapshot())
            return metrics

        trainer.step = watched
        training.train()
        rows = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        return rows, dict(read_weights(tmp_path / name / "checkpoint")), taken

    return train


# Under bf16 the weights are FSDP's; the decoder's norm and output stay gathered after a pass without gradients.
@pytest.mark.parametrize("more", [(), ("dtype=bf16", "tuning.decoder=full", "batch_size=2")])
def test_average_is_saved_and_the_run_is_the_same(run, more):
    plain, last, _ = run("plain", *more)
    rows, saved, taken = run("averaged", "averaging.decay=0.5", *more)
    assert [row["loss"] for row in rows] == [row["loss"] for row in plain]
    average = taken[0]
    for weights in taken[1:]:
        average = {name: 0.5 * average[name] + 0.5 * weights[name] for name in average}
    # Embeddings are left out: they have other names when saved, and positions of grids that four tiles cannot form go.
    average = {name: value for name, value in average.items() if "embedding" not in name}
    for name, value in average.items():
        torch.testing.assert_close(saved[name], value, rtol=0, atol=1e-6)
        torch.testing.assert_close(last[name], taken[-1][name], rtol=0, atol=0)
    assert any((saved[name] - last[name]).abs().max() > 1e-3 for name in average)
    frozen = [name for name in saved if name not in taken[0] and "embedding" not in name]
    assert all(torch.equal(saved[name], last[name]) for name in frozen)
    assert [row["val_loss"] for row in rows if "val_loss" in row] != [
        row["val_loss"] for row in plain if "val_loss" in row
    ]


def test_resumed_average_is_bit_identical(run, tmp_path):
    _, whole, _ = run("whole", "averaging.decay=0.9")
    options = ["averaging.decay=0.9", "resume=true", "checkpoint_every_steps=2"]
    with pytest.raises(KilledError):
        run("parts", *options, die_before=3)
    _, parts, _ = run("parts", *options)
    assert all(torch.equal(parts[name], whole[name]) for name in whole)
    card = (tmp_path / "parts" / "checkpoint" / "README.md").read_text()
    assert "their moving average along the run, decay 0.9 a step" in card


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["averaging.decay=1.0"], r"averaging\.decay: 1\.0 is not between 0 and 1"),
        (["averaging.decay=0.9", "tuning={encoder: frozen, fusion: frozen, decoder: frozen}"], "nothing to average"),
    ],
)
def test_wrong_averaging_is_refused(train_config, overrides, message):
    with pytest.raises(ConfigError, match=message):
        check_settings(train_config("proxy.path=x", *overrides))
