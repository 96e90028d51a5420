"""Every shipped config builds; the 11B model has the parameters its shape says, in each stage."""

import pytest
import torch
from omegaconf import OmegaConf

from ift_components.config import CONFIG_DIR, config_names, instantiate, load_config, missing_keys
from ift_components.evaluation.settings import EvalSettings
from ift_components.miniature.pretraining import PretrainSettings
from ift_components.models.build import build_model
from ift_components.models.sharding import parameter_part, set_precision
from ift_components.proxy import random_theta
from ift_components.training.settings import TrainSettings, check_settings

MODEL_CONFIGS = [name for name in config_names() if not name.startswith("data_")]


def load(name):
    raw = OmegaConf.load(CONFIG_DIR / name)
    blanks = [f"{key}=given" for key in missing_keys(raw)]
    settings = {"eval": EvalSettings, "pretrain": PretrainSettings}.get(name.rsplit("_", 1)[1].removesuffix(".yaml"))
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
        instantiate(cfg.tokenizer, "tokenizer")
    if name.endswith(("_eval.yaml", "_pretrain.yaml")):
        return
    check_settings(cfg, warm_up=name.endswith("_warmup.yaml"))
    instantiate(cfg.optimizer, "optimizer", [torch.nn.Parameter(torch.zeros(1))])
    instantiate(cfg.dataset["shuffling"], "dataset.shuffling")
    width = model.decoder.output.in_features
    assert random_theta(cfg.proxy.num_vectors, width, 0).shape == (8, width)


@pytest.mark.parametrize("stage", ["warmup", "ift"])
def test_11b_parameter_counts(stage):
    cfg = load(f"llama32v_{stage}.yaml")
    model = build_model(cfg.model, meta=True)
    if stage == "warmup":
        model.requires_grad_(requires_grad=False)
    set_precision(model, torch.bfloat16)
    counts = dict.fromkeys(("encoder", "fusion", "decoder"), 0)
    trained = dict(counts)
    for name, parameter in model.named_parameters():
        part = parameter_part(name)
        counts[part] += parameter.numel()
        trained[part] += parameter.numel() * parameter.requires_grad
        assert parameter.dtype is (torch.float32 if parameter.requires_grad else torch.bfloat16)
    expected = expected_11b()
    assert counts == expected
    assert sum(counts.values()) == 10_629_184_035
    assert trained == ({**expected, "decoder": 0} if stage == "ift" else dict.fromkeys(counts, 0))
    assert sum(trained.values()) == (2_598_922_787 if stage == "ift" else 0)
    assert cfg.proxy.num_vectors * model.decoder.output.in_features == 32_768  # what the warm-up trains


def test_11b_uses_the_papers_settings():
    cfg = load("llama32v_ift.yaml")
    assert (cfg.proxy.num_vectors, cfg.proxy.momentum, cfg.epochs, cfg.clip_grad_norm) == (8, 0.999, 5, 1.0)
    assert (cfg.optimizer["_component_"], cfg.optimizer["lr"], cfg.dtype) == ("torch.optim.AdamW", 2e-5, "bf16")
    assert cfg.optimizer["fused"]
    assert (cfg.batch_size, cfg.gradient_accumulation_steps, cfg.lr_scheduler) == (2, 1, None)
    assert load("llama32v_warmup.yaml").epochs == 1
    assert (load("llama32v_eval.yaml").max_new_tokens, load("llama32v_eval.yaml").scoring) == (50, "generate")
