"""Points of a scaling law: out of a table of steps and losses, one training run's records, or the folders of several runs."""

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from ift_components.data.prepared import read_manifest
from ift_components.errors import ConfigError, DataError

Floats = NDArray[np.float64]

FIGURES = ("accuracy", "balanced_accuracy")
_SIZE_NAMES = ("images", "size", "samples", "tokens", "step", "steps")
_LOSS_NAMES = ("val_loss", "loss", "error", "value")


@dataclass(frozen=True)
class Points:
    """Amounts of data and the losses they led to.

    Attributes:
        sizes: [n], in increasing order, above 0.
        losses: [n], above 0.
        size_name: what the sizes are.
        loss_name: what the losses are.
        is_curve: whether all points are of one run, whose noise is correlated and whose seed is one.
        sources: [n] where each point comes from; empty for tables.
    """

    sizes: Floats
    losses: Floats
    size_name: str
    loss_name: str
    is_curve: bool
    sources: tuple[str, ...] = ()

    @classmethod
    def of(cls, pairs: Sequence[tuple[float, float]], sources: Sequence[str] = (), **facts: Any) -> "Points":
        """Return points in increasing order of size.

        Raises:
            DataError: if there are fewer than two, or a value is not above 0.
        """
        if len(pairs) < 2:  # noqa: PLR2004
            raise DataError(f"scaling: {len(pairs)} point; a law needs several runs of different sizes, or a curve")
        for number, pair in enumerate(pairs, start=1):
            for what, value in zip((facts["size_name"], facts["loss_name"]), pair, strict=True):
                if not (math.isfinite(value) and value > 0):
                    raise DataError(f"scaling: point {number}: {what} is {value}; expected a number above 0")
        order = sorted(range(len(pairs)), key=lambda index: pairs[index][0])
        sizes, losses = np.array([pairs[index] for index in order], dtype=float).T
        if sizes[0] == sizes[-1]:
            raise DataError(f"scaling: all points have the size {sizes[0]:g}; a law needs different ones")
        return cls(sizes, losses, sources=tuple(sources[index] for index in order) if sources else (), **facts)


def read_points(
    paths: Sequence[Path],
    *,
    size: str | None = None,
    loss: str | None = None,
    figure: str = "accuracy",
    begin: float | None = None,
) -> Points:
    """Return the points of one CSV, one training run, several training runs or several evaluations.

    Args:
        paths: a CSV, or folders.
        size: the CSV's column of sizes; None takes the first of the usual names.
        loss: the CSV's column of losses; None likewise.
        figure: of evaluations: the loss is one less this.
        begin: points of smaller sizes are left out; None keeps all.

    Raises:
        DataError: if something cannot be read or is no such thing.
        ConfigError: for an unknown figure.
    """
    points = _read(paths, size, loss, figure)
    if begin is None:
        return points
    kept = points.sizes >= begin
    if kept.sum() < 2 or points.sizes[kept].min() == points.sizes.max():  # noqa: PLR2004
        raise DataError(
            f"--from: {begin:g} leaves {kept.sum()} of {len(kept)} points; the largest size is {points.sizes.max():g}"
        )
    sources = tuple(source for source, keep in zip(points.sources, kept, strict=False) if keep)
    return replace(points, sizes=points.sizes[kept], losses=points.losses[kept], sources=sources)


def _read(paths: Sequence[Path], size: str | None, loss: str | None, figure: str) -> Points:
    if figure not in FIGURES:
        raise ConfigError(f"--figure: '{figure}' is not one of {', '.join(FIGURES)}")
    for path in paths:
        if not path.exists():
            raise DataError(f"scaling: {path} does not exist")
    if len(paths) == 1 and paths[0].is_file():
        return _table(paths[0], size, loss)
    if any(path.is_file() for path in paths):
        raise DataError("scaling: give one CSV alone, or folders of runs or evaluations")
    evaluations = [(path / "results.json").is_file() for path in paths]
    if all(evaluations):
        pairs = [_evaluation(path, figure) for path in paths]
        loss_name = f"1 - {figure}"
    elif any(evaluations):
        raise DataError(
            f"scaling: {paths[evaluations.index(False)]} holds no results.json, but others do; give one kind"
        )
    elif len(paths) == 1:
        return _curve(paths[0])
    else:
        pairs = [(images_seen(path), _last_val_loss(path)) for path in paths]
        loss_name = "validation loss"
    sources = [str(path) for path in paths]
    return Points.of(pairs, sources, size_name="images", loss_name=loss_name, is_curve=False)


def _table(path: Path, size: str | None, loss: str | None) -> Points:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"scaling: {path} cannot be read as text: {error}") from error
    rows = list(csv.reader(text.splitlines(), delimiter=max(",;\t", key=text.partition("\n")[0].count)))
    header = [name.strip() for name in rows[0]] if rows else []
    columns = [_column(header, size, _SIZE_NAMES, path, "--size"), _column(header, loss, _LOSS_NAMES, path, "--loss")]
    pairs = []
    for number, row in enumerate(rows[1:], start=2):
        if not row:
            continue
        try:
            x, y = (float(row[column]) for column in columns)
        except (ValueError, IndexError) as error:
            raise DataError(f"scaling: {path} line {number}: no two numbers ({error})") from error
        pairs.append((x, y))
    # Steps are those of one run; anything else may be several.
    names = [header[column] for column in columns]
    is_curve = names[0].casefold() in ("step", "steps")
    return Points.of(pairs, size_name=names[0], loss_name=names[1], is_curve=is_curve)


def _column(header: Sequence[str], name: str | None, usual: Sequence[str], path: Path, option: str) -> int:
    lowered = [column.casefold() for column in header]
    wanted = [name.casefold()] if name is not None else usual
    place = next((lowered.index(one) for one in wanted if one in lowered), None)
    if place is None:
        columns = ", ".join(header) or "none"
        raise DataError(f"scaling: {path} has no column {' or '.join(wanted)} (it has {columns}); name one by {option}")
    return place


def _rows(folder: Path) -> list[dict[str, Any]]:
    """Return the records of a finished training run.

    Raises:
        DataError: if there are none.
    """
    path = folder / "metrics.jsonl"
    if not path.is_file() or not (folder / "run.json").is_file():
        raise DataError(
            f"scaling: {folder} is neither a finished run of ift_recipe (metrics.jsonl, run.json) nor an evaluation "
            "(results.json)"
        )
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except ValueError as error:
        raise DataError(f"scaling: {path} is damaged ({error})") from error


def images_seen(folder: Path) -> float:
    """Return the number of different images that a training run saw, by its records.

    That is the samples of its first epoch, those that `dataset.repeat` gives again counted once. The loader drops the last
    images that fill no step; other epochs drop others, so that a run of several epochs has seen all: `dataset.limit`, or what
    the prepared folder holds.

    Args:
        folder: what `ift_recipe` wrote.

    Raises:
        DataError: if the records are missing or damaged.
    """
    rows = _rows(folder)
    if not rows:
        raise DataError(f"scaling: {folder / 'metrics.jsonl'} holds no step")
    epoch = [row["samples"] for row in rows if row["epoch"] == rows[0]["epoch"]]
    try:
        config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise DataError(f"scaling: {folder / 'config.yaml'} cannot be read: {error}") from error
    dataset = config.get("dataset") or {}
    repeat = dataset.get("repeat") or 1
    seen, step = sum(epoch) / repeat, max(epoch) / repeat
    if rows[-1]["epoch"] > rows[0]["epoch"] or repeat > 1:
        whole = (count for count in (dataset.get("limit"), _training_reports(config.get("data"))) if count)
        seen = next((count for count in whole if seen <= count < seen + step), seen)
    return float(seen)


def _training_reports(data: str | None) -> int | None:
    """Return how many reports a prepared folder has to train on; None if it is no longer there."""
    try:
        count: int | None = read_manifest(data)["counts"]["reports"].get("train") if data else None
    except (DataError, KeyError):
        return None
    return count


def _last_val_loss(folder: Path) -> float:
    losses = [row["val_loss"] for row in _rows(folder) if "val_loss" in row]
    if not losses:
        raise DataError(
            f"scaling: {folder} has no validation loss, and the training loss of several epochs is no measure; train with "
            "val_dataset, or give folders of evaluations"
        )
    return float(losses[-1])


def _curve(folder: Path) -> Points:
    pairs, samples, rows = [], 0, _rows(folder)
    validated = any("val_loss" in row for row in rows)
    name = "val_loss" if validated else "loss"
    for row in rows:
        samples += row["samples"]
        if name in row:
            pairs.append((float(samples), float(row[name])))
    loss_name = "validation loss" if validated else "training loss"
    return Points.of(pairs, size_name="samples", loss_name=loss_name, is_curve=True)


def _evaluation(folder: Path, figure: str) -> tuple[float, float]:
    """Return the images that an evaluated checkpoint was tuned on, and one less the figure."""
    path = folder / "results.json"
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        value, config = float(results[figure]), results["config"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"scaling: {path} holds no '{figure}' of an evaluation ({error!r})") from error
    return images_seen(_run_of(folder, config)), 1 - value


def _run_of(folder: Path, config: Mapping[str, Any]) -> Path:
    """Return the folder of the training run that left what was evaluated.

    Raises:
        DataError: if it is not there.
    """
    given = config.get("adapter_dir") or config.get("checkpoint_dir")
    names = [given] if given else []
    run = folder / "run.json"
    if run.is_file() and not config.get("adapter_dir"):  # its path is absolute, the config's may be relative
        names.append((json.loads(run.read_text(encoding="utf-8")).get("fingerprint") or {}).get("checkpoint_dir"))
    for name in filter(None, names):
        if (Path(name).parent / "metrics.jsonl").is_file():
            return Path(name).parent
    raise DataError(
        f"scaling: {folder} evaluated {given or 'no checkpoint'}, beside which no run's records lie: how many images it saw is "
        "not known; give evaluations of checkpoints that ift_recipe left, or a CSV of images and losses"
    )
