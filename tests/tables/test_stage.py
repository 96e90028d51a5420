"""One run: what it leaves when it ends well, badly, is stopped, or has been done already."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from ift_components.files import locked
from ift_components.tables.folder import State, progress_of
from ift_components.tables.stage import run_stage


@pytest.fixture
def folder(tmp_path):
    """A function that writes the folder of a run that executes some Python with the name `out`."""

    def make(code, resume="itself", finished=None):
        run = tmp_path / "run"
        run.mkdir(exist_ok=True)
        text = f"import pathlib, sys, time; out = pathlib.Path({str(run / 'out')!r}); out.mkdir(exist_ok=True)\n{code}"
        spec = {"command": [sys.executable, "-c", text], "cwd": str(tmp_path), "threads": 3}
        (run / "spec.json").write_text(json.dumps({**spec, "resume": resume, "finished": finished}))
        return run

    return make


COUNT = "file = (out / 'count.txt').open('a'); file.write('x'); file.close()"


def test_what_is_done_is_not_done_again_even_if_another_process_did_it(folder):
    run = folder(COUNT)
    assert run_stage(run) == 0
    progress = progress_of(run)
    assert (progress.state, progress.facts["attempts"], progress.facts["status"]) == (State.FINISHED, 1, 0)
    assert progress.facts["memory_gb"] > 0
    assert run_stage(run) == 0
    assert (run / "out" / "count.txt").read_text() == "x"
    # Left over from a scheduler that was killed: the same run is at work, and is waited for.
    done = (run / "done.json").read_text()
    (run / "done.json").unlink()
    with locked(run):
        statuses = []
        second = threading.Thread(target=lambda: statuses.append(run_stage(run)))
        second.start()
        time.sleep(0.3)
        assert not statuses
        (run / "done.json").write_text(done)
    second.join()
    assert statuses == [0]
    assert (run / "out" / "count.txt").read_text() == "x"


def test_threads_and_place_are_the_plans(folder, tmp_path):
    code = "import os; (out / 'seen.txt').write_text(os.environ['OMP_NUM_THREADS'] + ' ' + os.getcwd()); print('said')"
    run = folder(code, resume="flag")
    assert run_stage(run) == 0
    assert (run / "out" / "seen.txt").read_text() == f"3 {tmp_path}"
    log = (run / "log.txt").read_text()
    assert " resume=true\n" in log
    assert log.endswith("said\n")


def test_a_failure_is_noted_and_tried_again(folder):
    run = folder(f"{COUNT}; sys.exit(3)")
    assert run_stage(run) == 1
    assert progress_of(run).state is State.FAILED
    assert progress_of(run).facts["status"] == 3
    folder(COUNT)
    assert run_stage(run) == 0
    assert progress_of(run).facts["attempts"] == 2
    assert (run / "out" / "count.txt").read_text() == "xx"


def test_what_starts_afresh_leaves_nothing_of_the_first_attempt(folder):
    run = folder(f"{COUNT}; sys.exit(1)", resume="afresh")
    run_stage(run)
    folder(COUNT, resume="afresh")
    assert run_stage(run) == 0
    assert (run / "out" / "count.txt").read_text() == "x"


def test_a_run_that_was_killed_just_before_its_mark_is_done(folder):
    run = folder("sys.exit(1)", finished="run.json")
    (run / "out").mkdir()
    (run / "out" / "run.json").write_text("{}")
    assert run_stage(run) == 0
    assert not (run / "log.txt").exists()


def test_a_run_that_leaves_nothing_has_failed(folder):
    run = folder("pass", finished="run.json")
    assert run_stage(run) == 1
    assert progress_of(run).facts["reason"] == "it ended without leaving run.json"


def test_a_stopped_run_hands_the_signal_on_and_is_interrupted(folder):
    handler = "import signal; signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))"
    run = folder(f"{handler}; (out / 'ready').touch(); time.sleep(60)")
    process = subprocess.Popen([sys.executable, "-m", "ift_components.tables.stage", str(run)], env=dict(os.environ))
    while not (run / "out" / "ready").exists():
        assert process.poll() is None
        time.sleep(0.02)
    assert progress_of(run).state is State.RUNNING
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 1
    assert progress_of(run).state is State.INTERRUPTED
    assert progress_of(run).facts["status"] == 75
