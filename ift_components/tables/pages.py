"""A table as HTML, Markdown, LaTeX, CSV and JSON."""

import base64
import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from ift_components.config import command_line
from ift_components.files import write_json, write_text
from ift_components.pages import environment, now, tex
from ift_components.statistics import mean, rounded
from ift_components.tables.cells import Cell, Difference, Table
from ift_components.tables.folder import LOG, Progress, State, last_lines, progress_of
from ift_components.tables.plan import Plan
from ift_components.tables.runs import Planned, PlannedRun
from ift_components.tables.settings import ColumnSettings

REFRESH = 30
"""Seconds after which a page that is being written is loaded anew; it is written at least as often."""

_TAIL = 8
_MINUTE = 60
_SIGNIFICANT = 0.05
_CSV_HEAD = ("row", "dataset", "column", "unit", "seeds", "planned", "mean", "sd", "low", "high", "paper", "values")
_DIFFERENCES_HEAD = ("row", "than", "dataset", "column", "unit", "difference", "low", "high", "p", "p_holm")


@dataclass(frozen=True)
class Shown:
    """A run as the page shows it."""

    run: PlannedRun
    progress: Progress
    waits_for: str | None

    @property
    def log(self) -> list[str]:
        """The last lines of a log that ended badly."""
        return last_lines(self.run.folder / LOG, _TAIL)

    @property
    def took(self) -> str:
        """How long it took so far, as text."""
        seconds = self.progress.facts.get("seconds")
        return duration(seconds) if seconds else ""


def duration(seconds: float) -> str:
    """Return a time as text."""
    if seconds < _MINUTE:
        return f"{seconds:.0f} s"
    minutes = seconds / _MINUTE
    return f"{minutes:.0f} min" if minutes < 2 * _MINUTE else f"{minutes / _MINUTE:.1f} h"


def shown_runs(planned: Planned) -> list[Shown]:
    """Return all runs and how far they are; one whose input failed waits for it."""
    shown: dict[str, Shown] = {}
    for run in planned.runs.values():
        blocked = [
            shown[needed].waits_for or needed
            for needed in run.needs
            if shown[needed].waits_for or shown[needed].progress.state is State.FAILED
        ]
        shown[run.id] = Shown(run, progress_of(run.folder), blocked[0] if blocked else None)
    return list(shown.values())


def number_text(value: float | None, column: ColumnSettings) -> str:
    """Return a figure as the table prints it: a share in percent, a number as it is."""
    if value is None:
        return ""
    if column.unit == "percent":
        return f"{100 * value:.{1 if column.digits is None else column.digits}f}"
    if column.digits is None:
        return f"{value:.0f}" if value == int(value) else f"{value:.3f}"
    return f"{value:.{column.digits}f}"


def cell_text(cell: Cell | None, column: ColumnSettings, plus_minus: str = "±") -> str:
    """Return mean and standard deviation; `...` where runs are still to come."""
    if cell is None or cell.planned == 0:
        return ""
    if cell.mean is None:
        return "" if cell.finished == cell.planned else "..."
    spread = f" {plus_minus} {number_text(cell.sd, column)}" if cell.sd is not None else ""
    missing = f" ({len(cell.values)} of {cell.planned})" if cell.finished < cell.planned else ""
    return f"{number_text(cell.mean, column)}{spread}{missing}"


def interval_text(cell: Cell | None, column: ColumnSettings) -> str:
    """Return the interval over images and seeds."""
    if cell is None or cell.interval is None:
        return ""
    low, high = cell.interval
    return f"{number_text(low, column)} to {number_text(high, column)}"


def difference_text(found: Difference | None, column: ColumnSettings) -> str:
    """Return the difference to another row with its interval and p-value corrected by Holm."""
    if found is None:
        return ""
    scale = 100 if column.unit == "percent" else 1
    value, low, high = (f"{scale * end:+z.1f}" for end in (found.value, found.low, found.high))
    return f"{value} ({low} to {high}), p = {found.p_holm:.2g}"


def is_clear(found: Difference | None) -> bool:
    """Return whether a difference has p < 0.05 after Holm's correction."""
    return found is not None and found.p_holm is not None and found.p_holm < _SIGNIFICANT


@dataclass(frozen=True)
class ComparedRows:
    """The rows of a dataset that are compared with one row, and the columns in which some of them are."""

    than: str
    rows: list[str]
    columns: list[str]


def comparisons(plan: Plan, table: Table, dataset: str) -> list[ComparedRows]:
    """Return all comparisons of a dataset, those with the baseline first."""
    cells = {(row, title): cell for (row, name, title), cell in table.cells.items() if name == dataset}
    others = dict.fromkeys(than for cell in cells.values() for than in cell.differences)
    compared = []
    for than in sorted(others, key=lambda than: than != plan.baseline):
        places = [place for place, cell in cells.items() if than in cell.differences]
        rows, titles = (dict.fromkeys(side) for side in zip(*places, strict=True))
        compared.append(ComparedRows(than, list(rows), [title for title in plan.columns if title in titles]))
    return compared


def seeds_text(plan: Plan, table: Table, row: str, dataset: str) -> str:
    """Return how many runs a row's first cells are the mean of."""
    counts = [
        len(cell.values) for title in plan.columns if (cell := table.cells.get((row, dataset, title))) is not None
    ]
    return str(max(counts, default=0) or "")


def plain_table(plan: Plan, table: Table) -> str:
    """Return the table as plain text, for a terminal: a block a dataset."""
    blocks = []
    for name, dataset in plan.tabled.items():
        lines = [[dataset.title, *plan.columns]]
        for row in plan.rows:
            if name in row.datasets:
                cells = [cell_text(table.cells[row.name, name, key], column) for key, column in plan.columns.items()]
                lines.append([row.name, *cells])
        widths = [max(len(line[place]) for line in lines) for place in range(len(lines[0]))]
        texts = [
            [line[0].ljust(widths[0]), *(t.rjust(w) for t, w in zip(line[1:], widths[1:], strict=True))]
            for line in lines
        ]
        blocks.append("\n".join("  ".join(line) for line in texts))
    return "\n\n".join(blocks)


def _summary(plan: Plan, table: Table) -> list[tuple[str, list[str], str]]:
    """Return each row's first column on every dataset, and their mean where all are there."""
    title, column = next(iter(plan.columns.items()))
    lines = []
    for row in plan.rows:
        cells = [table.cells.get((row.name, name, title)) for name in plan.tabled]
        means = [cell.mean for cell in cells if cell is not None and cell.mean is not None]
        average = number_text(mean(means), column) if len(means) == len(plan.tabled) else ""
        lines.append((row.name, [cell_text(cell, column) for cell in cells], average))
    return lines


def _values(plan: Plan, planned: Planned, table: Table, figures: Sequence[Path], *, running: bool) -> dict[str, Any]:
    shown = shown_runs(planned)
    counts = {state: sum(one.progress.state is state for one in shown) for state in State}
    paper = {
        title: any(c.paper is not None for (_, _, t), c in table.cells.items() if t == title) for title in plan.columns
    }
    return {
        "plan": plan,
        "table": table,
        "runs": shown,
        "counts": counts,
        "total": len(shown),
        "failed": [one for one in shown if one.progress.state is State.FAILED],
        "running": running,
        "refresh": REFRESH,
        "date": now(),
        "command": command_line(),
        "summary": _summary(plan, table) if len(plan.tabled) > 1 else [],
        "paper": paper,
        "comparisons": {name: comparisons(plan, table, name) for name in plan.tabled},
        "figures": [(path.stem, base64.b64encode(path.read_bytes()).decode()) for path in figures],
        "figure_files": [path.name for path in figures],
        "cell_text": cell_text,
        "interval_text": interval_text,
        "difference_text": difference_text,
        "is_clear": is_clear,
        "number_text": number_text,
        "seeds_text": seeds_text,
    }


def write_status(plan: Plan, planned: Planned, table: Table, figures: Sequence[Path] = (), *, running: bool) -> None:
    """Write `table.html`: the table as far as it is, and how far every run is.

    Args:
        plan: the plan.
        planned: its runs.
        table: their figures.
        figures: pictures to show.
        running: whether a process is at work, that will write the page again.
    """
    page = environment("ift_components.tables").get_template("table.html")
    write_text(plan.output / "table.html", page.render(_values(plan, planned, table, figures, running=running)))


def write_tables(plan: Plan, planned: Planned, table: Table, figures: Sequence[Path]) -> None:
    """Write `table.html`, `table.md`, `table.tex`, `table.csv`, `differences.csv` and `table.json`."""
    values = _values(plan, planned, table, figures, running=False)
    templates = environment("ift_components.tables")
    for name in ("table.html", "table.md"):
        write_text(plan.output / name, templates.get_template(name).render(values))
    write_text(plan.output / "table.tex", _latex(plan, table))
    write_text(plan.output / "table.csv", _cells_csv(plan, table))
    write_text(plan.output / "differences.csv", _differences_csv(plan, table))
    rows = [
        {"row": row, "dataset": dataset, "column": title, **cell.to_dict()}
        for (row, dataset, title), cell in table.cells.items()
    ]
    content = {"title": plan.settings.title, "baseline": plan.baseline, "cells": rows, "notes": table.notes}
    write_json(plan.output / "table.json", rounded(content))


def _latex(plan: Plan, table: Table) -> str:
    """Return a tabular for each dataset: a row a row, a column a column, bold where it differs from the baseline by Holm."""
    blocks = []
    for name, dataset in plan.tabled.items():
        lines = [
            f"% {plan.settings.title}: {dataset.title}",
            rf"\begin{{tabular}}{{l{'r' * len(plan.columns)}}}",
            r"\hline",
        ]
        heads = [tex(title) + (r" (\%)" if column.unit == "percent" else "") for title, column in plan.columns.items()]
        lines += [" & ".join(["", *heads]) + r" \\", r"\hline"]
        for row in plan.rows:
            if name not in row.datasets:
                continue
            cells = []
            for title, column in plan.columns.items():
                cell = table.cells[row.name, name, title]
                text = cell_text(cell, column, r"$\pm$")
                significant = is_clear(cell.differences.get(plan.baseline or ""))
                cells.append((rf"\textbf{{{text}}}" if significant else text) or "--")
            lines.append(" & ".join([tex(row.name), *cells]) + r" \\")
        blocks.append("\n".join([*lines, r"\hline", r"\end{tabular}"]))
    note = (
        "% mean and standard deviation over seeds; bold: differs from the baseline, p < 0.05 after Holm's correction\n"
    )
    return note + "\n\n".join(blocks) + "\n"


def _csv(head: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(head)
    for line in lines:
        writer.writerow([f"{v:.8g}" if isinstance(v, float) else "" if v is None else v for v in line])
    return buffer.getvalue()


def _unit(plan: Plan, title: str) -> str:
    return "share" if plan.columns[title].unit == "percent" else "number"


def _cells_csv(plan: Plan, table: Table) -> str:
    lines = []
    for (row, dataset, title), cell in table.cells.items():
        every = " ".join(f"{value:.8g}" for value in cell.values)
        figures = (cell.mean, cell.sd, *(cell.interval or ("", "")), cell.paper, every)
        lines.append((row, dataset, title, _unit(plan, title), len(cell.values), cell.planned, *figures))
    return _csv(_CSV_HEAD, lines)


def _differences_csv(plan: Plan, table: Table) -> str:
    lines = [
        (row, than, dataset, title, _unit(plan, title), *astuple(found))
        for (row, dataset, title), cell in table.cells.items()
        for than, found in cell.differences.items()
    ]
    return _csv(_DIFFERENCES_HEAD, lines)
