"""What the cells of a table show: means over seeds at any moment, intervals and tests once all runs of the table are there."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from ift_components.errors import DataError
from ift_components.evaluation.compare import read_run
from ift_components.evaluation.pairs import Run, measure_of
from ift_components.statistics import holm, mean_sd
from ift_components.tables.folder import State, progress_of
from ift_components.tables.plan import Plan, Row
from ift_components.tables.runs import Planned
from ift_components.tables.settings import ColumnSettings

TRAINED_SHARE = "trained_share"
_KEPT = 512  # files whose content is kept, by their time


@dataclass
class Difference:
    """A row's figure less another row's, paired by question.

    Attributes:
        value: the difference.
        low: lower end of its 95 % interval over images and seeds.
        high: its upper end.
        p: p-value of no difference.
        p_holm: the same, corrected for all tests of the table.
    """

    value: float
    low: float
    high: float
    p: float
    p_holm: float | None = None


@dataclass
class Cell:
    """One figure of a row on a dataset.

    Attributes:
        values: one a finished run, in the order of seeds.
        planned: runs that are planned.
        finished: those that have ended; one that has no such figure gives no value.
        mean: mean over the values.
        sd: their standard deviation (n - 1); None for one.
        interval: 95 % interval over images and seeds; None where the figure is no mean over questions.
        paper: the paper's own number.
        differences: by the row that it is compared with, the baseline and those that the plan names.
    """

    values: list[float]
    planned: int
    finished: int = 0
    mean: float | None = None
    sd: float | None = None
    interval: tuple[float, float] | None = None
    paper: float | None = None
    differences: dict[str, Difference] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the cell as plain data."""
        return asdict(self)


@dataclass
class Table:
    """The table of a plan.

    Attributes:
        cells: by row, dataset and column.
        notes: what had to be left out, and why.
        complete: whether intervals and tests were made.
    """

    cells: dict[tuple[str, str, str], Cell]
    notes: list[str]
    complete: bool


def dig(node: Any, key: str) -> Any:
    """Return the value at a dotted key, or None; names between the dots may hold dots themselves."""
    if key == "":
        return node
    if not isinstance(node, Mapping):
        return None
    words = key.split(".")
    for number in range(len(words), 0, -1):
        head = ".".join(words[:number])
        value = dig(node[head], ".".join(words[number:])) if head in node else None
        if value is not None:
            return value
    return None


def figure(folder: Path, column: ColumnSettings, key: str) -> float | None:
    """Return the number that a stage's folder has for a key; None if it has none.

    Args:
        folder: what the stage wrote.
        column: says which file.
        key: the dotted key.

    Raises:
        DataError: if what stands there is no number.
    """
    path = folder / column.file
    if not path.is_file():
        return None
    if key == TRAINED_SHARE:
        facts = _content(folder / "run.json", (folder / "run.json").stat().st_mtime_ns)
        return sum(facts["trained_parameters"].values()) / float(facts["parameters"])
    value = dig(_content(path, path.stat().st_mtime_ns), key)
    if isinstance(value, list | Mapping):
        return float(len(value))
    if value is not None and not isinstance(value, int | float):
        raise DataError(f"columns: {key} in {path} is {value!r}, no number")
    return None if value is None else float(value)


@lru_cache(maxsize=_KEPT)
def _content(path: Path, _time: int) -> Any:
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".jsonl":
        return json.loads(text)
    merged: dict[str, Any] = {}
    for line in text.splitlines():
        merged |= json.loads(line)
    return merged


def key_of(row: Row, title: str, column: ColumnSettings) -> str | None:
    """Return the key that a row shows in a column; None if its cell is empty."""
    return column.key if row.values is None else row.values.get(title)


def make_table(plan: Plan, planned: Planned, *, complete: bool) -> Table:
    """Read the figures of all finished runs.

    Args:
        plan: the plan.
        planned: its runs.
        complete: whether to make intervals and tests too, which reads every answer again.
    """
    table = Table({}, [], complete)
    for row in plan.rows:
        for dataset in row.datasets:
            for title in plan.columns:
                table.cells[row.name, dataset, title] = _cell(plan, planned, row, dataset, title)
    if complete:
        for dataset in plan.datasets:
            _add_spread(plan, planned, dataset, table)
        tested = [difference for cell in table.cells.values() for difference in cell.differences.values()]
        for difference, corrected in zip(tested, holm([one.p for one in tested]), strict=True):
            difference.p_holm = corrected
    return table


def _folders(plan: Plan, planned: Planned, row: Row, dataset: str, column: ColumnSettings) -> list[tuple[Path, bool]]:
    """Return the folders of a row's runs and whether each is finished."""
    ids = planned.cells[row.name, dataset].get(plan.stage_of(column), [])
    runs = [planned.runs[run_id] for run_id in ids]
    return [(run.out, progress_of(run.folder).state is State.FINISHED) for run in runs]


def _cell(plan: Plan, planned: Planned, row: Row, dataset: str, title: str) -> Cell:
    column = plan.columns[title]
    key, folders = key_of(row, title, column), _folders(plan, planned, row, dataset, column)
    cell = Cell([], len(folders) if key is not None else 0)
    paper = row.paper.get(dataset)
    number = paper.get(title) if isinstance(paper, dict) else row.paper.get(title)
    cell.paper = None if number is None or isinstance(number, dict) else float(number)
    if key is None:
        return cell
    found = [figure(folder, column, key) for folder, finished in folders if finished]
    cell.finished = len(found)
    cell.values = [value for value in found if value is not None]
    if cell.values:
        cell.mean, cell.sd = mean_sd(cell.values)
    return cell


def _add_spread(plan: Plan, planned: Planned, dataset: str, table: Table) -> None:
    """Add intervals to a dataset's cells, and tests against the rows that they are compared with."""
    runs: dict[tuple[str, str], list[Run]] = {}
    for row in plan.rows:
        if dataset not in row.datasets or row.values is not None:
            continue
        for column in plan.columns.values():
            stage = plan.stage_of(column)
            if column.file == "results.json" and (row.name, stage) not in runs:
                folders = [f for f, finished in _folders(plan, planned, row, dataset, column) if finished]
                runs[row.name, stage] = _read(folders, row.name, table.notes)
    for row in plan.rows:
        for title, column in plan.columns.items():
            stage = plan.stage_of(column)
            own = runs.get((row.name, stage), [])
            if own and column.file == "results.json":
                others = {name: runs[name, stage] for name in plan.compared(row, title) if runs.get((name, stage))}
                _spread(table.cells[row.name, dataset, title], own, others, column.key, table.notes)


def _read(folders: Sequence[Path], row: str, notes: list[str]) -> list[Run]:
    runs = []
    for folder in folders:
        if not (folder / "predictions.jsonl").is_file():
            continue  # results of another kind, such as a judging's
        try:
            run = read_run(folder, row, key=f"row '{row}'")
        except DataError as error:
            _note(notes, str(error))
            continue
        runs.append(Run(row, {**run.results, "label": row}, run.predictions))
    return runs


def _spread(cell: Cell, own: Sequence[Run], others: Mapping[str, Sequence[Run]], key: str, notes: list[str]) -> None:
    measure = measure_of(own[0], key)
    if measure is None or cell.mean is None:
        return
    cell.interval = measure.interval(own)
    for name, other in others.items():
        of_other = None if measure.from_image else measure_of(other[0], key)
        if of_other is None:
            continue
        try:
            found = of_other.compared(other, own)
        except DataError as error:
            _note(notes, f"{own[0].name} is not compared: {str(error).removeprefix('compare: ')}")
        else:
            cell.differences[name] = Difference(found.difference, found.low, found.high, found.p)


def _note(notes: list[str], text: str) -> None:
    if text not in notes:
        notes.append(text)
