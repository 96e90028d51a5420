"""The comparison of finished evaluations: paired tests, mean and spread over seeds, retention, and a page of it all."""

import json
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from ift_components.config import command_line
from ift_components.errors import DataError
from ift_components.evaluation import parsing
from ift_components.evaluation.charts import Bar, interval_bars, latex_rows, radar
from ift_components.evaluation.metrics import headline
from ift_components.evaluation.pairs import Run, compare_labels, correct_for_number, method_bar
from ift_components.evaluation.predictions import PREDICTIONS, read_lines
from ift_components.evaluation.records import Item, Prediction
from ift_components.evaluation.report import bars_of, page_templates, reached_anyway
from ift_components.evaluation.scorers import ScoringContext
from ift_components.evaluation.settings import EvalSettings
from ift_components.evaluation.tasks import score_all
from ift_components.evaluation.verdict import changes
from ift_components.files import require_new_folder, write_json, write_text
from ift_components.pages import now, printable
from ift_components.statistics import mean_sd, rounded


def read_run(path: Path, name: str, key: str = "compare") -> Run:
    """Read a finished evaluation; its answers are read again by its parser, whatever was noted of them.

    Args:
        path: its folder.
        name: what to call it.
        key: the config key it came from, for messages.

    Raises:
        DataError: if it is not finished, damaged, or read by an earlier release's parsers.
    """
    file = path / "results.json"
    if not file.is_file() or not (path / PREDICTIONS).is_file():
        raise DataError(f"{key}: {path} is not a finished evaluation (no results.json); run it to its end")
    try:
        results = json.loads(file.read_text(encoding="utf-8"))
        answers = [Prediction.from_line(row) for row in read_lines(path / PREDICTIONS, mend=False)]
        scored = score_all(answers, ScoringContext(results["parser"]))
        version = results.get("parser_version")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{key}: {file} is damaged ({error!r}); evaluate again") from error
    if version != parsing.VERSION:
        raise DataError(f"{key}: {path} has parser_version={version}, this release {parsing.VERSION}; evaluate again")
    return Run(name, results, scored)


def read_runs(folders: Sequence[str]) -> list[Run]:
    """Read finished evaluations.

    Raises:
        DataError: if there are fewer than two, one is given twice, or one is not finished.
    """
    paths = [Path(folder).resolve() for folder in folders]
    if len(set(paths)) != len(paths) or len(paths) <= 1:
        names = ", ".join(folders) or "none"
        raise DataError(f"compare: give two or more different folders of finished evaluations, got {names}")
    alike = len({path.name for path in paths}) < len(paths)
    return [read_run(path, "/".join(path.parts[-2:]) if alike else path.name) for path in paths]


def _pairs(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return the comparisons of every two methods on the same dataset and split."""
    pairs = []
    for benchmark in dict.fromkeys(run.benchmark for run in runs):
        methods: dict[str, list[Run]] = {}
        for run in runs:
            if run.benchmark == benchmark:
                methods.setdefault(run.method, []).append(run)
        pairs += [compare_labels(a, b) for a, b in combinations(methods.values(), 2)]
    if pairs:
        correct_for_number(pairs)
    return pairs


def _by_method(runs: Sequence[Run]) -> dict[str, list[Run]]:
    members: dict[str, list[Run]] = {}
    for run in runs:
        members.setdefault(run.method, []).append(run)
    return members


def _main_items(run: Run) -> list[Item]:
    """Return the multiple-choice questions of the main dataset, or else its free questions."""
    own = [item for item in run.items.values() if item.dataset not in run.unrelated]
    return [item for item in own if item.options] or own


def _methods(runs: Sequence[Run]) -> dict[str, dict[str, dict[str, Any]]]:
    """Return mean, interval and spread over the runs of each method, by dataset."""
    methods: dict[str, dict[str, dict[str, Any]]] = {}
    for method, members in _by_method(runs).items():
        for dataset in dict.fromkeys(run.results["dataset"] for run in members):
            seeds = [run for run in members if run.results["dataset"] == dataset]
            main = [headline(run.results) for run in seeds]
            average, sd = mean_sd([figures["accuracy"] for figures in main])
            alone = len(seeds) == 1
            low, high = main[0]["interval"] if alone else method_bar(seeds, _main_items(seeds[0]))[1]
            methods.setdefault(method, {})[dataset] = {
                "runs": len(seeds),
                "mean": average,
                "interval": [low, high],
                "sd": sd,
            }
    return methods


def _retention(pairs: Sequence[Mapping[str, Any]], first: str) -> dict[str, dict[str, Any]]:
    """Return what every other method retains of the unrelated tasks that the first one was asked too."""
    return {pair["second"]: pair["unrelated"] for pair in pairs if pair["first"] == first and "unrelated" in pair}


def _charts(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return a radar and bars with intervals of each dataset, a line or bar a method."""
    charts = []
    for benchmark in dict.fromkeys(run.benchmark for run in runs):
        members = _by_method([run for run in runs if run.benchmark == benchmark])
        groups = {method: _bars(seeds) for method, seeds in members.items()}
        first = next(iter(members.values()))[0].results
        marks = reached_anyway(first)
        lines = {
            m: {name: bar[0] for name, bar in bars.items() if name in first.get("attributes", {})}
            for m, bars in groups.items()
        }
        chances = {name: rates["chance"] for name, rates in first.get("attributes", {}).items()}
        charts.append(
            {
                "dataset": " ".join(benchmark),
                "radar": radar(lines, chances) if chances else None,
                "bars": interval_bars(groups, marks),
            }
        )
    return charts


def _bars(seeds: Sequence[Run]) -> dict[str, Bar]:
    """Return a method's bars: by attribute and in all, or by kind of free question and in all."""
    items, results = _main_items(seeds[0]), [run.results for run in seeds]
    if len(seeds) == 1:
        return bars_of(results[0])
    names = list(bars_of(results[0]))
    chosen = {name: [i for i in items if name in ("all", i.attribute if i.options else i.kind)] for name in names}
    return {name: method_bar(seeds, members) for name, members in chosen.items()}


def compare(cfg: EvalSettings) -> dict[str, Any]:
    """Compare finished evaluations: write comparison.json, comparison.html, comparison.md and table.tex.

    Runs of one label are the seeds of a method; every two methods on the same dataset and split are compared. The first run's
    method counts as the one before tuning where retention is given. Only the folders are read: no data, checkpoint or
    tokenizer is needed, and nothing is drawn at random.

    Args:
        cfg: a config of `EvalSettings` with `compare`.

    Returns:
        The content of comparison.json.

    Raises:
        UserError: if a folder is no finished evaluation, or the output folder holds files.
    """
    folder = require_new_folder(Path(cfg.output_dir))
    runs = read_runs(cfg.compare or [])
    compared = _pairs(runs)
    comparison: dict[str, Any] = rounded(
        {
            "runs": {run.name: _summary(run) for run in runs},
            "methods": _methods(runs),
            "pairs": compared,
            "retention": _retention(compared, runs[0].method),
            "verdict": {f"{pair['second']} against {pair['first']}": changes(pair) for pair in compared},
            "date": now(),
            "command": command_line(),
        }
    )
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "comparison.json", comparison)
    templates = page_templates()
    values = {"c": comparison, "charts": _charts(runs), "first": runs[0].method}
    for name in ("comparison.html", "comparison.md"):
        write_text(folder / name, templates.get_template(name).render(values))
    rows = {m: {d: (v["mean"], v["sd"]) for d, v in row.items()} for m, row in comparison["methods"].items()}
    write_text(folder / "table.tex", latex_rows(rows))
    return comparison


_SUMMARY = ("dataset", "split", "scoring", "questions")
_FIGURES = (
    "macro_accuracy",
    "balanced_accuracy",
    "balanced_interval",
    "constant",
    "chance",
    "prior_shown",
    "well_formed",
)


def _summary(run: Run) -> dict[str, Any]:
    following: Mapping[str, Any] = run.results["instruction_following"]
    main, free = headline(run.results), run.results.get("free", {})
    kinds = (
        "closed_accuracy",
        "closed_interval",
        "open_accuracy",
        "open_interval",
        "open_recall",
        "open_recall_interval",
    )
    return {
        "method": run.method,
        **{name: run.results[name] for name in _SUMMARY},
        "accuracy": main["accuracy"],
        "interval": main["interval"],
        **{name: run.results.get(name) for name in _FIGURES},
        "other_image": main.get("image_control", {}).get("accuracy"),
        "free": {name: free[name] for name in ("accuracy", "interval", *kinds) if name in free},
        "image_dependence": following.get("image_dependence"),
        "instruction_dependence": following.get("instruction_dependence", {}).get("gap"),
    }


def comparison_table(comparison: Mapping[str, Any]) -> str:
    """Return a comparison as text: one line a run, and what is said of every pair."""
    lines = []
    for name, run in comparison["runs"].items():
        low, high = run["interval"]
        lines.append(
            f"{name}: {run['dataset']} {run['split']}, accuracy {run['accuracy']:.3f} ({low:.3f} to {high:.3f})"
        )
    lines += [
        f"{pair['second']} - {pair['first']}: {pair['difference']:+.3f} ({pair['low']:+.3f} to {pair['high']:+.3f}), "
        f"p = {pair['p']:.3g}, {pair['p_holm']:.3g} by Holm; seeds {pair['seeds'][0]} and {pair['seeds'][1]}"
        for pair in comparison["pairs"]
    ]
    lines += [sentence for sentences in comparison["verdict"].values() for sentence in sentences]
    return str(printable("\n".join(lines)))
