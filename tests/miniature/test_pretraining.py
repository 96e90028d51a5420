"""Pretraining through its recipe, cut short: every stage learns, goes on after a whole stage, and leaves a checkpoint."""

import json

import pytest
import torch
from safetensors.torch import load_file

from ift_components.config import load_config
from ift_components.data.schema import Attribute, Schema
from ift_components.errors import ConfigError
from ift_components.miniature.pretraining import Heads, Pretraining, PretrainSettings

STAGES = ("find", "language", "encoder", "joint")
SHORT = [f"{stage}.{key}" for stage in STAGES for key in ("steps=6", "batch_size=4")]


def config(out, *more):
    return load_config(
        "tiny_pretrain.yaml", [*SHORT, "log_every_steps=3", f"output_dir={out}", *more], PretrainSettings
    )


def prepared(cfg, world):
    pretraining = Pretraining(cfg, world)
    pretraining.prepare()
    return pretraining


def test_its_stages_in_two_processes(tune, tmp_path):
    out = tmp_path / "out"
    given = [*SHORT, "log_every_steps=3", f"output_dir={out}"]
    tune("--nproc_per_node", "2", "tiny_pretrain", "--config", "tiny_pretrain.yaml", *given, cwd=tmp_path, real=True)
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [(row["stage"], row["step"]) for row in rows] == [(stage, step) for stage in STAGES for step in (3, 6)]
    loss = {(row["stage"], row["step"]): row["loss"] for row in rows}
    assert loss["find", 6] < loss["find", 3]
    assert loss["language", 6] < loss["language", 3]
    assert loss["joint", 6] < loss["joint", 3]
    saved = load_file(out / "checkpoint" / "model.safetensors")
    assert {value.dtype for value in saved.values()} == {torch.bfloat16}


def test_stages_train_their_part_and_whole_ones_are_not_repeated(world, tmp_path):
    first = prepared(config(tmp_path / "out"), world)
    begin = {name: value.clone() for name, value in first.model.state_dict().items()}
    first.run()
    stages = {name: load_file(tmp_path / "out" / f"{name}.safetensors") for name in STAGES}
    moved = {n: {k.split(".")[0] for k, v in stages[n].items() if not torch.equal(v, begin[k])} for n in stages}
    both = {"encoder", "decoder"}
    assert moved == {"find": {"decoder"}, "language": {"decoder"}, "encoder": both, "joint": both}
    kept = [name for name in begin if name.startswith("decoder.")]
    assert all(torch.equal(stages["encoder"][name], stages["language"][name]) for name in kept)
    (tmp_path / "out" / "joint.safetensors").unlink()
    (tmp_path / "out" / "checkpoint").rename(tmp_path / "before")
    prepared(config(tmp_path / "out"), world).run()
    again = load_file(tmp_path / "out" / "joint.safetensors")
    assert all(torch.equal(value, again[name]) for name, value in stages["joint"].items())
    with pytest.raises(ConfigError, match="holds a finished pretraining"):
        prepared(config(tmp_path / "out"), world)


def test_the_joint_stage_moves_the_encoder_at_its_own_rate(world, tmp_path):
    prepared(config(tmp_path / "out", "joint.encoder_lr=1e-12"), world).run()
    before, after = (load_file(tmp_path / "out" / f"{name}.safetensors") for name in ("encoder", "joint"))
    moved = dict.fromkeys(("encoder", "decoder"), 0.0)
    for name, value in after.items():
        part = name.split(".")[0]
        moved[part] = max(moved[part], float((value - before[name]).abs().max()))
    assert moved["encoder"] < 1e-6
    assert moved["decoder"] > 1e-3


def test_another_config_in_the_same_folder_is_refused(world, tmp_path):
    prepared(config(tmp_path / "out"), world)
    with pytest.raises(ConfigError, match="is another pretraining's"):
        prepared(config(tmp_path / "out", "seed=1"), world)
    with pytest.raises(ConfigError, match="joint: every value must be above 0"):
        prepared(config(tmp_path / "other", "joint.steps=0"), world)
    with pytest.raises(ConfigError, match="joint: every value must be above 0"):
        prepared(config(tmp_path / "other", "joint.encoder_lr=0"), world)


def test_heads_sum_the_cross_entropy_of_applicable_attributes():
    schema = Schema((Attribute("a", values=("x", "y")), Attribute("b", values=("p", "q", "r"))))
    heads = Heads(8, [schema])
    features, codes = torch.randn(3, 5, 8), torch.tensor([[0, 2], [1, -1], [0, 0]])
    logits = heads.linear[0](heads.norm(features.mean(dim=1)))
    a, b = logits[:, :2].log_softmax(1), logits[:, 2:].log_softmax(1)
    expected = -(a[0, 0] + a[1, 1] + a[2, 0] + b[0, 2] + b[2, 0])
    torch.testing.assert_close(heads(features, codes, 0), expected)
