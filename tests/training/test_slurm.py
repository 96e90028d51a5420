"""The guide's batch script on a real Slurm: what is stopped and requeued ends as if it had never been stopped."""

import os
import re
import sys
import time
from pathlib import Path

import pytest
from results import assert_identical, losses, weights
from slurm import Slurm, missing

import ift_components.training
from ift_components.proxy import UpdateRule, random_theta, save_proxy

GUIDE = Path(ift_components.training.__file__).with_name("README.md")
STEPS = 36
ONE_NODE = ["--nodes=1", "--ntasks-per-node=2", "--gpus-per-node=2", "--cpus-per-task=1"]
_PATIENCE = 300.0  # seconds


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    if missing() or os.geteuid():
        pytest.skip(f"needs root and Debian's slurmctld, slurmd and munge; not there: {', '.join(missing()) or 'root'}")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    folder = tmp_path / "slurm"
    folder.mkdir()
    with Slurm(folder) as cluster:
        yield cluster


@pytest.fixture
def submit(slurm, prepared, tmp_path):
    """A function that submits the guide's script as it is written, for a run of that name."""
    (script,) = re.findall(r"```sh\n(#!/bin/bash\n.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "train.sh").write_text(script, encoding="utf-8")
    proxy = tmp_path / "proxy_instruction.safetensors"
    save_proxy(proxy, random_theta(8, 128, 0), model="tiny", step=0, rule=UpdateRule.UPDATE)

    def start(name):
        options = [f"data={prepared}", f"output_dir={name}", f"proxy.path={proxy}", "batch_size=2"]
        options += ["epochs=9", f"max_steps={STEPS}", "num_workers=1", "checkpoint_every_steps=12"]
        arguments = ["train.sh", "ift_recipe", "--config", "tiny_ift.yaml", *options]
        return slurm.run("sbatch", "--parsable", *ONE_NODE, *arguments, cwd=tmp_path).strip()

    return start


def wait_until(condition, what):
    deadline = time.monotonic() + _PATIENCE
    while not condition():
        assert time.monotonic() < deadline, what()
        time.sleep(0.1)


@pytest.mark.slow
def test_the_guides_script_is_requeued_and_ends_as_the_uninterrupted_run(slurm, submit, tmp_path):
    def state(job):
        return slurm.run("squeue", "--noheader", "--format=%T", "--states=all", f"--jobs={job}").strip()

    def output(job):
        path = tmp_path / f"slurm-{job}.out"
        return path.read_text(encoding="utf-8") if path.exists() else slurm.logs()

    def steps(name):
        metrics = tmp_path / name / "metrics.jsonl"
        return len(metrics.read_text(encoding="utf-8").splitlines()) if metrics.exists() else 0

    whole = submit("whole")
    wait_until(lambda: state(whole) == "COMPLETED", lambda: output(whole))
    parts = submit("parts")
    # To the script alone, as `--signal=B:TERM@120` does; then to the processes alone.
    for count, target in enumerate((["--batch"], []), start=1):
        reached = steps("parts")
        wait_until(lambda: steps("parts") >= reached + 5, lambda: output(parts))  # noqa: B023
        slurm.run("scancel", "--signal=TERM", *target, parts)
        wait_until(lambda: state(parts) == "PENDING", lambda: output(parts))
        stops = re.findall(r"stopped after step (\d+); go on with resume=true", output(parts))
        assert len(stops) == count
        assert [path.name for path in (tmp_path / "parts" / "resume").glob("step_*")][-1:] == [
            f"step_{int(stops[-1]):08d}"
        ]
    wait_until(lambda: state(parts) == "COMPLETED", lambda: output(parts))
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    assert len(losses(tmp_path / "whole")) == STEPS
    assert_identical(weights(tmp_path / "parts"), weights(tmp_path / "whole"))
    # What a user cancels saves too, and does not come back.
    cancelled = submit("cancelled")
    wait_until(lambda: steps("cancelled") >= 5, lambda: output(cancelled))
    slurm.run("scancel", cancelled)
    wait_until(lambda: state(cancelled) == "CANCELLED", lambda: output(cancelled))
    assert "stopped after step" in output(cancelled)
