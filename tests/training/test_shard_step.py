"""A step on shards is the step on sharded tensors: to the bit in one process, to 1e-7 in two; checkpoints hold the same."""

import json

import pytest
import torch
from torch.distributed.tensor import DTensor

from ift_components.proxy import UpdateRule
from ift_components.training.checkpoint import _fill_optimizer_state, tensors
from ift_components.training.data import build_loader, epoch_batches
from ift_components.training.shard_step import own_shards, squared_norms

OPTIMIZERS = {
    "adamw": ["optimizer.fused=true"],
    "sgd": ["optimizer._component_=torch.optim.SGD", "optimizer.momentum=0.9"],
}


@pytest.fixture
def pair(make_trainer):
    """A function that gives two trainers of one config: with the optimizer over shards, and over sharded tensors."""

    def make(cfg):
        ours, theirs = make_trainer(cfg, UpdateRule.UPDATE), make_trainer(cfg, UpdateRule.UPDATE)
        for parameters, group in zip(theirs.groups.values(), theirs.optimizer.param_groups, strict=True):
            group["params"] = list(parameters)
        return ours, theirs

    return make


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_one_process_steps_to_the_bit(train_config, world, pair, optimizer):
    cfg = train_config("dtype=bf16", "clip_grad_norm=0.1", *OPTIMIZERS[optimizer])
    ours, theirs = pair(cfg)
    assert any(isinstance(p, DTensor) for p in ours.groups["encoder"])
    for batches in list(epoch_batches(build_loader(cfg, world), 0, 1))[:3]:
        assert ours.step(batches) == theirs.step(batches)
    for mine, other in zip(ours.module.parameters(), theirs.module.parameters(), strict=True):
        local, expected = (p.to_local() if isinstance(p, DTensor) else p for p in (mine, other))
        assert torch.equal(local, expected)
    # What a checkpoint holds has the same names and layouts, and the same values.
    held, expected = tensors(ours, 0), tensors(theirs, 0)
    assert held.keys() == expected.keys()
    for name, value in held.items():
        assert type(value) is type(expected[name]), name
        whole, other = (v.full_tensor() if isinstance(v, DTensor) else v for v in (value, expected[name]))
        assert torch.equal(whole, other) or name.startswith("rng"), name


def test_norm_is_torchs_over_sharded_tensors(train_config, world, pair):
    cfg = train_config("dtype=bf16")
    trainer, _ = pair(cfg)
    ((batch,),) = list(epoch_batches(build_loader(cfg, world), 0, 1))[:1]
    trainer.loss(batch).sum().backward()
    trainer.proxy.collect_gradient()
    for part, parameters in trainer.groups.items():
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        assert squared_norms({part: parameters}, 1, world.device).sqrt().item() == norm.item()


def test_state_is_loaded_into_what_the_optimizer_holds(train_config, pair):
    ours, _ = pair(train_config("dtype=bf16"))
    _fill_optimizer_state(ours)
    held = tensors(ours, 0)
    name = next(key for key in held if key.endswith("/exp_avg") and isinstance(held[key], DTensor))
    with torch.no_grad():
        held[name].fill_(3.0)  # as loading does, in place
    states = [state["exp_avg"] for state in ours.optimizer.state.values()]
    assert sum(bool((state == 3.0).all()) for state in states) == 1


def test_whole_parameters_stay_themselves():
    parameter = torch.nn.Parameter(torch.ones(3))
    assert own_shards([parameter])[0] is parameter


_TWO = """
import json
import sys
from pathlib import Path
import torch
from torch.distributed.tensor import DTensor
from ift_components.config import load_config
from ift_components.distributed import distributed
from ift_components.training.data import build_loader, epoch_batches
from ift_components.training.loop import Trainer
from ift_components.training.checks import check_settings
from ift_components.training.settings import TrainSettings
from ift_components.training.setup import build_module, build_optimizer, parameter_groups
from ift_components.training.shard_step import squared_norms

cfg = load_config("tiny_ift.yaml", sys.argv[1:], TrainSettings)
stage = check_settings(cfg)
with distributed("cpu") as world:
    trainers = []
    for is_ours in (True, False):
        module = build_module(cfg, world, stage.tuning)
        groups = parameter_groups(module, None)
        optimizer = build_optimizer(cfg, stage.tuning, groups)
        if not is_ours:
            for parameters, group in zip(groups.values(), optimizer.param_groups):
                group["params"] = list(parameters)
        options = dict(world=world, clip_grad_norm=0.1)
        trainers.append(Trainer(module=module, proxy=None, groups=groups, optimizer=optimizer, **options))
    batches = list(epoch_batches(build_loader(cfg, world), 0, 1))[:3]
    rows = [[trainer.step(batch) for batch in batches] for trainer in trainers]
    difference = max(
        float((a.full_tensor() - b.full_tensor()).abs().max()) if isinstance(a, DTensor) else 0.0
        for a, b in zip(trainers[0].module.parameters(), trainers[1].module.parameters())
    )
    ours = trainers[0]
    for batch in batches[0]:
        ours.loss(batch).sum().backward()
    norms = {}
    for part, parameters in ours.groups.items():
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters]).full_tensor().item()
        norms[part] = [world.sum(squared_norms({part: parameters}, world.size, world.device)).sqrt().item(), norm]
    if world.is_main:
        Path(cfg.output_dir).write_text(json.dumps([rows, difference, norms]))
"""


@pytest.mark.parametrize(("processes", "copies"), [(2, 1), (4, 2)])
def test_several_processes_step_alike(tune, prepared, tmp_path, processes, copies):
    """Also where some hold copies of the same shards, which count once in the norm."""
    (tmp_path / "step_twice.py").write_text(_TWO)
    options = [f"data={prepared}", "instruction=x", "checkpoint_dir=null", f"output_dir={tmp_path / 'seen.json'}"]
    more = ["num_workers=0", "batch_size=2", "dtype=bf16", f"data_parallel_replicate_dim={copies}"]
    tune("--nproc_per_node", str(processes), "step_twice", *options, *more, cwd=tmp_path)
    (ours, theirs), difference, norms = json.loads((tmp_path / "seen.json").read_text())
    assert len(ours) == 3
    for row, other in zip(ours, theirs, strict=True):
        assert row == pytest.approx(other, rel=1e-7)
    assert difference <= 1e-7
    assert set(norms) == {"encoder", "fusion"}
    for norm, expected in norms.values():
        assert norm == pytest.approx(expected, rel=1e-6)
