"""Interrupted runs: what they continue to is what they would have been, to the bit; damage and full disks are survived."""

import json
import os
import random
import re
import signal
import subprocess
import time

import pytest
import yaml
from launching import launch
from results import assert_identical, losses, weights
from safetensors.torch import load_file

from ift_components.errors import ConfigError, UserError
from ift_components.models.trainable import FINE_TUNING, METHODS, Tuning
from ift_components.proxy import UpdateRule, random_theta, save_proxy
from ift_components.training.checkpoint import Checkpointer
from ift_components.training.checks import Stage
from ift_components.training.run import STOPPED, TrainingRun

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
    [
        (["proxy.rule=track"], 2),
        (["proxy.rule=restart"], 0),
        (["dtype=bf16", "optimizer.fused=true"], 0),
        (["optimizer._component_=torch.optim.SGD", "optimizer.momentum=0.9"], 0),
        # Moments in 8 bits, quantised in blocks, and a learning rate that is a tensor; sharded (bf16) and not.
        (["optimizer._component_=torchao.optim.AdamW8bit"], 0),
        (["optimizer._component_=torchao.optim.AdamW8bit", "dtype=bf16"], 0),
    ],
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


def test_resumed_run_may_recompute_other_layers(config, world, tmp_path):
    """On another machine `auto` chooses otherwise; names in checkpoints do not depend on it."""
    run(config("whole"), world)
    with pytest.raises(KilledError):
        run(config("parts", "resume=true", "activation_checkpointing=all"), world, stop_after=6)
    run(config("parts", "resume=true", "activation_checkpointing=encoder"), world)
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    assert_identical(weights(tmp_path / "parts"), weights(tmp_path / "whole"))


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


@pytest.mark.parametrize("content", ["", "{", "[1, 2]", "{}", '{"state.json": "0"}'])
def test_damaged_list_of_files_is_passed_over_like_any_damage(config, world, tmp_path, content):
    cfg = config("list", "resume=true")
    with pytest.raises(KilledError):
        run(cfg, world, stop_after=5)
    folder = tmp_path / "list" / "resume"
    (folder / "step_00000005" / "files.json").write_text(content)
    assert Checkpointer(folder, world, 2).latest() == folder / "step_00000004"


def test_damaged_checkpoints_do_not_count_for_keep_last(config, world, tmp_path):
    """Two newer ones are damaged: the ones written after going on from the third stay."""
    cfg = config("counted", "resume=true", "keep_last=3")
    with pytest.raises(KilledError):
        run(cfg, world, stop_after=7)
    folder = tmp_path / "counted" / "resume"
    assert [path.name[-1] for path in sorted(folder.iterdir())] == ["4", "5", "6"]
    for name in ("step_00000005", "step_00000006"):
        os.truncate(next((folder / name).glob("*.distcp")), 10)
    cfg.keep_last = 2
    with pytest.raises(KilledError):
        run(cfg, world, stop_after=5)
    assert [path.name[-1] for path in sorted(folder.iterdir())] == ["4", "5"]
    run(config("whole"), world)
    run(cfg, world)
    assert losses(tmp_path / "counted") == losses(tmp_path / "whole")


def test_what_a_kill_left_half_written_is_cleaned(config, world, tmp_path, capsys):
    cfg = config("left", "resume=true")
    with pytest.raises(KilledError):
        run(cfg, world, stop_after=4)
    out = tmp_path / "left"
    for name in ("resume/.step_00000009.tmp", ".checkpoint.partial"):
        (out / name).mkdir()
        (out / name / "half").write_text("x")
    (out / ".run.json.77.tmp").write_text("x")
    # Three steps after the newest checkpoint are in the records: going on says that they are done again.
    rows = (out / "metrics.jsonl").read_text()
    last = json.loads(rows.splitlines()[-1])
    (out / "metrics.jsonl").write_text(rows + "".join(json.dumps({**last, "step": step}) + "\n" for step in (5, 6, 7)))
    run(cfg, world)
    assert "the run had come to step 7: 3 steps are done again" in capsys.readouterr().err
    assert not list(out.rglob("*.tmp"))
    assert not list(out.rglob("*.partial"))
    assert losses(out)[-1] != last["loss"]


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


def test_the_epochs_own_checkpoint_is_written_when_the_run_stops_at_its_end(config, world, tmp_path):
    cfg = config("epochs", "resume=true", "save_every_epochs=1", "epochs=3", "max_steps=12")
    training = TrainingRun(cfg, world, Stage(FINE_TUNING, UpdateRule.TRACK))
    training.prepare()
    step = training.trainer.step

    def ask_to_stop(batches):
        training.trainer.stop = training.trainer.steps == 4
        return step(batches)

    training.trainer.step = ask_to_stop
    with pytest.raises(SystemExit) as stopped:
        training.train()
    assert stopped.value.code == STOPPED
    out = tmp_path / "epochs"
    assert training.trainer.steps == training.steps_per_epoch == 5
    assert not (out / "epoch_1").exists()
    run(cfg, world)
    whole = config("whole", "save_every_epochs=1", "epochs=3", "max_steps=12")
    run(whole, world)
    for name in ("epoch_1", "epoch_2", "checkpoint"):
        (left, right) = (load_file(tmp_path / folder / name / "model.safetensors") for folder in ("epochs", "whole"))
        assert_identical({name: left}, {name: right})


def test_a_signal_during_a_step_ends_the_run_after_it(config, world):
    """The flag is read after the passes: the run does not begin another step."""
    training = TrainingRun(config("signal"), world, Stage(FINE_TUNING, UpdateRule.TRACK))
    training.prepare()
    loss = training.trainer.loss

    def signalled(batch, **more):
        if training.trainer.steps == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss(batch, **more)

    training.trainer.loss = signalled
    with pytest.raises(SystemExit):
        training.train()
    assert training.trainer.steps == 3


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


@pytest.fixture
def small_disk(tmp_path):
    """A function that mounts a disk of so many bytes."""
    mounts = []

    def make(name, size):
        mount = tmp_path / name
        mount.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", mount]
        if subprocess.run(command, check=False, capture_output=True).returncode:
            pytest.skip("mounting a tmpfs needs root")
        mounts.append(mount)
        return mount

    yield make
    for mount in mounts:
        subprocess.run(["umount", mount], check=True)


def test_full_disk_keeps_the_last_good_checkpoint(config, world, small_disk):
    """Room for one checkpoint of 16 MB (weights and two moments of 1.3 M parameters) and a half."""
    mount = small_disk("small", 24_000_000)
    with pytest.raises(UserError, match=r"checkpoint of step 4 .* No space left .* the last good one is step_00000002"):
        run(config("small/run"), world)
    folder = mount / "run" / "resume"
    assert [path.name for path in folder.iterdir()] == ["step_00000002"]
    assert Checkpointer(folder, world, 2).latest() == folder / "step_00000002"


def test_room_for_the_final_checkpoint_is_checked_first(config, world, small_disk):
    mount = small_disk("tiny", 8_000_000)
    with pytest.raises(UserError, match=r"room for 0.008\d* GB, and the final checkpoint takes 0.01\d*; make room"):
        run(config("tiny/run"), world)
    assert not (mount / "run").exists()


def test_no_room_at_the_end_keeps_the_state_on_the_spare_disk(config, world, tmp_path, small_disk):
    mount = small_disk("full", 16_000_000)  # the final checkpoint takes 11 MB
    spare = ["resume=true", f"spare_dir={tmp_path / 'spare'}", "checkpoint_every_steps=null"]
    training = TrainingRun(config("full/run", *spare), world, Stage(FINE_TUNING, UpdateRule.TRACK))
    training.prepare()
    (mount / "filler").write_bytes(bytes(10_000_000))
    with pytest.raises(
        UserError,
        match=r"No space left.* nothing is lost: .*spare/step_00000009; make room and run again with resume=true",
    ):
        training.train()
    assert [path.name for path in (mount / "run").iterdir() if "checkpoint" in path.name] == []
    (mount / "filler").unlink()
    again = run(config("full/run", *spare), world)
    assert again.trainer.steps == STEPS
    run(config("whole", "checkpoint_every_steps=null"), world)
    assert_identical(weights(mount / "run"), weights(tmp_path / "whole"))
    assert losses(mount / "run") == losses(tmp_path / "whole")


def start(prepared, out, *overrides, processes=1):
    """Start `tune run` in processes of their own."""
    proxy = f"proxy.path={out.parent / 'proxy_instruction.safetensors'}"
    options = [f"data={prepared}", f"output_dir={out}", proxy, *OPTIONS, "resume=true", *overrides]
    streams = out.parent / "out.txt", out.parent / "err.txt"
    command = ["ift_recipe", "--config", "tiny_ift.yaml", *options]
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


def wait_for_steps(process, metrics, steps):
    while not (metrics.exists() and len(metrics.read_text().splitlines()) >= steps):
        assert process.running(), process.output
        time.sleep(0.02)


@pytest.mark.parametrize("processes", [1, 2])
def test_sigterm_to_every_process_saves_and_ends(prepared, tmp_path, proxy_file, processes):
    """As schedulers send it: to loader workers too, which must go on until the step is done."""
    out = tmp_path / "run"
    options = ["checkpoint_every_steps=null", "max_steps=400", "epochs=100", f"batch_size={4 // processes}"]
    process = start(prepared, out, *options, "num_workers=2", processes=processes)
    wait_for_steps(process, out / "metrics.jsonl", 4)
    process.send(signal.SIGTERM)
    output = finish(process, STOPPED)
    (step,) = re.findall(r"stopped after step (\d+); go on with resume=true", output)
    assert [path.name for path in (out / "resume").iterdir()] == [f"step_{int(step):08d}"]
    assert len(losses(out)) == int(step)


def test_two_processes_resume_as_one(prepared, tmp_path, proxy_file):
    """Stop a run of one process, go on with two: the same order, the same losses to 1e-5."""
    whole, parts, longer = tmp_path / "whole", tmp_path / "parts", ["epochs=6", "max_steps=26"]
    finish(start(prepared, whole, "batch_size=4", "num_workers=0", *longer))
    process = start(prepared, parts, "batch_size=4", "num_workers=0", *longer)
    while not any((parts / "resume").glob("step_*")):
        assert process.running(), process.output
        time.sleep(0.02)
    process.send(signal.SIGKILL)
    process.wait()
    assert not (parts / "run.json").exists()
    finish(start(prepared, parts, "batch_size=2", "num_workers=0", *longer, processes=2))
    assert losses(parts) == pytest.approx(losses(whole), abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("processes", [1, 2])
def test_twenty_kills_end_with_identical_weights(prepared, tmp_path, proxy_file, processes, sent):
    """Kill every process, workers too, at random moments of real runs, resume, and compare with a run never stopped."""
    generator, steps = random.Random(processes), 240
    options = [
        "batch_size=4" if processes == 1 else "batch_size=2",
        "checkpoint_every_steps=3",
        "epochs=50",
        f"max_steps={steps}",
        "num_workers=1",
    ]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    finish(start(prepared, whole, *options, processes=processes))
    metrics = parts / "metrics.jsonl"
    for _ in range(20):
        process = start(prepared, parts, *options, processes=processes)
        reached = len(metrics.read_text().splitlines()) if metrics.exists() else 0
        wait_for_steps(process, metrics, max(1, min(reached + generator.randint(0, 5), steps - 2)))
        time.sleep(generator.uniform(0, 0.3))
        assert process.running(), f"it ended before it was killed: {process.output}"
        process.send(sent)
        process.wait()
        assert not (parts / "run.json").exists()
    finish(start(prepared, parts, *options, processes=processes))
    assert losses(parts) == losses(whole)
    assert_identical(weights(parts), weights(whole))


METHODS_AND_MIXES = {
    "full": ["tuning={encoder: full, fusion: full, decoder: full}"],
    "scaffold": ["tuning={encoder: full, fusion: {method: scaffold, keep: 0.5}, decoder: frozen}"],
    "lora": ["tuning={encoder: lora, fusion: lora, decoder: lora}"],
    "lora, nf4": ["tuning={encoder: lora, fusion: lora, decoder: lora}", "frozen_dtype=nf4", "dtype=bf16"],
    "dora": ["tuning={encoder: dora, fusion: dora, decoder: dora}"],
    "ia3": ["tuning={encoder: ia3, fusion: ia3, decoder: ia3}"],
    "ptuning_v2": ["tuning={encoder: ptuning_v2, fusion: ptuning_v2, decoder: ptuning_v2}"],
    "prefix": ["tuning={encoder: frozen, fusion: full, decoder: prefix}"],
}


def test_every_method_is_killed_below():
    used = {how.method for first, *_ in METHODS_AND_MIXES.values() for _, how in Tuning.parse(parsed(first)).items()}
    assert used | {"frozen"} == set(METHODS)


def parsed(override):
    return yaml.safe_load(override.removeprefix("tuning="))


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS_AND_MIXES)
def test_every_method_goes_on_after_kills(prepared, tmp_path, proxy_file, name):
    """Three kills at random moments each; what is saved and all losses are those of a run never stopped."""
    generator = random.Random(name)
    result = "checkpoint" if name in ("full", "scaffold") else "adapter"
    options = [*METHODS_AND_MIXES[name], "batch_size=4", "checkpoint_every_steps=2", "epochs=6", "max_steps=24"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    finish(start(prepared, whole, *options))
    metrics = parts / "metrics.jsonl"
    for least in (3, 9, 15):
        process = start(prepared, parts, *options)
        wait_for_steps(process, metrics, least + generator.randint(0, 5))
        process.send(signal.SIGKILL)
        process.wait()
        assert not (parts / "run.json").exists()
    finish(start(prepared, parts, *options))
    assert losses(parts) == losses(whole)
    assert len(losses(whole)) == 24
    assert_identical(weights(parts, result), weights(whole, result))
