"""Sharding, precision and layout options change where a run computes, not what."""

import json

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.distributed.tensor import DTensor

from ift_components.distributed import World
from ift_components.errors import ConfigError
from ift_components.models import tiny_llama3_2_vision
from ift_components.models.forward import ResponseLoss
from ift_components.models.hf_layout import hf_config, save_checkpoint
from ift_components.models.tile_padding import set_tile_padding
from ift_components.models.trainable import FINE_TUNING, WARM_UP, Tuning, apply_tuning
from ift_components.proxy import UpdateRule, random_theta
from ift_components.training.checks import Stage, check_settings
from ift_components.training.data import build_loader, build_validation_loader, epoch_batches
from ift_components.training.memory import communication_bytes
from ift_components.training.run import TrainingRun
from ift_components.training.setup import build_module, leave_weights


@pytest.fixture
def train(make_trainer, world):
    def run(cfg, steps=3):
        trainer = make_trainer(cfg)
        batches = epoch_batches(build_loader(cfg, world), 0, 1)
        return [trainer.step(next(batches))["loss"] for _ in range(steps)], trainer

    return run


@pytest.mark.parametrize(
    "option",
    ["cpu_offload=true", "activation_checkpointing=all", pytest.param("compile=true", marks=pytest.mark.slow)],
)
def test_option_keeps_the_losses(train_config, train, option):
    plain, _ = train(train_config())
    losses, trainer = train(train_config(option))
    assert losses == pytest.approx(plain, abs=1e-5)
    names = " ".join(type(module).__name__ for module in trainer.module.modules())
    compiled = [m for m in trainer.module.modules() if m._compiled_call_impl is not None]
    assert ("FSDP" in names, "CheckpointWrapper" in names, bool(compiled)) == (
        option.startswith("cpu_offload"),
        option.startswith("activation"),
        option.startswith("compile"),
    )


def test_every_shard_group_is_of_one_dtype(train_config, world):
    for tuning in (WARM_UP, FINE_TUNING):
        # Under offloading one process shards frozen weights too, as several do.
        module = build_module(train_config("dtype=bf16", "cpu_offload=true"), world, tuning)
        groups = 0
        for unit in module.modules():
            state = getattr(unit, "_get_fsdp_state", lambda: None)()
            group = state._fsdp_param_group if state is not None else None
            if group is not None:
                groups += 1
                assert len({p.sharded_param.dtype for p in group.fsdp_params}) == 1, type(unit)
        assert groups > len(module.model.decoder.layers)


@pytest.mark.parametrize("offload", ["true", "false"])  # frozen weights in shards, or whole
def test_checkpoint_loads_into_shards_in_the_right_precision(train_config, world, tmp_path, offload):
    plain = build_module(train_config(), world, FINE_TUNING).model
    save_checkpoint(tmp_path / "c", plain.state_dict(), hf_config(plain), dtype=torch.bfloat16)
    more = [f"checkpoint_dir={tmp_path / 'c'}", "dtype=bf16", "model.init_seed=9", f"cpu_offload={offload}"]
    module = build_module(train_config(*more), world, FINE_TUNING)
    wanted = dict(plain.named_parameters())
    for name, parameter in module.model.named_parameters():
        assert parameter.dtype is (torch.float32 if parameter.requires_grad else torch.bfloat16)
        if "embedding" in name and "clip" in name:
            continue  # positions of grids that four tiles cannot form are not kept
        expected = wanted[name].detach().to(torch.bfloat16)
        whole = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
        assert torch.equal(whole.to(torch.bfloat16), expected), name


@pytest.mark.parametrize("tuning", [WARM_UP, FINE_TUNING])
def test_one_process_gathers_no_frozen_weight(train_config, world, tuning):
    """A copy of every frozen weight in every pass would be all that sharding over one process does."""
    module = build_module(train_config("dtype=bf16"), world, tuning)
    for name, parameter in module.named_parameters():
        assert isinstance(parameter, DTensor) is parameter.requires_grad, name
    offloaded = build_module(train_config("dtype=bf16", "cpu_offload=true"), world, tuning)
    # Under offloading gathering is what brings a weight to the device.
    assert all(isinstance(parameter, DTensor) for parameter in offloaded.parameters())


def test_part_learning_rates_and_validation(train_config, world, tmp_path, prepared):
    val = [
        "val_dataset._component_=ift_components.data.report_dataset",
        f"val_dataset.source={prepared}",
        "val_dataset.split=val",
    ]
    options = [
        "tuning.encoder={method: full, lr: 0.5}",
        "proxy.lr=0.25",
        "max_steps=3",
        "val_every_steps=2",
        "batch_size=3",
        *val,
    ]
    cfg = train_config(*options)
    run = TrainingRun(cfg, world, Stage(Tuning.parse(cfg.tuning), UpdateRule.TRACK))
    run.prepare()
    rates = {group["name"]: group["lr"] for group in run.trainer.optimizer.param_groups}
    assert rates == {"proxy": 0.25, "encoder": 0.5, "fusion": 3e-4}
    by_hand = torch.zeros(2, dtype=torch.float64)
    for batch in run.val_loader:  # 8 samples in batches of 3
        with torch.no_grad():
            by_hand += torch.tensor([float(run.trainer.loss(batch)), len(batch.labels)])
    assert run.trainer.validation_losses(run.val_loader)["val_loss"] == pytest.approx(
        float(by_hand[0] / by_hand[1]), abs=1e-6
    )
    run.train()
    rows = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert [("val_loss" in row) for row in rows] == [False, True, True]  # every second step, and the last


@pytest.mark.parametrize("processes", [2, 3, 5])
def test_validation_sees_every_sample_once_however_many_share_it(train_config, prepared, world, processes):
    val = ["val_dataset._component_=ift_components.data.report_dataset", f"val_dataset.source={prepared}"]
    cfg = train_config(*val, "val_dataset.split=val", "batch_size=2")
    seen, lengths = [], []
    for rank in range(processes):
        loader = build_validation_loader(cfg, World(rank, processes, world.device, world.mesh))
        batches = list(loader)
        lengths.append(len(batches))
        seen += [(batch.ids[i], n) for batch in batches for i, n in enumerate(_labels_by_row(batch))]
    assert len(set(lengths)) == 1  # processes gather shards together: the same number of forward passes
    whole = [(b.ids[i], n) for b in build_validation_loader(cfg, world) for i, n in enumerate(_labels_by_row(b))]
    assert sorted(pair for pair in seen if pair[1]) == sorted(whole)


def _labels_by_row(batch):
    width = batch.tokens.shape[1]
    return [int(((batch.response_index // width) == row).sum()) for row in range(len(batch.ids))]


def test_uneven_copies_are_named(world):
    with pytest.raises(ConfigError, match="3 copies of the model cannot be shared evenly by 4 processes"):
        World(0, 4, world.device, world.mesh).sharding_mesh(3)


_LATE = """
import os
import time
from torch.optim.lr_scheduler import LambdaLR

class Constant(LambdaLR):
    def __init__(self, optimizer, num_training_steps):
        self.steps = num_training_steps
        super().__init__(optimizer, lambda step: 1.0)

    def step(self):
        super().step()
        if self.last_epoch == self.steps and int(os.environ["RANK"]) >= int(os.environ["WORLD_SIZE"]) // 2:
            time.sleep(3)
"""


@pytest.mark.parametrize("processes", [4, 2])  # two shards of each copy; every process a whole copy
def test_processes_in_two_copies_repeat_one(tune, train_config, world, make_trainer, *, tmp_path, processes):
    cfg = train_config("batch_size=8", "instruction=x")
    out = tmp_path / "copies"
    options = [f"data={cfg.data}", "instruction=x", f"output_dir={out}"]
    more = ["checkpoint_dir=null", "max_steps=3", "num_workers=0", f"batch_size={8 // processes}"]
    command = ["ift_recipe", "--config", "tiny_ift.yaml", *options, *more, "data_parallel_replicate_dim=2"]
    # The second copy comes late to the end: the first can gather and write the checkpoint without it.
    (tmp_path / "late.py").write_text(_LATE)
    command.append("lr_scheduler._component_=late.Constant")
    tune("--nproc_per_node", str(processes), *command, cwd=tmp_path)
    losses = [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    trainer = make_trainer(cfg, rule=None)
    batches = epoch_batches(build_loader(cfg, world), 0, 1)
    assert losses == pytest.approx([trainer.step(next(batches))["loss"] for _ in range(3)], abs=1e-5)


def test_meta_tile_padding_trains_in_that_layout(train_config, train, world):
    losses, trainer = train(train_config("tile_padding=meta", "dtype=bf16", "activation_checkpointing=all"))
    plain, _ = train(train_config())
    assert losses[0] != pytest.approx(plain[0], abs=1e-3)
    model = tiny_llama3_2_vision()
    apply_tuning(model, FINE_TUNING)
    set_tile_padding(model, "meta")
    batches = next(epoch_batches(build_loader(train_config(), world), 0, 1))
    proxy = random_theta(8, 128, 0)
    by_hand = ResponseLoss(model)(batches[0], proxy).item() / len(batches[0].labels)
    assert losses[0] == pytest.approx(by_hand, rel=1e-3)
    assert losses[-1] < losses[0]
    assert trainer.steps == 3


def test_activation_offloading_needs_cuda(train_config, world):
    with pytest.raises(ConfigError, match="activation_offloading: needs device=cuda, and the run is on cpu"):
        TrainingRun(train_config("activation_offloading=true"), world, Stage(FINE_TUNING, UpdateRule.TRACK)).prepare()


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_weights_are_not_offloaded(train_config, world, make_trainer, dtype):
    """What is left to offload does not grow with the weights, whole or gathered by FSDP, nor does it leave activations out."""
    cfg = train_config(f"dtype={dtype}")
    trainer = make_trainer(cfg)
    batch = next(epoch_batches(build_loader(cfg, world), 0, 1))[0]
    packed = []
    trainer.saved_activations = leave_weights(
        saved_tensors_hooks(lambda saved: packed.append(saved) or (saved,), lambda pair: pair[0])
    )
    trainer.loss(batch).sum().backward()
    shapes = {tuple(sorted(p.shape)) for p in trainer.module.parameters() if p.dim() == 2}
    assert not [tensor.shape for tensor in packed if tuple(sorted(tensor.shape)) in shapes]
    tokens = 4 * 37  # of a batch of four pictures
    width = trainer.module.model.encoder.clip.conv.out_channels
    assert sum(tensor.numel() for tensor in packed) > 4 * 5 * tokens * width  # at least four in each of five layers


_COUNT = """
import json
import sys
from pathlib import Path
from torch.utils._python_dispatch import TorchDispatchMode
from ift_components.config import load_config
from ift_components.distributed import distributed
from ift_components.proxy import UpdateRule
from ift_components.training.data import build_loader, epoch_batches
from ift_components.training.loop import Trainer
from ift_components.training.checks import check_settings
from ift_components.training.settings import TrainSettings
from ift_components.training.setup import build_module, build_optimizer, parameter_groups

class Collectives(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.gathered, self.reduced = [], []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = str(function)
        if name.startswith("c10d._allgather_base_"):
            self.gathered.append(args[0].numel() * args[0].element_size())
        elif name.startswith("c10d._reduce_scatter_base_"):
            self.reduced.append(args[1].numel() * args[1].element_size())
        elif name.startswith("c10d.") and "allreduce" not in name:
            raise AssertionError(name)
        return function(*args, **(kwargs or {}))

cfg = load_config("tiny_ift.yaml", sys.argv[1:], TrainSettings)
stage = check_settings(cfg)
with distributed("cpu") as world:
    module = build_module(cfg, world, stage.tuning)
    groups = parameter_groups(module, None)
    optimizer = build_optimizer(cfg, stage.tuning, groups)
    trainer = Trainer(module=module, proxy=None, groups=groups, optimizer=optimizer, world=world)
    batches = next(epoch_batches(build_loader(cfg, world), 0, 1))
    with Collectives() as seen:
        trainer.step(batches)
    if world.is_main:
        Path(cfg.output_dir).write_text(json.dumps([seen.gathered, seen.reduced]))
"""


@pytest.mark.parametrize("frozen_weights", ["whole", "sharded"])
@pytest.mark.parametrize("recomputed", ["none", "all"])
def test_collectives_are_those_of_the_table(tune, prepared, tmp_path, frozen_weights, recomputed):
    """Two processes: frozen weights that are whole never travel, and what does is what the memory table counts."""
    (tmp_path / "count_collectives.py").write_text(_COUNT)
    options = [f"data={prepared}", "instruction=x", "checkpoint_dir=null", f"output_dir={tmp_path / 'seen.json'}"]
    more = ["num_workers=0", "batch_size=2", "dtype=bf16", f"frozen_weights={frozen_weights}"]
    more.append(f"activation_checkpointing={recomputed}")
    tune("--nproc_per_node", "2", "count_collectives", *options, *more, cwd=tmp_path)
    gathered, reduced = json.loads((tmp_path / "seen.json").read_text())
    model = tiny_llama3_2_vision()
    apply_tuning(model, FINE_TUNING)
    shard_frozen = frozen_weights == "sharded"
    expected = communication_bytes(model, torch.bfloat16, 2, shard_frozen=shard_frozen)
    # An odd first dimension is padded to an even one; a process receives half of what is put together.
    assert (sum(gathered) / 2, sum(reduced) / 2) == pytest.approx(expected, rel=0.01)
    trained = 2 * sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert (sum(gathered) > 2.02 * trained) is shard_frozen
    assert len(gathered) < 2 * len(list(model.modules()))


def test_a_warm_up_of_several_processes_sends_no_weight(train_config, world):
    module = build_module(train_config("dtype=bf16", "frozen_weights=whole"), world, WARM_UP)
    assert not any(isinstance(parameter, DTensor) for parameter in module.parameters())
    assert communication_bytes(module.model, torch.bfloat16, 8, shard_frozen=False) == (0, 0)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("activation_checkpointing=true", "'True' is not one of none, language, encoder, all, auto"),
        ("frozen_weights=half", "frozen_weights: 'half' is not one of whole, sharded, auto"),
    ],
)
def test_unknown_layouts_are_named(train_config, option, message):
    with pytest.raises(ConfigError, match=message):
        check_settings(train_config(option, "instruction=x"))


def test_auto_does_not_go_with_offloading(train_config):
    cfg = train_config("activation_checkpointing=auto", "activation_offloading=true", "instruction=x")
    with pytest.raises(ConfigError, match="activation_offloading takes it away"):
        check_settings(cfg)
    with pytest.raises(ConfigError, match="'whole' does not go with cpu_offload"):
        check_settings(train_config("frozen_weights=whole", "cpu_offload=true", "instruction=x"))


@pytest.mark.gpu
def test_offloading_on_cuda_keeps_the_losses(tune, prepared, tmp_path):
    """Activations and shards in host memory change where things lie, not the losses."""
    losses = {}
    for name, changes in {"plain": [], "offloaded": ["activation_offloading=true", "cpu_offload=true"]}.items():
        out = tmp_path / name
        options = [f"data={prepared}", "instruction=x", f"output_dir={out}"]
        more = ["device=cuda", "dtype=bf16", "max_steps=3", *changes]
        tune("ift_recipe", "--config", "tiny_ift.yaml", *options, *more, cwd=tmp_path, real=True)
        losses[name] = [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert losses["offloaded"] == pytest.approx(losses["plain"], rel=1e-3)
