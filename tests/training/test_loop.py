"""One optimizer step: normalisation, clipping, and stopping before a bad one."""

import copy
import json
import statistics

import pytest
import torch

from ift_components.errors import ConfigError, UserError
from ift_components.models.forward import ResponseLoss
from ift_components.models.trainable import FINE_TUNING
from ift_components.proxy import UpdateRule
from ift_components.training.checks import check_settings
from ift_components.training.data import build_loader, epoch_batches
from ift_components.training.loop import gradient_norm, scale_gradients
from ift_components.training.setup import build_module


def test_accumulation_equals_one_large_batch(train_config, world, make_trainer):
    """Reports differ in length: averaging the batches' means would differ."""
    # A plain step of 1 shows the clipped gradient itself.
    plain = ["optimizer=torch.optim.SGD", "optimizer.lr=1.0", "proxy.lr=1.0"]
    cfg = train_config("batch_size=8", *plain)
    (whole,) = next(epoch_batches(build_loader(cfg, world), 0, 1))
    parts = next(epoch_batches(build_loader(train_config("batch_size=2"), world), 0, 4))
    assert len({len(part.labels) for part in parts}) > 1
    at_once, accumulated = make_trainer(cfg), make_trainer(cfg)
    a, b = at_once.step([whole]), accumulated.step(parts)
    assert a["tokens"] == b["tokens"] == len(whole.labels)
    assert a["samples"] == b["samples"] == 8
    assert a["loss"] == pytest.approx(b["loss"], abs=1e-6)
    assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-5)
    for whole_weight, summed_weight in zip(at_once.module.parameters(), accumulated.module.parameters(), strict=True):
        torch.testing.assert_close(whole_weight, summed_weight, atol=1e-6, rtol=0)


def test_clipping_equals_torchs(world):
    generator = torch.Generator().manual_seed(0)
    parameters = [torch.nn.Parameter(torch.zeros(n)) for n in (3, 50, 7)]
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    theirs = copy.deepcopy(parameters)
    for mine, other in zip(parameters, theirs, strict=True):
        other.grad = mine.grad.clone()
    norm = torch.nn.utils.clip_grad_norm_(theirs, 0.5)
    assert gradient_norm(parameters).item() == pytest.approx(norm.item(), rel=1e-6)
    scale_gradients({"a": parameters[:1], "b": parameters[1:]}, 0.5 / (norm.item() + 1e-6))
    for mine, other in zip(parameters, theirs, strict=True):
        torch.testing.assert_close(mine.grad, other.grad)


def test_whole_gradient_is_clipped_together(train_config, world, make_trainer):
    cfg = train_config(
        "clip_grad_norm=0.01", "optimizer._component_=torch.optim.SGD", "proxy.lr=1.0", "optimizer.lr=1.0"
    )
    trainer = make_trainer(cfg, UpdateRule.UPDATE)
    before = {part: [p.detach().clone() for p in group] for part, group in trainer.groups.items()}
    (batches,) = [next(epoch_batches(build_loader(cfg, world), 0, 1))]
    metrics = trainer.step(batches)
    assert metrics["grad_norm"] > 0.01
    parts = [metrics[f"grad_norm_{part}"] for part in ("proxy", "encoder", "fusion")]
    assert metrics["grad_norm"] == pytest.approx(sum(n**2 for n in parts) ** 0.5, rel=1e-6)
    moved = sum(
        (p - q).square().sum()
        for part, group in trainer.groups.items()
        for p, q in zip(group, before[part], strict=True)
    )
    assert moved.sqrt().item() == pytest.approx(0.01, rel=1e-3)  # SGD at rate 1 moves by the clipped gradient


def test_bad_loss_stops_before_the_step(train_config, world, make_trainer):
    cfg = train_config()
    trainer = make_trainer(cfg)
    batches = next(epoch_batches(build_loader(cfg, world), 0, 1))
    batches[0].images[0] = float("nan")
    before = [p.detach().clone() for p in trainer.module.parameters()]
    with pytest.raises(UserError, match=rf"step 1: loss nan.*before the optimizer step.*{batches[0].ids[0]}"):
        trainer.step(batches)
    assert all(torch.equal(p, q) for p, q in zip(trainer.module.parameters(), before, strict=True))


def test_proxy_has_its_own_learning_rate(train_config, world, make_trainer):
    trainer = make_trainer(train_config("proxy.lr=0.125", "optimizer.lr=0.25"))
    assert {g["name"]: g["lr"] for g in trainer.optimizer.param_groups} == {
        "proxy": 0.125,
        "encoder": 0.25,
        "fusion": 0.25,
    }


def test_bf16_keeps_fp32_masters_and_tracks_fp32(train_config, world, make_trainer):
    full, half = make_trainer(train_config()), make_trainer(train_config("dtype=bf16"))
    groups = half.optimizer.param_groups
    assert {p.dtype for group in groups for p in group["params"]} == {torch.float32}
    frozen = [p for p in half.module.parameters() if not p.requires_grad]
    assert {p.dtype for p in frozen} == {torch.bfloat16}
    loader = build_loader(train_config(), world)
    for batches in epoch_batches(loader, 0, 1):
        a, b = full.step(batches), half.step(batches)
        assert b["loss"] == pytest.approx(a["loss"], rel=0.01)
    state = half.optimizer.state[groups[1]["params"][0]]
    assert state["exp_avg"].dtype is torch.float32


@pytest.mark.slow
def test_bf16_tracks_fp32_over_a_run(tune, tmp_path):
    """The shipped miniature on its drawn smears: 200 steps end within 1 % of each other."""
    curves = {}
    for dtype in ("fp32", "bf16"):
        options = ["max_steps=200", "epochs=4", f"dtype={dtype}", f"output_dir={tmp_path / dtype}"]
        tune("ift_recipe", "--config", "tiny_ift.yaml", *options, cwd=tmp_path)
        rows = [json.loads(line) for line in (tmp_path / dtype / "metrics.jsonl").read_text().splitlines()]
        curves[dtype] = [row["loss"] for row in rows]
        assert len(rows) == 200
    ends = {dtype: statistics.mean(losses[-20:]) for dtype, losses in curves.items()}
    assert ends["bf16"] == pytest.approx(ends["fp32"], rel=0.01)
    assert ends["fp32"] < 0.9 * curves["fp32"][0]  # it has learned something to differ in


def test_module_computes_in_the_asked_dtype(train_config, world):
    seen = set()
    module = build_module(train_config("dtype=bf16"), world, FINE_TUNING)
    assert isinstance(module, ResponseLoss)
    for layer in module.model.decoder.layers:
        layer.register_forward_hook(lambda m, i, out: seen.add(out.dtype))
        getattr(layer, "layer", layer).register_forward_hook(lambda m, i, out: seen.add(out.dtype))
    (batch,) = next(epoch_batches(build_loader(train_config(), world), 0, 1))
    assert module(batch, torch.zeros(8, 128)).dtype is torch.float32
    assert seen == {torch.bfloat16}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["batch_size=0"], "batch_size: 0 is not above 0"),
        (["seed=-1"], "seed: -1 is below 0"),
        (["optimizer.lr=-0.001"], "optimizer.lr: -0.001 is not a number above 0"),
        (["proxy.lr=-1"], "proxy.lr: -1.0 is not a number above 0"),
        (["clip_grad_norm=-1"], "clip_grad_norm: -1.0 is not above 0"),
        (["proxy.num_vectors=0"], "proxy.num_vectors: 0 is below 1"),
        (["dtype=fp16"], "dtype: 'fp16' is not one of fp32, bf16"),
        (["proxy.rule=follow"], "proxy.rule: 'follow' is not one of restart, track, fix, update$"),
        (["proxy.rule=none"], "proxy.rule: 'none' is no rule; .* give instruction=... alone"),
        (["instruction=' '"], "instruction: is empty"),
        (["tuning.encoder=frozen", "tuning.fusion=frozen", "proxy.rule=fix"], "nothing is left to train"),
        (["tuning.encoder=frozen", "tuning.fusion=frozen", "instruction=Describe"], "nothing is left to train"),
        (["tuning.vision=full"], "tuning: 'vision' is not one of encoder, fusion, decoder"),
        (["tuning.encoder=null"], "tuning.encoder: give one of frozen, full"),
        (["tuning.encoder=thawed"], "tuning.encoder: 'thawed' is not one of frozen, full"),
        (["tuning.encoder={lr: 1.0e-5}"], "tuning.encoder: .* names no method"),
        (["tuning.encoder={method: full, lr: -1}"], "tuning.encoder.lr: -1 is not a number above 0"),
        (["tuning.decoder={method: frozen, lr: 1}"], "tuning.decoder.lr: 1 has no effect on a frozen part"),
        (["tuning.encoder={method: full, rank: 8}"], "tuning.encoder.rank: the method takes no such argument"),
        ([], "proxy.path: give the proxy_instruction.safetensors"),
    ],
)
def test_bad_settings_are_named(train_config, overrides, message):
    with pytest.raises(ConfigError, match=message):
        check_settings(train_config(*overrides))


def test_step_larger_than_the_data_is_named(train_config, world):
    with pytest.raises(ConfigError, match=r"batch_size: one step takes 100 samples .* the dataset has 64"):
        build_loader(train_config("batch_size=100"), world)
