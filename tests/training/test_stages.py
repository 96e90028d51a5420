"""Stages: each starts from the one before, goes on after an interruption, and all are on one page."""

import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file

from ift_components.config import find_config, load_config
from ift_components.errors import ConfigError, UserError
from ift_components.training.checks import check_settings
from ift_components.training.run import TrainingRun
from ift_components.training.settings import TrainSettings
from ift_components.training.stages import StagedRun, load_stages, merge_nodes

NAMES = ["fusion_alone", "both", "annealing"]


class KilledError(Exception):
    pass


@pytest.fixture
def plan(prepared, tmp_path):
    """A function that plans the shipped config's stages on a few shapes."""

    def make(folder, *overrides):
        common = [f"data={prepared}", f"output_dir={tmp_path / folder}", "num_workers=0", "batch_size=16"]
        common += ["stages.annealing.dataset.samples=64", *overrides]
        return load_stages("tiny_stages.yaml", common)

    return make


def metrics(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if "second" not in key} for row in rows]


def weights(folder):
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


@pytest.fixture
def whole(plan, world, tmp_path):
    StagedRun(plan("whole"), world).run()
    return tmp_path / "whole"


def test_each_stage_starts_from_the_one_before(whole, world, prepared, tmp_path):
    start, fusion, both = (weights(whole / name / "checkpoint") for name in ("fusion_alone", "both", "annealing"))
    vision = [
        name for name in start if name.startswith("vision_model.transformer.")
    ]  # the rest of it is the projection's
    assert vision
    shipped = load_file("ift_components/models/tiny_checkpoint/model.safetensors")
    assert all(torch.equal(start[name], shipped[name].to(start[name].dtype)) for name in vision)
    assert any(not torch.equal(fusion[name], start[name]) for name in vision)
    assert any(not torch.equal(both[name], fusion[name]) for name in vision)
    checkpoint = whole / "fusion_alone" / "checkpoint"
    alone = [f"data={prepared}", f"output_dir={tmp_path / 'alone'}", "num_workers=0", "batch_size=16", "epochs=2"]
    alone += [f"checkpoint_dir={checkpoint}", f"proxy.path={checkpoint / 'proxy_instruction.safetensors'}"]
    cfg = load_config("tiny_ift.yaml", alone, TrainSettings)
    TrainingRun(cfg, world, check_settings(cfg)).run()
    assert metrics(tmp_path / "alone") == metrics(whole / "both")
    rows = metrics(whole / "annealing")
    assert [row["lr_fusion"] for row in rows] == pytest.approx(
        [3e-4 * 0.5 * (1 + math.cos(math.pi * step / 4)) for step in range(4)]
    )
    assert {"loss_reports", "loss_rehearsal"} <= {key for row in rows for key in row}
    page = (whole / "stages.html").read_text()
    assert all(f"<td>{name}</td>" in page for name in NAMES)
    assert "(not finished)" not in page
    assert page.count("data:image/png;base64,") == 2


def test_interrupted_stages_go_on(whole, plan, world, tmp_path, monkeypatch):
    train = TrainingRun.train

    def killed(self):
        if self.folder.path.name != "both":
            train(self)
            return
        step = self.trainer.step

        def step_or_die(batches):
            if self.trainer.steps == 5:
                self.checkpointer.wait()
                raise KilledError
            return step(batches)

        self.trainer.step = step_or_die
        train(self)

    monkeypatch.setattr(TrainingRun, "train", killed)
    with pytest.raises(KilledError):
        StagedRun(plan("parts", "checkpoint_every_steps=2"), world).run()
    parts = tmp_path / "parts"
    assert "both (not finished)" in (parts / "stages.html").read_text()
    monkeypatch.undo()
    with pytest.raises(UserError, match="already holds files"):
        StagedRun(plan("parts"), world).run()
    with pytest.raises(ConfigError, match=r"resume: optimizer differ from the run in .*fusion_alone"):
        StagedRun(plan("parts", "resume=true", "optimizer.lr=0.1"), world).run()
    StagedRun(plan("parts", "resume=true", "checkpoint_every_steps=2"), world).run()
    for name in NAMES:
        assert metrics(parts / name) == metrics(whole / name)
    left, right = weights(parts / "annealing" / "checkpoint"), weights(whole / "annealing" / "checkpoint")
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)
    shutil.rmtree(parts / "both")
    with pytest.raises(ConfigError, match="stage 'annealing' is finished and 'both' before it is not"):
        StagedRun(plan("parts", "resume=true"), world).run()


def test_warm_up_can_be_a_stage(tmp_path):
    shared = find_config("tiny_stages.yaml").read_text().split("stages:\n")[0]
    frozen = "{encoder: frozen, fusion: frozen, decoder: frozen}"
    config = tmp_path / "two.yaml"
    config.write_text(
        shared + f"stages:\n  warm: {{tuning: {frozen}, proxy: {{path: null, rule: update}}}}\n  tune: {{}}\n"
    )
    warm, tune = load_stages(str(config), [f"output_dir={tmp_path / 'out'}"])
    assert warm.stage.is_warm_up
    assert tune.cfg.proxy.path == str(tmp_path / "out" / "warm" / "proxy_instruction.safetensors")
    assert tune.cfg.checkpoint_dir == warm.cfg.checkpoint_dir
    with pytest.raises(ConfigError, match=r"stages\.warm: proxy\.rule: the warm-up trains the proxy by 'update'"):
        load_stages(str(config), ["stages.warm.proxy.rule=track"])


def test_medpix_stages_end_in_annealing():
    captions, annealing = load_stages("tiny_medpix_stages.yaml", ["data=PAIRS"])
    assert (captions.stage.rule, annealing.stage.rule) == (None, None)
    sources = annealing.cfg.dataset["sources"]
    assert {name: node["dataset"]["source"] for name, node in sources.items()} == {
        "captions": "PAIRS",
        "questions": "PAIRS",
    }
    assert sources["questions"]["weight"] == {"start": 0.02, "end": 0.5, "from": 0.25}
    assert sources["captions"]["dataset"]["instruction"] == captions.cfg.instruction
    assert annealing.cfg.checkpoint_dir == str(captions.folder / "checkpoint")


def test_nodes_are_merged_and_components_replaced():
    shared = {"tuning": {"encoder": "full", "fusion": "full"}, "dataset": {"_component_": "a", "source": "x"}}
    own = {"tuning": {"encoder": "frozen"}, "dataset": {"source": "y"}}
    assert merge_nodes(shared, own) == {
        "tuning": {"encoder": "frozen", "fusion": "full"},
        "dataset": {"_component_": "a", "source": "y"},
    }
    other = {"dataset": {"_component_": "b"}}
    assert merge_nodes(shared, other) == shared | other


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stages=null", "stages: names no stage"),
        ("stages.both.output_dir=x", "stages.both.output_dir: a stage writes into the folder of its name"),
        ("stages.both.epoch=2", "stages.both: unknown key 'epoch'; did you mean 'epochs'"),
        ("stages.both.epochs=0", "stages.both: epochs: 0 is not above 0"),
        ("stages.both=2", "stages.both: is not a mapping of keys"),
    ],
)
def test_bad_stages_are_named(plan, override, message):
    with pytest.raises(ConfigError) as error:
        plan("out", override)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_bad_data_of_a_late_stage_stop_the_first(plan, world, tmp_path):
    planned = plan("out", "stages.annealing.dataset.sources.rehearsal.weight.end=-1")
    with pytest.raises(
        ConfigError, match=r"stage 'annealing': dataset.sources.rehearsal.weight.end: -1 is not a number"
    ):
        StagedRun(planned, world).run()
    assert not (tmp_path / "out").exists()
