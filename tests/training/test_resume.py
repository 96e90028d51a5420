"""Interrupted runs: what they continue to is what they would have been, to the bit; damage and full disks are survived."""

import json
import os
import random
import re
import signal
import subprocess
import time
from types import SimpleNamespace

import pytest
import torch
from launching import launch
from safetensors.torch import load_file
from torch import nn
from torch.distributed.checkpoint.metadata import TensorProperties, TensorStorageMetadata

from ift_components.errors import ConfigError, UserError
from ift_components.models.trainable import FINE_TUNING
from ift_components.proxy import UpdateRule, random_theta, save_proxy
from ift_components.training.checkpoint import Checkpointer, _prepare_optimizer
from ift_components.training.run import STOPPED, TrainingRun
from ift_components.training.settings import Stage

STEPS = 9
OPTIONS = [
    "dataset.limit=20",
    "epochs=2",
    "checkpoint_every_steps=2",
    "keep_last=2",
    "max_steps=9",
    "proxy.momentum=0.9",
]
SCHEDULE = "lr_scheduler._component_=torchtune.training.lr_schedulers.get_cosine_schedule_with_warmup"


class KilledError(Exception):
    """Stands for a kill in tests that run in this process."""


def weights(folder):
    return {path.name: load_file(path) for path in (folder / "checkpoint").glob("*.safetensors")}


def assert_identical(left, right):
    assert left.keys() == right.keys()
    for name, tensors in left.items():
        assert tensors.keys() == right[name].keys()
        for key, value in tensors.items():
            assert torch.equal(value, right[name][key]), f"{name}: {key}"


def losses(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    return [row["loss"] for row in rows]


def run(cfg, world, *, stop_after=None):
    """Train; after `stop_after` steps the run dies without any goodbye, its checkpoints so far written."""
    training = TrainingRun(cfg, world, Stage(FINE_TUNING, UpdateRule(cfg.proxy.rule)))
    training.prepare()
    step = training.trainer.step

    def deadly(batches):
        if training.trainer.steps == stop_after:
            training.checkpointer.wait()  # its thread would outlive this death, as it would not a real one
            raise KilledError
        return step(batches)

    training.trainer.step = deadly
    training.train()
    return training


@pytest.fixture
def config(train_config, tmp_path):
    def make(name, *overrides):
        return train_config(
            *OPTIONS, SCHEDULE, "lr_scheduler.num_warmup_steps=2", f"output_dir={tmp_path / name}", *overrides
        )

    return make


@pytest.mark.parametrize(
    ("more", "workers"),
    [(["proxy.rule=track"], 2), (["proxy.rule=restart"], 0), (["dtype=bf16", "optimizer.fused=true"], 0)],
)
def test_resumed_run_is_bit_identical(config, world, tmp_path, more, workers):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run(config("whole", *more), world)
    options = [*more, "resume=true"]
    for stop in (1, 3, 6, 7):  # before the first checkpoint, between two, just after one, in the second epoch
        with pytest.raises(KilledError):
            run(config("parts", *options, f"num_workers={workers}"), world, stop_after=stop)
    run(config("parts", *options), world)
    assert losses(parts) == losses(whole)
    assert len(losses(whole)) == STEPS
    assert_identical(weights(parts), weights(whole))


@pytest.mark.parametrize("fused", [True, False])
def test_step_counts_wait_where_the_optimizer_keeps_them(fused):
    parameter = nn.Parameter(torch.empty(3, device="meta"))  # stands for a GPU
    optimizer = torch.optim.AdamW([parameter], lr=1e-3)
    optimizer.param_groups[0]["fused"] = fused
    trainer = SimpleNamespace(
        optimizer=optimizer, proxy=None, module=SimpleNamespace(model=nn.ParameterDict({"w": parameter}))
    )
    shapes = {"exp_avg": torch.Size([3]), "step": torch.Size([])}
    entries = {
        f"optimizer/w/{name}": TensorStorageMetadata(TensorProperties(torch.float32), shape, [])
        for name, shape in shapes.items()
    }
    _prepare_optimizer(trainer, entries)
    devices = {name: value.device.type for name, value in optimizer.state[parameter].items()}
    assert devices == {"exp_avg": "meta", "step": "meta" if fused else "cpu"}


def test_only_the_newest_checkpoints_are_kept_whole(config, world, tmp_path):
    run(config("kept"), world)
    folder = tmp_path / "kept" / "resume"
    assert sorted(path.name for path in folder.iterdir()) == ["step_00000006", "step_00000008"]
    state = json.loads((folder / "step_00000008" / "state.json").read_text())
    assert (state["step"], state["global_batch_size"]) == (8, 4)


def test_damaged_checkpoint_is_passed_over_with_a_warning(config, world, tmp_path, caplog):
    cfg = config("damaged", "resume=true")
    with pytest.raises(KilledError):
        run(cfg, world, stop_after=7)
    newest = tmp_path / "damaged" / "resume" / "step_00000006"
    shard = next(newest.glob("*.distcp"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    run(config("whole"), world)
    training = run(cfg, world)
    assert re.search(
        r"step_00000006 is damaged \(.*distcp has changed\); the checkpoint before it is used", caplog.text
    )
    assert losses(tmp_path / "damaged") == losses(tmp_path / "whole")
    assert training.trainer.steps == STEPS


def test_truncated_checkpoint_is_passed_over(config, world, tmp_path):
    cfg = config("truncated", "resume=true")
    with pytest.raises(KilledError):
        run(cfg, world, stop_after=5)
    folder = tmp_path / "truncated" / "resume"
    assert Checkpointer(folder, world, 2).latest() == folder / "step_00000005"  # the epoch's end
    shard = next((folder / "step_00000005").glob("*.distcp"))
    os.truncate(shard, 100)
    assert Checkpointer(folder, world, 2).latest() == folder / "step_00000004"
    shard.unlink()
    assert Checkpointer(folder, world, 2).latest() == folder / "step_00000004"


def test_changed_config_is_named(config, world, tmp_path):
    with pytest.raises(KilledError):
        run(config("changed", "resume=true"), world, stop_after=3)
    with pytest.raises(ConfigError, match=r"resume: proxy, seed differ .* proxy was .*track.* is now .*restart"):
        run(config("changed", "resume=true", "seed=1", "proxy.rule=restart"), world)
    with pytest.raises(ConfigError, match=r"one step took 4 samples and would now take 2"):
        run(config("changed", "resume=true", "batch_size=2"), world)


def test_finished_run_is_not_resumed(config, world):
    run(config("finished"), world)
    with pytest.raises(ConfigError, match="is finished; give another output_dir"):
        run(config("finished", "resume=true"), world)


def test_full_disk_keeps_the_last_good_checkpoint(config, world, tmp_path):
    """A tmpfs with room for one checkpoint and a half."""
    mount = tmp_path / "small"
    mount.mkdir()
    size = 24_000_000  # one checkpoint is 16 MB: weights and two moments of 1.3 M parameters
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", mount], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("mounting a tmpfs needs root")
    try:
        with pytest.raises(
            UserError, match=r"checkpoint of step 4 .* No space left .* the last good one is step_00000002"
        ):
            run(config("small/run"), world)
        folder = mount / "run" / "resume"
        assert [path.name for path in folder.iterdir()] == ["step_00000002"]
        assert Checkpointer(folder, world, 2).latest() == folder / "step_00000002"
    finally:
        subprocess.run(["umount", mount], check=True)


def start(prepared, out, *overrides, processes=1):
    """Start `tune run` in processes of their own."""
    proxy = f"proxy.path={out.parent / 'proxy_instruction.safetensors'}"
    given = [f"data={prepared}", f"output_dir={out}", proxy, *OPTIONS, "num_workers=0", "resume=true", *overrides]
    streams = out.parent / "out.txt", out.parent / "err.txt"
    command = ["ift_recipe", "--config", "tiny_ift.yaml", *given]
    return launch(*command, cwd=out.parent, streams=streams, processes=processes)


@pytest.fixture
def proxy_file(tmp_path):
    path = tmp_path / "proxy_instruction.safetensors"
    save_proxy(path, random_theta(8, 128, 0), model="tiny", step=0, rule=UpdateRule.UPDATE)
    return path


def finish(process, status=0):
    result = process.wait()
    assert result.returncode == status, process.output
    return result.stdout + result.stderr


def test_sigterm_saves_and_ends_with_its_own_status(prepared, tmp_path, proxy_file):
    out = tmp_path / "run"
    process = start(prepared, out, "checkpoint_every_steps=null", "max_steps=400", "epochs=100", "batch_size=4")
    metrics = out / "metrics.jsonl"
    while not (metrics.exists() and len(metrics.read_text().splitlines()) > 3):
        assert process.running(), process.output
        time.sleep(0.05)
    process.send(signal.SIGTERM)
    output = finish(process, STOPPED)
    (step,) = re.findall(r"stopped after step (\d+); go on with resume=true", output)
    assert [path.name for path in (out / "resume").iterdir()] == [f"step_{int(step):08d}"]


def test_two_processes_resume_as_one(prepared, tmp_path, proxy_file):
    """Stop a run of one process, go on with two: the same order, the same losses to 1e-5."""
    whole, parts, longer = tmp_path / "whole", tmp_path / "parts", ["epochs=6", "max_steps=26"]
    finish(start(prepared, whole, "batch_size=4", *longer))
    process = start(prepared, parts, "batch_size=4", *longer)
    while not any((parts / "resume").glob("step_*")):
        assert process.running(), process.output
        time.sleep(0.02)
    process.send(signal.SIGKILL)
    process.wait()
    assert not (parts / "run.json").exists()
    finish(start(prepared, parts, "batch_size=2", *longer, processes=2))
    assert losses(parts) == pytest.approx(losses(whole), abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_twenty_kills_end_with_identical_weights(prepared, tmp_path, proxy_file, processes):
    """Kill -9 at random moments of real runs, resume, and compare with a run that was never stopped."""
    generator = random.Random(processes)
    options = [
        "batch_size=4" if processes == 1 else "batch_size=2",
        "checkpoint_every_steps=3",
        "epochs=20",
        "max_steps=90",
    ]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    finish(start(prepared, whole, *options, processes=processes))
    kills = 0
    while kills < 20:
        process = start(prepared, parts, *options, processes=processes)
        reached = len((parts / "metrics.jsonl").read_text().splitlines()) if (parts / "metrics.jsonl").exists() else 0
        target = min(reached + generator.randint(0, 5), 88)
        while process.running():
            now = len((parts / "metrics.jsonl").read_text().splitlines()) if (parts / "metrics.jsonl").exists() else 0
            if now >= target and now > 0:
                break
            time.sleep(0.01)
        assert process.running(), process.output
        time.sleep(generator.uniform(0, 0.3))
        process.send(signal.SIGKILL)
        process.wait()
        kills += 1
    finish(start(prepared, parts, *options, processes=processes))
    assert losses(parts) == losses(whole)
    assert_identical(weights(parts), weights(whole))
