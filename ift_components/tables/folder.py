"""A run's folder: what is in it says how far the run is.

spec.json    how it is started
config.yaml  its whole config
log.txt      what it printed, of every attempt
state.json   the last attempt: when it began, how it ended
done.json    there once it has ended well, and never changed then
out/         what the stage itself writes
"""

import json
import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

SPEC, CONFIG, LOG, STATE, DONE = "spec.json", "config.yaml", "log.txt", "state.json", "done.json"
_TAIL = 20_000  # bytes of a log that its last lines are looked for in


class State(StrEnum):
    """How far a run is."""

    FINISHED = "finished"
    RUNNING = "running"
    FAILED = "failed"
    INTERRUPTED = "interrupted"
    WAITING = "waiting"


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        state: its state.
        facts: the content of done.json, or else of state.json.
    """

    state: State
    facts: dict[str, Any]


def lock_of(folder: Path) -> Path:
    """Return the lock file that is held while a run is at work (the one of `files.locked`)."""
    return folder.with_name(f".{folder.name}.lock")


def progress_of(folder: Path) -> Progress:
    """Return how far the run in a folder is; whether it is at work is told by its lock, which a killed process cannot keep."""
    done = _read(folder / DONE)
    if done is not None:
        return Progress(State.FINISHED, done)
    facts = _read(folder / STATE)
    if facts is None:
        return Progress(State.WAITING, {})
    if facts["state"] == State.RUNNING:
        return Progress(State.RUNNING if _is_held(lock_of(folder)) else State.INTERRUPTED, facts)
    return Progress(State(facts["state"]), facts)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return content


def _is_held(path: Path) -> bool:
    try:
        with FileLock(path, timeout=0):
            return False
    except Timeout:
        return True


def last_lines(path: Path, count: int = 8) -> list[str]:
    """Return the last lines of a log that are not empty; of a progress bar what it showed last."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL))
            text = file.read().decode("utf-8", "replace")
    except FileNotFoundError:
        return []
    lines = [line.rsplit("\r", 1)[-1].rstrip() for line in re.split(r"\r?\n", text)]
    return [line for line in lines if line][-count:]
