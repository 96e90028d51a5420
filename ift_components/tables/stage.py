"""Does one run: `python -m ift_components.tables.stage FOLDER`, what Snakemake starts, here or on a cluster's node.

A run that is at work already, left over from a scheduler that was killed, is waited for and not started again.
"""

import json
import os
import platform
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from ift_components.files import locked, write_json
from ift_components.pages import now
from ift_components.tables.folder import CONFIG, DONE, LOG, SPEC, STATE, State

_KIB_TO_GB = 1024 / 1e9


def run_stage(folder: Path) -> int:
    """Do the run in a folder, unless it has been done.

    Returns:
        The exit status: 0 if it is done.
    """
    spec = json.loads((folder / SPEC).read_text(encoding="utf-8"))
    with locked(folder):
        if (folder / DONE).is_file():
            return 0
        return _attempt(folder, spec)


def _attempt(folder: Path, spec: dict[str, Any]) -> int:
    out, state = folder / "out", folder / STATE
    before = json.loads(state.read_text(encoding="utf-8")) if state.is_file() else {"attempts": 0, "seconds": 0.0}
    facts = {"state": State.RUNNING, "began": now(), "host": platform.node(), "attempts": before["attempts"] + 1}
    facts["seconds"] = before["seconds"]
    write_json(state, facts)
    finished = spec["finished"] is not None and (out / spec["finished"]).is_file()
    if spec["resume"] == "afresh" and out.exists() and not finished:
        shutil.rmtree(out)
    status, begin = 0, time.monotonic()
    if not finished:  # else it was killed between its last step and its mark here
        status = _start(folder, spec)
    facts["seconds"] = round(before["seconds"] + time.monotonic() - begin, 1)
    facts["memory_gb"] = round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * _KIB_TO_GB, 3)
    facts |= {"ended": now(), "status": status}
    if status == 0 and spec["finished"] is not None and not (out / spec["finished"]).is_file():
        status = facts["status"] = 1
        facts["reason"] = f"it ended without leaving {spec['finished']}"
    if status == 0:
        write_json(folder / DONE, {**facts, "state": State.FINISHED})
        return 0
    stopped = status < 0 or status in (75, 128 + signal.SIGINT, 128 + signal.SIGTERM)
    write_json(state, {**facts, "state": State.INTERRUPTED if stopped else State.FAILED})
    return 1


def _start(folder: Path, spec: dict[str, Any]) -> int:
    """Run the command to its end, what it prints going to the log; signals to stop are handed on to it."""
    threads = os.environ.get("SLURM_CPUS_PER_TASK") or str(spec["threads"])
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "PYTHONUNBUFFERED": "1"}
    command = [word.replace("{config}", str(folder / CONFIG)) for word in spec["command"]]
    if spec["resume"] == "flag":
        command.append("resume=true")
    with (folder / LOG).open("ab") as log:
        log.write(f"--- {now()}: {' '.join(command)}\n".encode())
        log.flush()
        with subprocess.Popen(  # noqa: S603 (the plan's own command)
            command, cwd=spec["cwd"], env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
        ) as process:
            numbers = (signal.SIGTERM, signal.SIGINT)
            before = [signal.signal(number, lambda sent, _frame: process.send_signal(sent)) for number in numbers]
            try:
                return process.wait()
            finally:
                for number, handler in zip(numbers, before, strict=True):
                    signal.signal(number, handler)


def main() -> None:
    """Do the run in the folder that is given."""
    sys.exit(run_stage(Path(sys.argv[1])))


if __name__ == "__main__":
    main()
