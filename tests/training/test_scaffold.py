"""A part trained along with the rest and set back when the checkpoint is saved."""

import json

import pytest
import torch

from ift_components.errors import ConfigError
from ift_components.models.hf_layout import read_weights
from ift_components.models.tiny import TINY_CHECKPOINT, TINY_PROXY
from ift_components.models.trainable import part_of
from ift_components.training.checks import check_settings
from ift_components.training.run import TrainingRun

START = f"checkpoint_dir={TINY_CHECKPOINT}"


@pytest.fixture
def run(train_config, world, tmp_path):
    """A function that trains three steps and returns the saved checkpoint's weights by name."""

    def train(name, *overrides, steps=3):
        options = [START, f"proxy.path={TINY_PROXY}", f"output_dir={tmp_path / name}", f"max_steps={steps}"]
        cfg = train_config(*options, "epochs=9", *overrides)
        TrainingRun(cfg, world, check_settings(cfg)).run()
        return dict(read_weights(tmp_path / name / "checkpoint"))

    return train


def test_scaffold_is_trained_and_set_back(run, tmp_path):
    start, full = dict(read_weights(TINY_CHECKPOINT)), run("full")
    back = run("back", "tuning.fusion=scaffold")
    part_way = run("part", "tuning.fusion={method: scaffold, keep: 0.7}")
    assert back.keys() == part_way.keys() == start.keys()
    for name, tuned in full.items():
        if part_of(name) == "fusion":
            # The shipped checkpoint is in bf16: in fp32 it is the start of the run to the bit.
            assert torch.equal(back[name], start[name].float()), name
            torch.testing.assert_close(part_way[name], 0.3 * start[name].float() + 0.7 * tuned, rtol=0, atol=1e-6)
        else:  # the others learnt beside a fusion that was trained as ever
            assert torch.equal(back[name], tuned), name
            assert torch.equal(part_way[name], tuned), name
    assert any(not torch.equal(full[name], start[name].float()) for name in full if part_of(name) == "fusion")
    facts = json.loads((tmp_path / "part" / "run.json").read_text())
    assert facts["tuning"]["fusion"] == {"method": "scaffold", "lr": None, "keep": 0.7, "saved_share": 0.7}
    assert facts["trained_parameters"]["fusion"] == 740_264


def test_resumed_scaffold_ends_as_if_never_stopped(run, world, train_config, tmp_path):
    tuning = "tuning={encoder: {method: scaffold, keep: 0.5}, fusion: full, decoder: frozen}"
    whole = run("whole", tuning, steps=5)
    options = [tuning, START, f"proxy.path={TINY_PROXY}", f"output_dir={tmp_path / 'parts'}", "max_steps=5", "epochs=9"]
    cfg = train_config(*options, "checkpoint_every_steps=2", "resume=true")
    killed = TrainingRun(cfg, world, check_settings(cfg))
    killed.prepare()
    step = killed.trainer.step

    def deadly(batches):
        if killed.trainer.steps == 3:
            killed.checkpointer.wait()
            raise KeyboardInterrupt
        return step(batches)

    killed.trainer.step = deadly
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    TrainingRun(cfg, world, check_settings(cfg)).run()
    for name, value in read_weights(tmp_path / "parts" / "checkpoint"):
        assert torch.equal(value, whole[name]), name


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["tuning.fusion=scaffold", "checkpoint_dir=null"], r"tuning.fusion: 'scaffold' is set back to .*give a check"),
        (["tuning.fusion={method: scaffold, keep: 1.5}"], r"tuning.fusion.keep: 1.5 is not a number from 0"),
        (["tuning.fusion={method: scaffold, hold: 0}"], r"tuning.fusion.hold: the method takes no such argument"),
    ],
)
def test_wrong_scaffold_is_refused(train_config, overrides, message):
    with pytest.raises(ConfigError, match=message):
        check_settings(train_config(f"proxy.path={TINY_PROXY}", START, *overrides))
