"""Every shipped config builds; the 11B model has the parameters its shape says, in each stage."""

import pytest
import torch
from omegaconf import OmegaConf

from ift_components.config import CONFIG_DIR, config_names, instantiate, load_config, missing_keys
from ift_components.evaluation.merging import MergeSettings
from ift_components.evaluation.settings import EvalSettings
from ift_components.miniature.pretraining import PretrainSettings
from ift_components.models.build import build_model
from ift_components.models.forward import ResponseLoss
from ift_components.models.sharding import set_precision
from ift_components.models.trainable import PARTS, apply_tuning, part_of
from ift_components.proxy import ProxyInstruction, UpdateRule, random_theta
from ift_components.training.checks import check_settings
from ift_components.training.settings import TrainSettings
from ift_components.training.setup import build_optimizer, parameter_groups

# The configs of training and evaluation; the others hold no model to build.
STAGES = ("_eval.yaml", "_ift.yaml", "_lora.yaml", "_merge.yaml", "_pretrain.yaml", "_vqa.yaml", "_warmup.yaml")
MODEL_CONFIGS = [name for name in config_names() if name.endswith(STAGES) and not name.startswith("data_")]


def load(name):
    raw = OmegaConf.load(CONFIG_DIR / name)
    blanks = [f"{key}=given" for key in missing_keys(raw)]
    if name in ("llama32v_ift.yaml", "llama32v_lora.yaml"):
        blanks.append("proxy.path=given")
    settings = {"eval": EvalSettings, "pretrain": PretrainSettings, "merge": MergeSettings}.get(
        name.rsplit("_", 1)[1].removesuffix(".yaml")
    )
    return load_config(name, blanks, settings or TrainSettings)


def layer(width, hidden, kv_width, norms):
    """Weights of a transformer layer without biases: attention, gated MLP, norms."""
    return 2 * width**2 + 2 * width * kv_width + 3 * width * hidden + norms * width


def expected_11b():
    """Parameter counts worked out from Llama-3.2-11B-Vision's published shape."""
    d, hidden, kv, v, e = 4096, 14336, 1024, 128_256, 1280
    vit_layer = 4 * e**2 + 2 * e * 4 * e + 5 * e + 4 * e  # attention, MLP, its biases, two layer norms
    tokens = (560 // 14) ** 2 + 1
    positions = tokens * e + 16 * tokens * e + 1 + 2 * (16 * e + 1)
    clip = 3 * 14 * 14 * e + e + positions + 4 * e + 32 * vit_layer
    projection = 8 * (vit_layer + 2) + 6 * e * d + d
    cross = layer(d, hidden, kv, norms=2) + 2 * 128 + 2  # with the norms of queries and keys, and two gates
    return {
        "encoder": clip,
        "fusion": projection + 8 * cross + 8 * d,
        "decoder": 32 * layer(d, hidden, kv, norms=2) + 2 * v * d + d,
    }


@pytest.mark.parametrize("name", MODEL_CONFIGS)
def test_components_build(name):
    cfg = load(name)
    model = build_model(cfg.model, meta=name.startswith("llama32v"))
    if name.startswith("tiny"):
        transform = instantiate(cfg.tokenizer, "tokenizer")
        assert transform.transform_image.tile_size**2 == model.encoder.clip.patches_per_tile * 14**2
    if name.endswith(("_eval.yaml", "_merge.yaml", "_pretrain.yaml")) or "shuffling" not in cfg.dataset:
        return
    shuffle = instantiate(cfg.dataset["shuffling"], "dataset.shuffling")
    assert sorted(shuffle("a b, c, d e", (), (0, 0, 1)).split(", ")) == ["a b", "c", "d e"]


@pytest.mark.parametrize("stage", ["warmup", "ift"])
def test_11b_trains_the_papers_parts_at_the_papers_rate(stage):
    """From the config alone to the optimizer's groups: parameter counts by part, precision, and who gets a gradient step."""
    cfg = load(f"llama32v_{stage}.yaml")
    checked = check_settings(cfg)
    model = build_model(cfg.model, meta=True)
    apply_tuning(model, checked.tuning)
    set_precision(model, torch.bfloat16)
    counts = dict.fromkeys(PARTS, 0)
    for name, parameter in model.named_parameters():
        counts[part_of(name)] += parameter.numel()
        assert parameter.dtype is (torch.float32 if parameter.requires_grad else torch.bfloat16)
    expected = expected_11b()
    assert counts == expected
    assert sum(counts.values()) == 10_629_184_035
    proxy = ProxyInstruction(random_theta(cfg.proxy.num_vectors, 4096, 0), checked.rule, cfg.proxy.momentum)
    groups = parameter_groups(ResponseLoss(model), proxy)
    optimizer = build_optimizer(cfg, checked.tuning, groups)
    trained = {group["name"]: sum(p.numel() for p in group["params"]) for group in optimizer.param_groups}
    tuned = {part: expected[part] for part in ("encoder", "fusion")} if stage == "ift" else {}
    assert trained == {"proxy": 32_768, **tuned}
    assert sum(tuned.values()) == (2_598_922_787 if stage == "ift" else 0)
    assert type(optimizer) is torch.optim.AdamW
    assert {(group["lr"], group["weight_decay"], group["fused"]) for group in optimizer.param_groups} == {
        (2e-5, 0.01, True)
    }
    assert (checked.is_warm_up, checked.rule) == (
        (True, UpdateRule.UPDATE) if stage == "warmup" else (False, UpdateRule.TRACK)
    )
    assert proxy.has_momentum is not checked.is_warm_up
    assert proxy.decay == 0.999
    assert cfg.batch_size * cfg.gradient_accumulation_steps == 2
