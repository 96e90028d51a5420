"""Pictures and tables that the result pages share."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from ift_components.files import atomic_path
from ift_components.pages import data_url, tex

COLOURS = ("#1b6ca8", "#d1495b", "#3a8f5c", "#8e5ea2", "#c98a1b", "#4d4d4d", "#17a2b8", "#a0522d")
_FEWEST_AXES = 3  # a radar chart of fewer is no area
PAPER_DATASETS = ("SKINCON", "WBCAtt", "CBIS")


def radar(lines: Mapping[str, Mapping[str, float]], baseline: Mapping[str, float]) -> str | None:
    """Draw accuracies by attribute as a radar chart, like the paper's Fig. 5.

    Args:
        lines: for each run, accuracy (0 to 1) by attribute.
        baseline: chance by attribute, drawn dashed.

    Returns:
        The chart as a data URL; None for fewer than three attributes.
    """
    names = list(baseline)
    if len(names) < _FEWEST_AXES:
        return None
    angles = np.linspace(0, 2 * np.pi, len(names), endpoint=False)
    closed = [*angles, angles[0]]
    figure = Figure(figsize=(6.4, 5.4), dpi=110)
    canvas = FigureCanvasAgg(figure)
    axes: Any = figure.add_subplot(projection="polar")
    axes.set_theta_offset(np.pi / 2)
    axes.set_theta_direction(-1)
    for index, (label, values) in enumerate(lines.items()):
        heights = [100 * values[name] for name in names]
        colour = COLOURS[index % len(COLOURS)]
        axes.plot(closed, [*heights, heights[0]], color=colour, linewidth=2, marker="o", markersize=3.5, label=label)
        axes.fill(closed, [*heights, heights[0]], color=colour, alpha=0.12)
    heights = [100 * baseline[name] for name in names]
    axes.plot(closed, [*heights, heights[0]], color="#777777", linewidth=1, linestyle="--", label="chance")
    axes.set_xticks(angles, [name.replace(" ", "\n") for name in names], fontsize=8)
    axes.tick_params(axis="x", pad=14)
    axes.set_ylim(0, 100)
    axes.set_yticks([20, 40, 60, 80, 100])
    axes.tick_params(axis="y", labelsize=7, colors="#666666")
    axes.grid(color="#dddddd")
    axes.spines["polar"].set_color("#cccccc")
    figure.legend(loc="lower center", ncols=3, fontsize=8, frameon=False)
    figure.subplots_adjust(left=0.12, right=0.88, top=0.9, bottom=0.16)
    canvas.draw()
    return data_url(Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB"))


def grouped_bars(scores: Mapping[str, Mapping[str, float]], path: Path, *, title: str) -> None:
    """Draw scores as groups of bars, a group a measure and a bar a run, and write them as a PNG.

    Args:
        scores: for each run, its shares (0 to 1) by measure; all have the same measures.
        path: the file to write.
        title: the chart's title.
    """
    measures = list(next(iter(scores.values())))
    width = 0.8 / len(scores)
    figure = Figure(figsize=(8, 4.2), dpi=130)
    canvas = FigureCanvasAgg(figure)
    axes: Any = figure.add_subplot()
    for index, (label, values) in enumerate(scores.items()):
        places = [place + (index - (len(scores) - 1) / 2) * width for place in range(len(measures))]
        heights = [values[name] for name in measures]
        bars = axes.bar(places, heights, width * 0.92, color=COLOURS[index % len(COLOURS)], label=label)
        axes.bar_label(bars, [f"{height:.2f}" for height in heights], fontsize=7, padding=1)
    axes.set_xticks(range(len(measures)), measures)
    axes.set_ylim(0, 1.08)
    axes.set_ylabel("share of answers")
    axes.set_title(title, fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="lower center", ncols=len(scores), fontsize=8, frameon=False)
    figure.subplots_adjust(left=0.08, right=0.98, top=0.9, bottom=0.18)
    with atomic_path(path) as temporary:
        canvas.print_figure(temporary, format="png")


def latex_rows(groups: Mapping[str, Mapping[str, tuple[float, float | None]]]) -> str:
    """Return rows of the paper's Table 1: method, one column a dataset, average.

    The average is given where every column is filled; a standard deviation where there are several seeds.

    Args:
        groups: for each method, mean accuracy and standard deviation by dataset.
    """
    paper_names = {name.casefold().replace("-ddsm", "").replace("_ddsm", ""): name for name in PAPER_DATASETS}

    def column(dataset: str) -> str:
        return paper_names.get(dataset.casefold().replace("-ddsm", "").replace("_ddsm", ""), dataset)

    by_column = {method: {column(name): value for name, value in row.items()} for method, row in groups.items()}
    others = sorted({name for row in by_column.values() for name in row} - set(PAPER_DATASETS))
    columns = [*PAPER_DATASETS, *others]
    lines = [f"% {' & '.join(['method', *columns, 'Avg'])} \\\\ (accuracy in percent)"]
    for method, row in by_column.items():
        cells = [tex(method)]
        for name in columns:
            if name not in row:
                cells.append("--")
                continue
            mean, sd = row[name]
            cells.append(f"{100 * mean:.1f}" + (f" $\\pm$ {100 * sd:.1f}" if sd is not None else ""))
        whole = all(name in row for name in columns)
        cells.append(f"{100 * sum(row[name][0] for name in columns) / len(columns):.1f}" if whole else "--")
        lines.append(" & ".join(cells) + r" \\")
    return "\n".join(lines) + "\n"


def shades(counts: Sequence[Sequence[int]]) -> list[list[float]]:
    """Return each count's share of its row, 0 to 1."""
    return [[count / max(1, sum(row)) for count in row] for row in counts]
