"""Adapters merged into checkpoints, checkpoints blended by part, and the rule that chooses a blend."""

import json

import pytest
import torch

from ift_components.config import load_config
from ift_components.errors import ConfigError
from ift_components.evaluation.merging import MergeSettings, Merging, check_merge, choose
from ift_components.models import tiny_llama3_2_vision
from ift_components.models.adapter_files import save_adapter
from ift_components.models.adapters import initialise_added
from ift_components.models.hf_layout import hf_config, load_weights, read_weights, save_checkpoint
from ift_components.models.parts import part_of
from ift_components.models.tiny import TINY_CHECKPOINT
from ift_components.models.trainable import Tuning, apply_tuning


@pytest.fixture
def merge(tmp_path, world):
    def run(*overrides, name="out"):
        cfg = load_config("tiny_merge.yaml", [f"output_dir={tmp_path / name}", *overrides], MergeSettings)
        facts = Merging(cfg, check_merge(cfg), world).run()
        return facts, dict(read_weights(tmp_path / name / "checkpoint"))

    return run


def moved(tuning=None):
    """The shipped model, tuned by chance."""
    model = tiny_llama3_2_vision()
    if tuning is not None:
        apply_tuning(model, tuning)
    load_weights(model, TINY_CHECKPOINT)
    initialise_added(model, 0)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tuned") / "checkpoint"
    model = moved()
    save_checkpoint(folder, model.state_dict(), hf_config(model), dtype=torch.float32, source=TINY_CHECKPOINT)
    return folder


@pytest.mark.parametrize(
    "section",
    [
        {"encoder": "lora", "fusion": "lora", "decoder": {"method": "lora", "rank": 3, "targets": ["q_proj", "w2"]}},
        {"encoder": "full", "fusion": "dora", "decoder": "dora"},
        {"encoder": "ia3", "fusion": "full", "decoder": "ia3"},
    ],
)
def test_merged_checkpoint_does_what_the_adapter_does(merge, tmp_path, section):
    tuning = Tuning.parse(section)
    save_adapter(tmp_path / "adapter", moved(tuning), tuning, TINY_CHECKPOINT, dtype=torch.float32)
    facts, weights = merge(f"adapter_dir={tmp_path / 'adapter'}")
    assert facts["max_logit_difference"] < 1e-4
    start = dict(read_weights(TINY_CHECKPOINT))
    changed = {part_of(name) for name, value in weights.items() if not torch.equal(value, start[name].float())}
    assert changed == {"encoder", "fusion", "decoder"}
    half, halfway = merge(f"adapter_dir={tmp_path / 'adapter'}", "blend=0.5", name="half")
    assert "max_logit_difference" not in half
    for name, value in halfway.items():
        torch.testing.assert_close(value, (start[name].float() + weights[name]) / 2, rtol=0, atol=1e-6)


def test_blend_by_part(merge, tuned):
    _, weights = merge(f"tuned_dir={tuned}", "blend={fusion: 0.0, encoder: 0.25}")
    start, end = dict(read_weights(TINY_CHECKPOINT)), dict(read_weights(tuned))
    shares = {"fusion": 0.0, "encoder": 0.25, "decoder": 1.0}
    for name, value in weights.items():
        expected = start[name].float() + shares[part_of(name)] * (end[name] - start[name].float())
        torch.testing.assert_close(value, expected, rtol=0, atol=1e-6, msg=name)


def test_blend_is_chosen_on_validation(merge, tuned, prepared, tmp_path):
    options = ["blend=[{fusion: 0, encoder: 0, decoder: 0}, 0.5, 1]", f"validation.data={prepared}"]
    options += ["validation.limit=16", f"validation.unrelated={{other: {prepared}}}"]
    facts, _ = merge(f"tuned_dir={tuned}", *options)
    assert facts["candidates"][0] == {"shares": dict.fromkeys(("encoder", "fusion", "decoder"), 0.0)} | facts["base"]
    assert facts["shares"] == facts["candidates"][facts["chosen"]]["shares"]
    evaluated = sorted((tmp_path / "out" / "validation").iterdir())
    for folder, row in zip(evaluated, (facts["base"], *facts["candidates"]), strict=True):
        results = json.loads((folder / "results.json").read_text())
        control, other = results["image_control"]["accuracy"], results["unrelated"]["other"]["accuracy"]
        expected = {name: results[name] for name in ("accuracy", "balanced_accuracy")}
        found = {name: value for name, value in row.items() if name != "shares"}
        assert found == expected | {"other_image": control, "unrelated": other}
    assert facts["chosen"] == choose(facts["candidates"], facts["base"], "accuracy", 0.02)
    assert json.loads((tmp_path / "out" / "merge.json").read_text()) == facts
    assert (tmp_path / "out" / "blend.png").read_bytes().startswith(b"\x89PNG")
    assert min(path.name for path in (tmp_path / "out" / "validation").iterdir()) == "base"
    assert not list((tmp_path / "out").glob("candidate_*"))


@pytest.mark.parametrize(
    ("rows", "keep", "best"),
    [
        ([(0.74, 0.86), (0.75, 0.83), (0.744, 0.77)], 0.05, 1),
        ([(0.74, 0.86), (0.75, 0.83), (0.744, 0.77)], 0.02, 0),
        ([(0.74, 0.86), (0.75, 0.83), (0.76, 0.77)], 1.0, 2),
        ([(0.74, 0.80), (0.75, 0.81), (0.76, 0.70)], 0.01, 1),  # none keeps enough: the one that keeps most
        ([(0.75, 0.87), (0.75, 0.87)], 0.0, 0),
    ],
)
def test_rule(rows, keep, best):
    candidates = [{"accuracy": accuracy, "unrelated": unrelated} for accuracy, unrelated in rows]
    assert choose(candidates, {"accuracy": 0.5, "unrelated": 0.87}, "accuracy", keep) == best


def test_wrong_merges_are_refused(merge, tuned, tmp_path):
    for overrides, message in (
        ([], "adapter_dir and tuned_dir: give one of them"),
        ([f"tuned_dir={tuned}"], "blend: 1 is tuned_dir itself"),
        ([f"tuned_dir={tuned}", "blend={head: 0.5}"], "blend: 'head' is not one of encoder, fusion, decoder"),
        ([f"tuned_dir={tuned}", "blend=1.5"], "blend: 1.5 for the encoder is not a number from 0"),
        ([f"tuned_dir={tuned}", "blend=[0.5,1]", "validation=null"], "validation: give validation.data"),
        ([f"tuned_dir={tuned}", "blend=[0.5,1]", "validation.data=null"], "validation: give validation.data"),
        ([f"adapter_dir={tuned}"], "has no ift_adapter.json; expected the adapter folder"),
    ):
        with pytest.raises(ConfigError, match=message):
            merge(*overrides)
    other = tiny_llama3_2_vision(num_layers=4)
    save_checkpoint(tmp_path / "other", other.state_dict(), hf_config(other), dtype=torch.float32, source=tuned)
    with pytest.raises(ConfigError, match=r"tuned_dir: language_model.* is None in .*only checkpoints of one model"):
        merge(f"tuned_dir={tmp_path / 'other'}", "blend=0.5")
    tuning = Tuning.parse({"encoder": "frozen", "fusion": "frozen", "decoder": "prefix"})
    save_adapter(tmp_path / "prefix", moved(tuning), tuning, TINY_CHECKPOINT, dtype=torch.float32)
    with pytest.raises(ConfigError, match=r"virtual tokens .* cannot be merged .* adapter_dir="):
        merge(f"adapter_dir={tmp_path / 'prefix'}")
    assert not (tmp_path / "out").exists()
