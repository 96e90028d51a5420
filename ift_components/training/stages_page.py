"""One page about a chain of stages: their losses one after another, and what each trained."""

import io
import json
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, cast

import matplotlib as mpl
from omegaconf import OmegaConf
from PIL import Image

from ift_components.files import write_text
from ift_components.pages import data_url, environment
from ift_components.training.recorder import read_row

mpl.use("Agg")
from matplotlib import pyplot as plt


def write_page(path: Path, folders: Sequence[Path]) -> None:
    """Write a page about the runs in some folders, in their order.

    Args:
        path: the page.
        folders: of runs; one that is not finished is shown as far as it has come.
    """
    runs = [_read(folder) for folder in folders]
    curves = [
        _draw(runs, ("loss", "val_loss"), "loss (nats per response token)"),
        _draw(runs, ("lr_",), "learning rate"),
    ]
    page = environment("ift_components.training").get_template("stages.html")
    write_text(path, page.render(runs=runs, curves=curves))


def _read(folder: Path) -> dict[str, Any]:
    """Return what the page shows of a run."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(read_row, lines) if row is not None]
    config = cast("dict[str, Any]", OmegaConf.to_container(OmegaConf.load(folder / "config.yaml")))
    facts = folder / "run.json"
    return {
        "name": folder.name,
        "finished": facts.is_file(),
        "rows": rows,
        "trained": json.loads(facts.read_text(encoding="utf-8"))["trained_parameters"] if facts.is_file() else {},
        "tuning": {part: how["method"] if isinstance(how, dict) else how for part, how in config["tuning"].items()},
        "checkpoint_dir": config["checkpoint_dir"],
        "instruction": config["instruction"],
        "last": {key: value for key, value in rows[-1].items() if "loss" in key} if rows else {},
    }


def _draw(runs: Sequence[dict[str, Any]], prefixes: tuple[str, ...], label: str) -> str:
    """Return a chart of the values whose names start so, one run's steps after another's, as a data URL."""
    figure, axes = plt.subplots(figsize=(10, 4), layout="constrained")
    ends = list(accumulate(len(run["rows"]) for run in runs))
    series: dict[str, tuple[list[int], list[float]]] = {}
    for run, end in zip(runs, ends, strict=True):
        for place, row in enumerate(run["rows"], start=end - len(run["rows"]) + 1):
            for key, value in row.items():
                if key.startswith(prefixes):
                    steps, values = series.setdefault(key, ([], []))
                    steps.append(place)
                    values.append(value)
    for key, (steps, values) in series.items():
        axes.plot(steps, values, marker="o" if key.startswith("val_") else "", linewidth=1, markersize=3, label=key)
    for run, end in zip(runs, ends, strict=True):
        if end != ends[-1]:
            axes.axvline(end + 0.5, color="grey", linewidth=0.8, linestyle="--")
        where = end - len(run["rows"]) / 2
        axes.text(where, 1.01, run["name"], transform=axes.get_xaxis_transform(), ha="center", va="bottom", fontsize=9)
    axes.set(xlabel="optimizer step, over all stages", ylabel=label)
    axes.grid(alpha=0.3)
    if series:
        axes.legend(fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    plt.close(figure)
    return data_url(Image.open(buffer))
