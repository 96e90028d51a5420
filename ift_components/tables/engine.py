"""One plan from beginning to end: what is to be run, running it while a page shows how far it is, and the table."""

import importlib.util
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from omegaconf import OmegaConf

from ift_components.errors import ConfigError, UserError
from ift_components.files import locked, sha256, write_json, write_text
from ift_components.tables.cells import Table, make_table
from ift_components.tables.figures import draw_figures
from ift_components.tables.folder import CONFIG, DONE, LOG, SPEC, State, last_lines, progress_of
from ift_components.tables.pages import REFRESH, Shown, duration, plain_table, shown_runs, write_status, write_tables
from ift_components.tables.plan import Plan
from ift_components.tables.runs import Planned, PlannedRun, plan_runs

_LOOK = 1.0  # seconds between two looks at the runs' folders
_MINUTE = 60
_NOT_KNOWN = 5.0  # minutes that a run is taken for where the plan says nothing


class TableRun:
    """A plan's runs and its table.

    Args:
        plan: from `load_plan`.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    def run(self) -> None:
        """Do what is not done and write the table; with `dry_run`, print what would be done.

        Raises:
            UserError: for everything wrong with the plan, before any run starts; and at the end, if runs failed.
        """
        plan = self.plan
        planned = plan_runs(plan)
        if plan.settings.dry_run:
            print(listing(plan, planned))
            return
        _check_engine(plan)
        busy = f"output_dir: another process is at work on {plan.output}; wait for it, or give another output_dir"
        try:
            with locked(plan.output, busy):
                self._run(planned)
        except OSError as error:
            raise UserError(
                f"output_dir: {plan.output} cannot be written: {error.strerror or error}; what is finished is kept, the same "
                "command goes on"
            ) from error

    def _run(self, planned: Planned) -> None:
        plan = self.plan
        before = sha256(plan.file)
        plan.output.mkdir(parents=True, exist_ok=True)
        _write_specs(plan, planned)
        if any(not (run.folder / DONE).is_file() for run in planned.runs.values()):
            from ift_components.tables.workflow import run_workflow, write_snakefile  # noqa: PLC0415 (an extra)

            snakefile = write_snakefile(plan, planned.runs.values())
            with Watch(plan, planned).watching():
                run_workflow(plan, snakefile)
        table = make_table(plan, planned, complete=True)
        write_tables(plan, planned, table, draw_figures(plan, planned, table))
        if sha256(plan.file) != before:
            print(
                f"note: {plan.file} was changed while it ran; this is the table of the plan as it was. Run it again for the "
                "rows that changed",
                file=sys.stderr,
            )
        _report(plan, planned, table)


def _check_engine(plan: Plan) -> None:
    """Check that Snakemake is installed, and Slurm there if it is asked for."""
    if importlib.util.find_spec("snakemake") is None:
        raise ConfigError("a table's runs need snakemake: pip install 'instruction-free-tuning[tables]'")
    if plan.settings.executor == "slurm":
        from ift_components.tables.workflow import check_slurm  # noqa: PLC0415 (an extra)

        check_slurm(plan.settings.partition)


def _write_specs(plan: Plan, planned: Planned) -> None:
    """Write how every run is started; what is finished stays as it was."""
    local = plan.settings.executor == "local"
    threads = max(1, (os.cpu_count() or 1) // plan.settings.jobs) if local else 1
    for run in planned.runs.values():
        if (run.folder / DONE).is_file():
            continue
        run.folder.mkdir(parents=True, exist_ok=True)
        if run.config is not None:
            write_text(run.folder / CONFIG, OmegaConf.to_yaml(OmegaConf.create(run.config)))
        spec = {
            "stage": run.stage,
            "command": list(run.command),
            "cwd": str(Path.cwd()),
            "threads": threads,
            "resume": run.settings.resume,
            "finished": run.settings.finished,
        }
        write_json(run.folder / SPEC, spec)


class Watch:
    """Keeps the page right and says on the terminal what has begun and ended, while the runs are at work.

    Args:
        plan: the plan.
        planned: its runs.
    """

    def __init__(self, plan: Plan, planned: Planned) -> None:
        self.plan, self.planned = plan, planned
        self._stop = threading.Event()
        self._seen: dict[str, tuple[State, int]] = {}
        self._complaint = ""

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch while the context lasts."""
        self._look(say=False)
        thread = threading.Thread(target=self._watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()
            self._look(running=False)

    def _watch(self) -> None:
        waited = 0.0
        while not self._stop.wait(_LOOK):
            waited += _LOOK
            if self._changed() or waited >= REFRESH:
                self._look()
                waited = 0.0

    def _marks(self) -> dict[str, tuple[State, int]]:
        marks = {}
        for run in self.planned.runs.values():
            progress = progress_of(run.folder)
            marks[run.id] = (progress.state, int(progress.facts.get("attempts", 0)))
        return marks

    def _changed(self) -> bool:
        return self._marks() != self._seen

    def _look(self, *, running: bool = True, say: bool = True) -> None:
        """Say what has changed and write the page; a full disk must not end the runs, which may be elsewhere."""
        marks = self._marks()
        if say:
            for run_id, (state, attempt) in marks.items():
                if (state, attempt) != self._seen.get(run_id) and state is not State.WAITING:
                    self._say(run_id, state, marks)
        self._seen = marks
        try:
            write_status(self.plan, self.planned, make_table(self.plan, self.planned, complete=False), running=running)
        except OSError as error:
            if str(error) != self._complaint:
                self._complaint = str(error)
                print(f"table.html cannot be written: {error}", file=sys.stderr)

    def _say(self, run_id: str, state: State, marks: dict[str, tuple[State, int]]) -> None:
        finished = sum(mark[0] is State.FINISHED for mark in marks.values())
        seconds = progress_of(self.planned.runs[run_id].folder).facts.get("seconds") or 0.0
        took = f" after {duration(seconds)}" if state is not State.RUNNING and seconds else ""
        print(f"[{finished} of {len(marks)}] {run_id}: {state}{took}", file=sys.stderr, flush=True)


def _report(plan: Plan, planned: Planned, table: Table) -> None:
    """Print the table and say where it is.

    Raises:
        UserError: if runs failed or were interrupted, after their logs' last lines have been printed.
    """
    shown = shown_runs(planned)
    failed = [one for one in shown if one.progress.state is State.FAILED]
    for one in failed:
        print(f"\n{one.run.id} (for {'; '.join(one.run.rows)}) failed:", file=sys.stderr)
        for line in last_lines(one.run.folder / LOG):
            print(f"  {line}", file=sys.stderr)
    print(f"\n{plain_table(plan, table)}\n\ntable: {plan.output / 'table.html'}")
    left = [one for one in shown if one.progress.state is not State.FINISHED]
    if left:
        logs = f"; logs: {failed[0].run.folder / LOG}{' and others' if len(failed) > 1 else ''}" if failed else ""
        raise UserError(
            f"{len(failed)} of {len(shown)} runs failed and {len(left) - len(failed)} are not done{logs}; the same command "
            "goes on with them"
        )


def expected_minutes(run: PlannedRun, measured: dict[str, list[float]]) -> float:
    """Return how long a run is expected to take: as those of its stage that have ended here, or else as the plan says."""
    times = measured.get(run.stage)
    if times:
        return sum(times) / len(times) / _MINUTE
    return _NOT_KNOWN if run.settings.minutes is None else run.settings.minutes


def listing(plan: Plan, planned: Planned) -> str:
    """Return what would be run as text: every run, their number, and the time and memory that they are expected to take."""
    shown = shown_runs(planned)
    measured: dict[str, list[float]] = {}
    memory: dict[str, float] = {}
    for one in shown:
        if one.progress.state is State.FINISHED:
            measured.setdefault(one.run.stage, []).append(one.progress.facts["seconds"])
            largest = max(memory.get(one.run.stage, 0.0), one.progress.facts["memory_gb"])
            memory[one.run.stage] = largest
    width = max(len(one.run.id) for one in shown)
    lines = [f"{one.run.id.ljust(width)}  {one.progress.state.ljust(11)}  {'; '.join(one.run.rows)}" for one in shown]
    left = [one for one in shown if one.progress.state is not State.FINISHED]
    minutes = _span(left, measured, plan.settings.jobs)
    most = sorted((memory.get(one.run.stage, one.run.settings.memory_gb) for one in left), reverse=True)
    total = sum(most[: plan.settings.jobs])
    lines.append(
        f"{len(left)} of {len(shown)} runs are to be done: about {duration(minutes * _MINUTE)} with jobs={plan.settings.jobs}, "
        f"{total:.3g} GB of memory"
    )
    return "\n".join(lines)


def _span(left: Sequence[Shown], measured: dict[str, list[float]], jobs: int) -> float:
    """Return the minutes that runs take, so many at a time: all of them shared out, but no less than the longest chain."""
    chains: dict[str, float] = {}
    for one in left:
        before = max((chains.get(needed, 0.0) for needed in one.run.needs), default=0.0)
        chains[one.run.id] = before + expected_minutes(one.run, measured)
    total = sum(expected_minutes(one.run, measured) for one in left)
    return max(total / jobs, max(chains.values(), default=0.0))
