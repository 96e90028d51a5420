"""The memory table's functions against what a step of the miniature really holds."""

import json
from dataclasses import replace

import pytest
import torch

from ift_components.distributed import World
from ift_components.models import tiny_llama3_2_vision
from ift_components.models.sharding import RECOMPUTED, checkpoint_activations
from ift_components.models.trainable import FINE_TUNING, WARM_UP, Tuning
from ift_components.proxy import UpdateRule
from ift_components.training.activations import meta_model, traced_bytes
from ift_components.training.checks import check_settings
from ift_components.training.data import build_loader, epoch_batches
from ift_components.training.layout import settle_layout
from ift_components.training.memory import (
    activation_bytes,
    parameter_counts,
    peak_bytes,
    quantised_bytes,
    static_bytes,
)


@pytest.mark.parametrize(("dtype", "frozen_bytes"), [("fp32", 4), ("bf16", 2)])
def test_static_memory_is_what_a_step_holds(train_config, world, make_trainer, *, dtype, frozen_bytes):
    cfg = train_config(f"dtype={dtype}", "clip_grad_norm=null")
    trainer = make_trainer(cfg, UpdateRule.FIX)
    module = trainer.module
    held = []

    def measure(*_):  # the optimizer has its state and the gradients are still there
        tensors = [*module.parameters(), *(p.grad for p in module.parameters() if p.grad is not None)]
        tensors += [v for state in trainer.optimizer.state.values() for key, v in state.items() if key != "step"]
        held.append(sum(t.numel() * t.element_size() for t in tensors))

    trainer.optimizer.register_step_post_hook(measure)
    trainer.step(next(epoch_batches(build_loader(cfg, world), 0, 1)))
    expected = static_bytes(*parameter_counts(module), 1, frozen_bytes)
    assert held == [pytest.approx(expected, rel=1e-3)]


def small():
    """The miniature with two language layers."""
    return tiny_llama3_2_vision(num_layers=2)


def allocated_peak(step, path):
    """Return the most bytes that torch's allocator handed out at a time during a step, by its own record."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    profile.export_chrome_trace(str(path))
    events = sorted(
        (event["ts"], event["args"]["Total Allocated"], event["args"]["Bytes"])
        for event in json.loads(path.read_text())["traceEvents"]
        if event.get("name") == "[memory]"
    )
    _, total, size = events[0]
    return max(event[1] for event in events) - (total - size)


@pytest.mark.parametrize(
    ("stage", "recomputed", "responses", "dtype"),
    [
        ("fine-tuning", "none", 1, "fp32"),
        ("fine-tuning", "language", 1, "bf16"),
        ("fine-tuning", "encoder", 3, "bf16"),
        ("fine-tuning", "all", 1, "fp32"),
        ("warm-up", "none", 3, "bf16"),
        ("warm-up", "all", 1, "bf16"),
    ],
)
def test_traced_peak_is_what_a_step_allocates(
    train_config, world, make_trainer, tmp_path, *, stage, recomputed, responses, dtype
):
    """Without what lies there all along: temporaries, activations and gradients alone, which makes the comparison strict."""
    tuning = {"fine-tuning": FINE_TUNING, "warm-up": WARM_UP}[stage]
    rule = UpdateRule.UPDATE if stage == "warm-up" else UpdateRule.TRACK
    options = [f"activation_checkpointing={recomputed}", f"dtype={dtype}", f"dataset.responses_per_image={responses}"]
    cfg = train_config(*options, "batch_size=8", "optimizer.fused=true", "model.num_layers=2")
    trainer = make_trainer(cfg, rule, tuning)
    batches = next(epoch_batches(build_loader(cfg, world), 0, 1))
    trainer.step(batches)
    measured = allocated_peak(lambda: trainer.step(batches), tmp_path / "trace.json")
    compute = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
    model = meta_model(small, tuning, compute, batches[0].tokens.shape[1])
    checkpoint_activations(model, recomputed)
    assert traced_bytes(model, batches[0], compute) == pytest.approx(measured, rel=0.1)


class Machine(World):
    """A process whose machine has so much memory free."""

    free = 0

    def free_memory(self):
        return self.free


def test_auto_recomputes_the_least_that_fits(train_config, world):
    cfg = train_config("activation_checkpointing=auto", "batch_size=8", "model.num_layers=2")
    tuning = check_settings(replace(cfg, instruction="x")).tuning
    batch = next(epoch_batches(build_loader(cfg, world), 0, 1))[0]
    peaks = {}
    for recomputed in RECOMPUTED:
        model = meta_model(small, tuning, torch.float32, batch.tokens.shape[1])
        checkpoint_activations(model, recomputed)
        peaks[recomputed] = peak_bytes(model, batch, torch.float32)
    assert peaks["none"] > peaks["encoder"] > peaks["all"]
    assert peaks["none"] > peaks["language"] > peaks["all"]
    machine = Machine(world.rank, world.size, world.device, world.mesh)

    def chosen(free):
        Machine.free = free
        return settle_layout(cfg, machine, tuning, batch).activation_checkpointing

    assert chosen(10**12) == "none"
    assert chosen(int(peaks["none"] / 0.9) - 10**5) != "none"
    assert chosen(1) == "all"  # the least there is, with a line that says so


def test_auto_traces_adapters_on_a_quantised_base_in_bf16(train_config, world):
    options = ["activation_checkpointing=auto", "dtype=bf16", "model.num_layers=2", "frozen_dtype=nf4"]
    tuning = Tuning.parse({"encoder": "lora", "fusion": "lora", "decoder": "lora"})
    cfg = train_config(*options)
    batch = next(epoch_batches(build_loader(cfg, world), 0, 1))[0]
    model = meta_model(small, tuning, torch.bfloat16, batch.tokens.shape[1])
    machine = Machine(world.rank, world.size, world.device, world.mesh)
    Machine.free = int((peak_bytes(model, batch, torch.bfloat16) - quantised_bytes(model)) / 0.9) + 10**5
    assert settle_layout(cfg, machine, tuning, batch).activation_checkpointing == "none"


def test_what_is_named_is_taken_as_it_is(train_config, world):
    cfg = train_config("activation_checkpointing=encoder")
    assert settle_layout(cfg, world, FINE_TUNING, None).activation_checkpointing == "encoder"


def test_frozen_weights_are_sharded_only_where_they_do_not_fit(train_config, world):
    cfg = train_config("activation_checkpointing=none", "batch_size=2", "tuning.fusion=frozen", "model.num_layers=2")
    tuning = check_settings(replace(cfg, instruction="x")).tuning
    batch = next(epoch_batches(build_loader(cfg, world), 0, 1))[0]
    model = meta_model(small, tuning, torch.float32, batch.tokens.shape[1])
    whole, sharded = (
        peak_bytes(model, batch, torch.float32, shards=2, shard_frozen=shard_frozen) for shard_frozen in (False, True)
    )
    assert sharded < whole

    class Pair(Machine):
        def smallest(self, value):
            return value

        def broadcast(self, value):
            return value

    machine = Pair(0, 2, world.device, world.mesh)
    for free, expected in ((whole / 0.9 + 10**5, "whole"), (whole / 0.9 - 10**5, "sharded")):
        Machine.free = int(free)
        assert settle_layout(cfg, machine, tuning, batch).frozen_weights == expected


def test_activations_of_more_tiles_are_the_layers_inputs():
    """In bf16: image tokens 1280 wide into 40 layers and 7680 wide into the output, 4096 wide out of it; the text; logits."""
    text = 2 * 80 * 4096 * 40 + 4 * 60 * 128_256
    for grid, tile_padding, seen, inside in (((1, 2), "none", 2 * 1601, 2 * 1601), ((1, 1), "meta", 1601, 2 * 1602)):
        image = 2 * (seen * (7680 + 4096) + inside * 1280 * 40)
        kept = activation_bytes(FINE_TUNING, grid=grid, tile_padding=tile_padding)
        assert kept == pytest.approx(image + text, rel=0.15)
    assert activation_bytes(WARM_UP, grid=(2, 2)) == pytest.approx(2 * 4 * 1601 * 4096 + text, rel=0.05)
