"""predictions.jsonl: one line an answer, appended as it is given, so that a killed run goes on where it stopped."""

import fcntl
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Self, TextIO

from ift_components.errors import UserError
from ift_components.evaluation.predictors.base import Work
from ift_components.files import require_new_folder, write_json, write_text

RUN_FILE = "run.json"
PREDICTIONS = "predictions.jsonl"
Key = tuple[str, str, str, int]


def key_of(row: dict[str, Any]) -> Key:
    """Return what tells a line from all others: task, dataset, id and run."""
    return row["task"], row["dataset"], row["id"], row["run"]


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a predictions file; a last line that was cut short is cut off the file.

    Raises:
        UserError: if another line is damaged.
    """
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    rows = []
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            row = json.loads(line)
            key_of(row)
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path}: line {number} is damaged ({error}); remove that line to have it answered again, "
                "or give another output_dir"
            ) from error
        rows.append(row)
    if len(whole) < len(content):
        with path.open("r+b") as file:
            file.truncate(len(whole))
    return rows


class RunFolder:
    """An evaluation's output folder, held by one evaluator at a time.

    Args:
        path: the folder; new, empty, or that of an evaluation with the same fingerprint that was stopped.
        fingerprint: everything that decides the answers; a folder made with another one is refused.

    Raises:
        UserError: if the folder holds something else, or another evaluator is writing to it.
    """

    def __init__(self, path: Path, fingerprint: dict[str, Any]) -> None:
        self.path = path
        self._fingerprint = json.loads(json.dumps(fingerprint))
        self._lock: TextIO | None = None
        if (path / RUN_FILE).is_file():
            self._take_lock()
            self._check_same()
        else:
            require_new_folder(path)

    def _take_lock(self) -> None:
        lock = (self.path / ".lock").open("a", encoding="utf-8")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.close()
            raise UserError(
                f"output_dir: another evaluation is writing to {self.path}; wait for it, or give another folder"
            ) from error
        self._lock = lock

    def _check_same(self) -> None:
        try:
            found = json.loads((self.path / RUN_FILE).read_text(encoding="utf-8"))["fingerprint"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"output_dir: {self.path / RUN_FILE} is damaged ({error!r}); give another folder"
            ) from error
        ours = self._fingerprint
        differing = sorted(key for key in found.keys() | ours.keys() if found.get(key) != ours.get(key))
        if differing:
            key = differing[0]
            raise UserError(
                f"output_dir: {self.path} already holds files of another evaluation, which differs in {', '.join(differing)} "
                f"({key} was {found.get(key)!r}, now {ours.get(key)!r}); give another folder"
            )

    def open(self, run: dict[str, Any]) -> list[dict[str, Any]]:
        """Create the folder, or go on in it; return the answers that are there already.

        Args:
            run: what to note in run.json beside the fingerprint.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        if self._lock is None:
            self._take_lock()
            write_json(self.path / RUN_FILE, {**run, "fingerprint": self._fingerprint})
        return self.merge()

    def merge(self, order: Sequence[Work] | None = None) -> list[dict[str, Any]]:
        """Gather the lines of all processes in predictions.jsonl and return them.

        Args:
            order: the order of the lines; None keeps the one they are in.
        """
        main = self.path / PREDICTIONS
        parts = sorted(self.path.glob("predictions.rank*.jsonl"))
        rows: dict[Key, dict[str, Any]] = {}
        for path in ([main] if main.exists() else []) + parts:
            rows |= {key_of(row): row for row in read_lines(path)}
        if order is not None:
            keys = [(*work.item.key, work.run) for work in order]
            rows = {key: rows[key] for key in keys if key in rows}
        if parts or order is not None:
            write_text(main, "".join(_line(row) for row in rows.values()))
            for path in parts:
                path.unlink()
        return list(rows.values())

    def close(self) -> None:
        """Let other evaluators in."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None


class LineWriter:
    """Appends answers to one process's file; a line is with the operating system when `append` returns.

    Args:
        folder: the run's folder.
        rank: the process; 0 writes predictions.jsonl itself.
    """

    def __init__(self, folder: Path, rank: int = 0) -> None:
        name = PREDICTIONS if rank == 0 else f"predictions.rank{rank}.jsonl"
        self._file = (folder / name).open("a", encoding="utf-8")

    def append(self, row: dict[str, Any]) -> None:
        """Append one answer."""
        self._file.write(_line(row))
        self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _line(row: dict[str, Any]) -> str:
    # Lone surrogates, which a byte-level tokenizer can produce, are escaped: the file is always valid UTF-8.
    text = json.dumps(row, ensure_ascii=False)
    return text.encode("utf-8", "backslashreplace").decode() + "\n"


def done_keys(rows: Iterable[dict[str, Any]]) -> set[Key]:
    """Return the keys of answers that need not be given again."""
    return {key_of(row) for row in rows}
