"""A table's figures: bars with intervals, radars by attribute, lines over the rows' `x`."""

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ift_components.evaluation.charts import COLOURS, interval_bars, plain_text, radar
from ift_components.files import atomic_path
from ift_components.pages import printable
from ift_components.statistics import mean
from ift_components.tables.cells import Cell, Table
from ift_components.tables.folder import State, progress_of
from ift_components.tables.plan import Plan, Row
from ift_components.tables.runs import Planned
from ift_components.tables.settings import ColumnSettings

_MOST_LINES = 6  # of a radar: more cannot be told apart


def draw_figures(plan: Plan, planned: Planned, table: Table) -> list[Path]:
    """Draw the figures that the plan asks for and that have something to show; return their paths."""
    folder = plan.output / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    return [*_bars(plan, table, folder), *_radars(plan, planned, folder), *_lines(plan, table, folder)]


def _save(url: str, path: Path) -> Path:
    with atomic_path(path) as temporary:
        temporary.write_bytes(base64.b64decode(url.partition(",")[2]))
    return path


def _slug(text: str) -> str:
    return "".join(char if char.isalnum() else "-" for char in text.casefold()).strip("-")


def _bars(plan: Plan, table: Table, folder: Path) -> list[Path]:
    first = next(iter(plan.columns))
    usual = [first] if plan.columns[first].unit == "percent" else []
    columns = usual if plan.settings.figures.bars is None else plan.settings.figures.bars
    paths = []
    for title in columns:
        shown: dict[str, dict[str, tuple[float, tuple[float, float]]]] = {}
        for name, dataset in plan.tabled.items():
            cells = {row.name: table.cells.get((row.name, name, title)) for row in plan.rows}
            shown[dataset.title] = {n: _bar(cell) for n, cell in cells.items() if cell is not None and cell.values}
        # Every dataset is a bar of a row, so that a row must have been run on all of them.
        rows = [row.name for row in plan.rows if all(row.name in bars for bars in shown.values())]
        if rows:
            groups = {name: {row: bars[row] for row in rows} for name, bars in shown.items()}
            paths.append(_save(interval_bars(groups, {}, axis=f"{title}, %"), folder / f"bars-{_slug(title)}.png"))
    return paths


def _bar(cell: Cell) -> tuple[float, tuple[float, float]]:
    middle = cell.mean or 0.0
    return middle, cell.interval or (middle - (cell.sd or 0.0), middle + (cell.sd or 0.0))


def _radars(plan: Plan, planned: Planned, folder: Path) -> list[Path]:
    chosen = plan.settings.figures.radar
    rows = [row for row in plan.rows if row.values is None and (chosen is None or row.name in chosen)]
    if chosen is None and len(rows) > _MOST_LINES:
        return []
    paths = []
    for name in plan.tabled:
        lines, chance = {}, dict[str, float]()
        for row in rows:
            results = _results(plan, planned, row, name)
            attributes = [entry["attributes"] for entry in results if entry.get("attributes")]
            if attributes:
                chance = chance or {key: rates["chance"] for key, rates in attributes[0].items()}
                lines[row.name] = {key: mean(entry[key]["accuracy"] for entry in attributes) for key in chance}
        url = radar(lines, chance) if lines else None
        if url is not None:
            paths.append(_save(url, folder / f"radar-{_slug(name)}.png"))
    return paths


def _results(plan: Plan, planned: Planned, row: Row, dataset: str) -> list[dict[str, Any]]:
    stage = plan.stage_of(ColumnSettings(key="attributes"))
    runs = [planned.runs[i] for i in planned.cells.get((row.name, dataset), {}).get(stage, [])]
    paths = [run.out / "results.json" for run in runs if progress_of(run.folder).state is State.FINISHED]
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.is_file()]


def _lines(plan: Plan, table: Table, folder: Path) -> list[Path]:
    rows = [row for row in plan.rows if row.x is not None]
    if not rows:
        return []
    settings = plan.settings.figures
    columns = list(plan.columns)[:2] if settings.line is None else settings.line
    paths = []
    for title in columns:
        series: dict[str, list[tuple[float, Cell]]] = {}
        for name, dataset in plan.tabled.items():
            for row in rows:
                cell = table.cells.get((row.name, name, title))
                if cell is not None and cell.values and row.x is not None:
                    label = ", ".join(part for part in (dataset.title, row.series) if part)
                    series.setdefault(label, []).append((row.x, cell))
        if series:
            path = folder / f"line-{_slug(title)}.png"
            share = plan.columns[title].unit == "percent"
            _draw_lines(
                series, path, (settings.x_title, f"{title}, %" if share else title), log=settings.x_log, share=share
            )
            paths.append(path)
    return paths


@plain_text()
def _draw_lines(
    series: Mapping[str, Sequence[tuple[float, Cell]]], path: Path, titles: tuple[str, str], *, log: bool, share: bool
) -> None:
    """Draw a line a series, with the intervals over images and seeds or else the standard deviations."""
    figure = Figure(figsize=(6.4, 4.2), dpi=110, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes: Any = figure.add_subplot()
    scale = 100 if share else 1
    for index, (label, unsorted) in enumerate(series.items()):
        points = sorted(unsorted, key=lambda point: point[0])
        bars = [_bar(cell) for _, cell in points]
        middles = [scale * middle for middle, _ in bars]
        below = [max(0.0, scale * (middle - low)) for middle, (low, _) in bars]
        above = [max(0.0, scale * (high - middle)) for middle, (_, high) in bars]
        colour = COLOURS[index % len(COLOURS)]
        line = axes.errorbar(
            [x for x, _ in points], middles, yerr=[below, above], marker="o", capsize=3, color=colour, linewidth=1.8
        )
        line.set_label(printable(label).lstrip("_"))
    if log and all(x > 0 for points in series.values() for x, _ in points):
        axes.set_xscale("log")
    ticks = sorted({x for points in series.values() for x, _ in points})
    axes.set_xticks(ticks, [f"{x:g}" for x in ticks])
    axes.minorticks_off()
    axes.set_xlabel(titles[0])
    axes.set_ylabel(titles[1])
    axes.grid(color="#e3e3e3")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    with atomic_path(path) as temporary:
        canvas.print_figure(temporary, format="png")
