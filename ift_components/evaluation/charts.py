"""Pictures and tables that the result pages share."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from ift_components.pages import data_url, printable, tex

COLOURS = ("#1b6ca8", "#d1495b", "#3a8f5c", "#8e5ea2", "#c98a1b", "#4d4d4d", "#17a2b8", "#a0522d")
_MARKS = (("#111111", "solid"), ("#777777", "dotted"), ("#c98a1b", "dashed"))  # colour and style of each mark
_FEWEST_AXES = 3  # a radar chart of fewer is no area
_LEGEND_COLUMNS = 3
PAPER_DATASETS = ("SKINCON", "WBCAtt", "CBIS")
Bar = tuple[float, tuple[float, float]]  # a share and its interval


@contextmanager
def plain_text() -> Iterator[None]:
    """Draw names as they are: matplotlib would read what stands between dollar signs as a formula, and refuse a wrong one."""
    with rc_context({"text.parse_math": False, "text.usetex": False}):
        yield


def _legend_height(labels: int) -> float:
    """Return the inches that a legend of so many labels takes."""
    return 0.2 * -(-labels // _LEGEND_COLUMNS)


def _legend(figure: Figure, artists: Sequence[Any]) -> None:
    # Labels are put in afterwards: matplotlib leaves out those that begin with an underscore.
    place = {"loc": "lower center", "ncols": _LEGEND_COLUMNS, "fontsize": 8, "frameon": False}
    legend = figure.legend(artists, ["-"] * len(artists), **place)
    for text, artist in zip(legend.get_texts(), artists, strict=True):
        text.set_text(artist.get_gid())


@plain_text()
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
    ticks = [printable(name.replace(" ", "\n")) for name in names]
    # In inches, above and below 4 of chart: the names of attributes, and the legend.
    above = 0.3 + 0.15 * max(tick.count("\n") + 1 for tick in ticks)
    below = above + 0.1 + _legend_height(len(lines) + 1)
    figure = Figure(figsize=(6.4, 4 + above + below), dpi=110)
    canvas = FigureCanvasAgg(figure)
    axes: Any = figure.add_subplot(projection="polar")
    axes.set_theta_offset(np.pi / 2)
    axes.set_theta_direction(-1)
    for index, (label, values) in enumerate(lines.items()):
        heights = [100 * values[name] for name in names]
        colour = COLOURS[index % len(COLOURS)]
        axes.plot(
            closed, [*heights, heights[0]], color=colour, linewidth=2, marker="o", markersize=3.5, gid=printable(label)
        )
        axes.fill(closed, [*heights, heights[0]], color=colour, alpha=0.12)
    heights = [100 * baseline[name] for name in names]
    axes.plot(closed, [*heights, heights[0]], color="#777777", linewidth=1, linestyle="--", gid="chance")
    axes.set_xticks(angles, ticks, fontsize=8)
    axes.tick_params(axis="x", pad=14)
    axes.set_ylim(0, 100)
    axes.set_yticks([20, 40, 60, 80, 100])
    axes.tick_params(axis="y", labelsize=7, colors="#666666")
    axes.grid(color="#dddddd")
    axes.spines["polar"].set_color("#cccccc")
    _legend(figure, axes.lines)
    height = figure.get_figheight()
    figure.subplots_adjust(left=0.12, right=0.88, top=1 - above / height, bottom=below / height)
    return _picture(canvas)


def _picture(canvas: FigureCanvasAgg) -> str:
    canvas.draw()
    return data_url(Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB"))


@plain_text()
def interval_bars(
    groups: Mapping[str, Mapping[str, Bar]],
    marks: Mapping[str, Mapping[str, float | None]],
    *,
    axis: str = "accuracy, %",
) -> str:
    """Draw shares as horizontal bars with their intervals, a row a name and a bar a method; lines show what is reached anyway.

    Args:
        groups: for each method, share and interval (0 to 1) by name, e.g. attribute; all have the same names.
        marks: for each line's label, e.g. a training prior, its share by name; None where there is none.
        axis: the axis' title.

    Returns:
        The chart as a data URL.
    """
    names = list(next(iter(groups.values())))
    thickness = 0.8 / len(groups)
    row = max(0.42, 0.19 * len(groups))
    height = 1.1 + row * len(names) + _legend_height(len(groups) + len(marks))
    figure = Figure(figsize=(6.4, height), dpi=110)
    canvas = FigureCanvasAgg(figure)
    axes: Any = figure.add_subplot()
    for index, (label, bars) in enumerate(groups.items()):
        places = [place + (index - (len(groups) - 1) / 2) * thickness for place in range(len(names))]
        shares = [100 * bars[name][0] for name in names]
        # Rounding may put an interval's end a hair inside of the estimate.
        below = [max(0.0, share - 100 * bars[name][1][0]) for share, name in zip(shares, names, strict=True)]
        above = [max(0.0, 100 * bars[name][1][1] - share) for share, name in zip(shares, names, strict=True)]
        colour = COLOURS[index % len(COLOURS)]
        error = {"ecolor": "#333333", "elinewidth": 1, "capsize": min(3.0, 8 * thickness)}
        drawn = axes.barh(places, shares, thickness * 0.9, color=colour, xerr=[below, above], error_kw=error)
        drawn.patches[0].set(gid=printable(label))
    for (label, values), (colour, style) in zip(marks.items(), _MARKS, strict=False):
        given = [(place, 100 * value) for place, name in enumerate(names) if (value := values[name]) is not None]
        if given:
            low, high = ([place + side * 0.44 for place, _ in given] for side in (-1, 1))
            axes.vlines(
                [share for _, share in given],
                low,
                high,
                colors=colour,
                linestyles=style,
                linewidth=1.8,
                zorder=4,
                gid=printable(label),
            )
    # Two lines: names that begin alike, such as those of a method's variants, differ at their ends.
    labels = [textwrap.fill(printable(name), 30, max_lines=2, placeholder="...") for name in names]
    axes.set_yticks(range(len(names)), labels, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel(axis, fontsize=8)
    axes.tick_params(axis="x", labelsize=8)
    axes.grid(axis="x", color="#e3e3e3")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    _legend(figure, [artist for artist in (*axes.patches, *axes.collections) if artist.get_gid()])
    figure.tight_layout(rect=(0, (0.25 + _legend_height(len(groups) + len(marks))) / height, 1, 1))
    return _picture(canvas)


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
