"""predictions.jsonl: one line an answer, appended as it is given, so that a killed run goes on where it stopped."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from filelock import FileLock, Timeout

from ift_components.errors import UserError
from ift_components.evaluation.records import Key, Prediction, line_key
from ift_components.files import json_text, require_new_folder, write_json, write_text

RUN_FILE = "run.json"
PREDICTIONS = "predictions.jsonl"


def read_lines(path: Path, *, mend: bool = True) -> list[dict[str, Any]]:
    """Return the lines of a predictions file; a last line that was cut short is cut off the file.

    Args:
        path: the file.
        mend: whether the file may be changed; a reader leaves it as it is.

    Raises:
        UserError: if another line is damaged.
    """
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    rows = []
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            row = json.loads(line)
            Prediction.from_line(row)
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path}: line {number} is damaged ({error!r}); remove that line to have it answered again, "
                "or give another output_dir"
            ) from error
        rows.append(row)
    if mend and len(whole) < len(content):
        with path.open("r+b") as file:
            file.truncate(len(whole))
    return rows


class RunFolder:
    """An evaluation's output folder, held by one evaluator at a time.

    Args:
        path: the folder; new, empty, or that of an evaluation with the same fingerprint that was stopped.
        fingerprint: everything that decides the answers; a folder made with another one is refused.
        private: whether the folder is for its owner alone.
    """

    def __init__(self, path: Path, fingerprint: dict[str, Any], *, private: bool = False) -> None:
        self.path, self._private = path, private
        self._fingerprint = json.loads(json.dumps(fingerprint))
        self._lock = FileLock(path / ".lock", timeout=0)
        self._answers = 0

    def claim(self) -> None:
        """Check that the folder is free for this evaluation; one that exists is locked, and nothing is written yet.

        Raises:
            UserError: if the folder holds something else, or another evaluator is writing to it.
        """
        if (self.path / RUN_FILE).is_file():
            self._take_lock()
            self._check_same()
        else:
            require_new_folder(self.path)

    def _take_lock(self) -> None:
        try:
            self._lock.acquire()
        except Timeout as error:
            raise UserError(
                f"output_dir: another evaluation is writing to {self.path}; wait for it, or give another folder"
            ) from error

    def _check_same(self) -> None:
        try:
            earlier = json.loads((self.path / RUN_FILE).read_text(encoding="utf-8"))["fingerprint"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"output_dir: {self.path / RUN_FILE} is damaged ({error!r}); give another folder"
            ) from error
        ours = self._fingerprint
        differing = sorted(key for key in earlier.keys() | ours.keys() if earlier.get(key) != ours.get(key))
        if differing:
            key = differing[0]
            raise UserError(
                f"output_dir: {self.path} already holds files of another evaluation, which differs in {', '.join(differing)} "
                f"({key} was {earlier.get(key)!r}, now {ours.get(key)!r}); give another folder"
            )

    def open(self, run: dict[str, Any]) -> None:
        """Create the folder, or go on in it, and gather the lines of all processes.

        Args:
            run: what to note in run.json beside the fingerprint.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        if self._private:
            self.path.chmod(0o700)
        if not self._lock.is_locked:
            self._take_lock()
            write_json(self.path / RUN_FILE, {**run, "fingerprint": self._fingerprint})
        self._gather()
        self._answers = self._count()

    def _gather(self) -> dict[Key, dict[str, Any]]:
        """Move the lines of all processes into predictions.jsonl and return them; of two with one key, the later counts."""
        main = self.path / PREDICTIONS
        shares = sorted(self.path.glob("predictions.rank*.jsonl"))
        rows: dict[Key, dict[str, Any]] = {}
        for path in ([main] if main.exists() else []) + shares:
            rows |= {line_key(row): row for row in read_lines(path)}
        if shares:
            write_text(main, "".join(map(json_text, rows.values())))
            for path in shares:
                path.unlink()
        return rows

    def lines(self) -> dict[Key, dict[str, Any]]:
        """Return all lines that are there by what they answer, after gathering them from all processes."""
        return self._gather()

    def rewrite(self, predictions: Sequence[Prediction]) -> None:
        """Replace predictions.jsonl by these, scores and all."""
        write_text(self.path / PREDICTIONS, "".join(json_text(prediction.line()) for prediction in predictions))

    def _run(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.path / RUN_FILE).read_text(encoding="utf-8"))
        return content

    def note_session(self, seconds: float) -> None:
        """Add to run.json how many answers came since `open`, and in how many seconds by the clock."""
        answers = self._count() - self._answers
        if answers > 0:
            run = self._run()
            run.setdefault("sessions", []).append({"answers": answers, "seconds": round(seconds, 3)})
            write_json(self.path / RUN_FILE, run)

    def _count(self) -> int:
        """Return the number of lines of all processes; their files may still be written to."""
        return sum(path.read_bytes().count(b"\n") for path in self.path.glob("predictions*.jsonl"))

    def speed(self) -> dict[str, float | None]:
        """Return the seconds of all sessions by the clock, and the answers given in one of them."""
        sessions = self._run().get("sessions", [])
        seconds = sum(session["seconds"] for session in sessions)
        answers = sum(session["answers"] for session in sessions)
        return {
            "wall_seconds": round(seconds, 2),
            "answers_per_second": round(answers / seconds, 3) if seconds else None,
        }

    def close(self) -> None:
        """Let other evaluators in."""
        self._lock.release()


class LineWriter:
    """Appends answers to one process's file; a line is with the operating system when `append` returns.

    Args:
        folder: the run's folder.
        rank: the process; 0 writes predictions.jsonl itself.
    """

    def __init__(self, folder: Path, rank: int = 0) -> None:
        name = PREDICTIONS if rank == 0 else f"predictions.rank{rank}.jsonl"
        self._file = (folder / name).open("a", encoding="utf-8")

    def append(self, prediction: Prediction) -> None:
        """Append one answer."""
        self._file.write(json_text(prediction.line()))
        self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
