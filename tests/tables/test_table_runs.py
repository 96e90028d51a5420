"""Plans that are run: what is repeated and what is not, failures, interruptions, and a table that is the same after them."""

import importlib.util
import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
from launching import launch
from slurm import Slurm, missing

from ift_components.errors import UserError
from ift_components.tables import engine
from ift_components.tables.plan import load_plan
from ift_components.tables.runs import plan_runs

if importlib.util.find_spec("snakemake") is None:
    pytest.skip("the extra `tables` is not installed", allow_module_level=True)


@pytest.fixture
def table(tune, tmp_path):
    """A function that runs the table recipe as a user does, in the test's folder."""

    def run(*overrides, check=True):
        return tune("ift_table_recipe", "--config", "plan.yaml", *overrides, cwd=tmp_path, check=check)

    return run


def small(plan):
    """Leave two rows and one seed."""
    plan["seeds"] = [0]
    plan["rows"] = {name: plan["rows"][name] for name in ("baseline", "method")}


def times(tmp_path):
    """Return when each finished run left its mark, and how often each run took a step."""
    marks = {path.parent.name: path.stat().st_mtime_ns for path in tmp_path.glob("out/runs/*/done.json")}
    steps = {path.parts[-3]: path.read_text().split() for path in tmp_path.glob("out/runs/*/out/steps.txt")}
    return marks, steps


def left(tmp_path):
    """Return what a dry run would print."""
    plan = load_plan(str(tmp_path / "plan.yaml"), [])
    return engine.listing(plan, plan_runs(plan))


def test_a_plan_is_run_once_and_a_changed_row_alone_again(write_plan, table, tmp_path):
    write_plan(small)
    result = table("jobs=2")
    marks, steps = times(tmp_path)
    assert len(marks) == 5
    assert f"[5 of 5] {max(marks, key=marks.get)}: finished" in result.stderr
    assert all(taken == ["0", "1", "2"] for taken in steps.values())
    before = (tmp_path / "out" / "table.csv").read_text()
    spec = json.loads(next(tmp_path.glob("out/runs/tune-*/spec.json")).read_text())
    assert spec["threads"] == max(1, os.cpu_count() // 2)
    assert spec["cwd"] == str(tmp_path)

    result = table()
    assert times(tmp_path)[0] == marks
    assert "running" not in result.stderr
    assert (tmp_path / "out" / "table.csv").read_text() == before

    def change(plan):
        small(plan)
        plan["rows"]["method"]["tune"] = {"lr": 0.7}

    write_plan(change)
    assert "2 of 5 runs are to be done" in table("dry_run=true").stdout
    table()
    again = times(tmp_path)[0]
    assert marks.items() <= again.items()
    assert len(again) == 7
    page = (tmp_path / "out" / "table.html").read_text()
    assert "5 of 5 runs are finished." in page
    assert not list((tmp_path / "out").rglob("*.tmp"))


def test_a_failed_run_is_shown_and_stops_only_what_needs_it(write_plan, table, tmp_path):
    def change(plan):
        small(plan)
        plan["rows"]["method"]["tune"] = {"fail": True}

    write_plan(change)
    result = table(check=False)
    assert result.returncode == 2
    failed = next(path.parent for path in tmp_path.glob("out/runs/*/state.json") if "fail" in path.read_text())
    assert f"{failed.name} (for method) failed:\n" in result.stderr
    assert "  the loss is not a number\n" in result.stderr
    assert "error: 1 of 5 runs failed and 1 are not done; logs: " in result.stderr
    page = (tmp_path / "out" / "table.html").read_text()
    assert f"Failed: {failed.name}" in page
    assert f"for <code>{failed.name}</code>, which failed" in page
    assert "| baseline | 1 |" in (tmp_path / "out" / "table.md").read_text()
    marks, steps = times(tmp_path)
    assert len(marks) == 3
    # What made it fail is gone: the same command goes on inside with that run alone, and with what waited for it.
    config = failed / "config.yaml"
    assert "fail: true" in config.read_text()
    assert steps[failed.name] == ["0", "1"]
    spec = failed / "out" / "place.json"
    spec.write_text("2")
    table()
    after, steps = times(tmp_path)
    assert steps[failed.name] == ["0", "1", "2"]
    assert marks.items() <= after.items()
    assert len(after) == 5


def test_a_second_process_is_refused_and_a_changed_plan_does_not_disturb(write_plan, table, tmp_path):
    def slow(plan):
        small(plan)
        plan["stages"]["tune"]["overrides"]["seconds"] = 1.0

    path = write_plan(slow)
    in_order = list(plan_runs(load_plan(str(path), [])).runs)
    streams = tmp_path / "1", tmp_path / "2"
    first = launch("ift_table_recipe", "--config", "plan.yaml", cwd=tmp_path, streams=streams)
    while not (streams[1].is_file() and ": running" in streams[1].read_text()):
        assert first.running()
        time.sleep(0.1)
    second = table(check=False)
    assert second.returncode == 2
    assert "another process is at work on" in second.stderr.splitlines()[-1]
    page = (tmp_path / "out" / "table.html").read_text()
    assert "1 at work" in page
    path.write_text(path.read_text().replace("lr: 0.1", "lr: 0.2"))
    result = first.wait()
    assert result.returncode == 0, result.stderr
    assert "plan.yaml was changed while it ran" in result.stderr
    marks, _ = times(tmp_path)
    assert sorted(marks, key=marks.get) == in_order  # so that the table fills row by row
    assert len(marks) == 5
    assert "3 of 5 runs are to be done" in left(tmp_path)


def test_an_interrupted_plan_goes_on_inside_of_its_runs(write_plan, table, tmp_path):
    def slow(plan):
        small(plan)
        plan["stages"]["tune"]["overrides"]["seconds"] = 0.4

    write_plan(slow)
    launched = launch(
        "ift_table_recipe", "--config", "plan.yaml", cwd=tmp_path, streams=(tmp_path / "1", tmp_path / "2")
    )
    while not any(path.read_text() == "2\n" for path in tmp_path.glob("out/runs/tune-*/out/place.json")):
        assert launched.running()
        time.sleep(0.02)
    launched.send(signal.SIGKILL)
    launched.wait()
    assert "  interrupted  " in left(tmp_path)
    table()
    marks, steps = times(tmp_path)
    assert len(marks) == 5
    assert all(taken == ["0", "1", "2"] for taken in steps.values())


def test_what_is_missing_is_said_before_any_work(write_plan, tmp_path, monkeypatch):
    plan = load_plan(str(write_plan(small)), ["executor=slurm"])
    monkeypatch.setattr(engine.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"need snakemake: pip install 'instruction-free-tuning\[tables\]'"):
        engine.TableRun(plan).run()
    monkeypatch.setattr(engine.importlib.util, "find_spec", lambda name: None if "slurm" in name else True)
    with pytest.raises(UserError, match="slurm needs Snakemake's plugin: pip install snakemake-executor-plugin-slurm"):
        engine.TableRun(plan).run()
    monkeypatch.setattr(engine.importlib.util, "find_spec", lambda name: True)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="executor: slurm is not here: no sbatch on the PATH"):
        engine.TableRun(plan).run()
    for name in ("sbatch", "squeue", "sinfo"):
        (tmp_path / name).write_text("#!/bin/sh\necho 'Unable to contact slurm controller' >&2\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    with pytest.raises(UserError, match="executor: slurm does not answer: Unable to contact slurm controller"):
        engine.TableRun(plan).run()
    (tmp_path / "sinfo").write_text("#!/bin/sh\n")
    other = load_plan("plan.yaml", ["executor=slurm", "partition=gpu"])
    with pytest.raises(UserError, match="partition: slurm has no partition 'gpu'"):
        engine.TableRun(other).run()
    assert not (tmp_path / "out").exists()


def test_a_full_disk_is_one_line(write_plan, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    plan = load_plan(str(write_plan(small)), [])
    monkeypatch.setattr(engine, "write_json", full)
    with pytest.raises(UserError, match="out cannot be written: No space left on device; what is finished is kept"):
        engine.TableRun(plan).run()


@pytest.mark.slow
def test_a_plan_runs_on_slurm(write_plan, tmp_path, monkeypatch):
    if missing() or os.geteuid() or importlib.util.find_spec("snakemake_executor_plugin_slurm") is None:
        pytest.skip("needs root, Debian's slurmctld, slurmd and munge, and snakemake-executor-plugin-slurm")

    def change(plan):
        small(plan)
        for stage in plan["stages"].values():
            stage["memory_gb"] = 0.1
        plan["rows"]["method"]["tune"] = {"fail": True}

    write_plan(change)
    folder = tmp_path / "slurm"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    with Slurm(folder) as cluster:
        for name in ("PATH", "SLURM_CONF"):
            monkeypatch.setenv(name, cluster.environment[name])
        # The plugin hides Slurm's variables from its jobs, which find the configuration in its usual place elsewhere.
        srun = tmp_path / "srun"
        srun.write_text(f'#!/bin/sh\nSLURM_CONF={folder}/slurm.conf exec {shutil.which("srun")} "$@"\n')
        srun.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        streams = tmp_path / "1", tmp_path / "2"
        options = ["executor=slurm", "partition=all", "jobs=4"]
        result = launch("ift_table_recipe", "--config", "plan.yaml", *options, cwd=tmp_path, streams=streams).wait()
        assert "error: 1 of 5 runs failed and 1 are not done" in result.stderr, result.stderr + cluster.logs()
        assert "  the loss is not a number\n" in result.stderr
        states = [path for path in tmp_path.glob("out/runs/*/state.json") if "failed" in path.read_text()]
        (states[0].parent / "out" / "place.json").write_text("2")
        result = launch("ift_table_recipe", "--config", "plan.yaml", *options, cwd=tmp_path, streams=streams).wait()
        assert result.returncode == 0, result.stderr + cluster.logs()
    assert len(times(tmp_path)[0]) == 5


@pytest.mark.slow
def test_ten_kills_leave_the_same_table_to_the_digit(write_plan, table, tmp_path):
    def slow(plan):
        plan["stages"]["tune"]["overrides"] |= {"seconds": 1.0, "steps": 12}
        plan["stages"]["warmup"]["overrides"]["seconds"] = 1.0

    write_plan(slow)
    table("output_dir=whole", "jobs=2")
    generator = random.Random(0)
    for number in range(10):
        streams = tmp_path / f"out{number}", tmp_path / f"err{number}"
        launched = launch("ift_table_recipe", "--config", "plan.yaml", "jobs=2", cwd=tmp_path, streams=streams)
        time.sleep(generator.uniform(2, 6))
        assert launched.running(), "the plan ended before the kill, which then proves nothing"
        launched.send(signal.SIGKILL)
        launched.wait()
    table("jobs=2")
    for name in ("table.csv", "table.tex", "table.json"):
        assert (tmp_path / "out" / name).read_text() == (tmp_path / "whole" / name).read_text()
    # A step that was taken and not yet noted is taken again, once a kill in each of two runs at most.
    assert sum(len(steps) - len(set(steps)) for steps in times(tmp_path)[1].values()) <= 20
