"""The comparison of finished evaluations: paired tests, mean and spread over seeds, retention, and a page of it all."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from ift_components.errors import DataError
from ift_components.evaluation.charts import latex_rows, radar
from ift_components.evaluation.instruction import retention
from ift_components.evaluation.metrics import scores_by_question
from ift_components.evaluation.predictions import PREDICTIONS, read_lines
from ift_components.evaluation.records import Item, Prediction
from ift_components.evaluation.scorers import ScoringContext
from ift_components.evaluation.settings import EvalSettings
from ift_components.evaluation.tasks import CHOICE, of_task, score_all
from ift_components.files import require_new_folder, write_json, write_text
from ift_components.pages import environment
from ift_components.statistics import compare_methods, holm, mcnemar, mean_sd, rounded

_HALF = 0.5


@dataclass
class Run:
    """A finished evaluation.

    Attributes:
        name: its folder's name, with its parent's where several are called alike.
        results: the content of results.json.
        predictions: the scored answers to the main dataset's multiple-choice questions.
    """

    name: str
    results: dict[str, Any]
    predictions: list[Prediction]

    @property
    def method(self) -> str:
        """What was evaluated; runs of one method are its seeds."""
        return str(self.results["label"] or self.name)

    @property
    def benchmark(self) -> tuple[str, str]:
        """Dataset and split."""
        return self.results["dataset"], self.results["split"]


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
    runs = []
    for path in paths:
        file = path / "results.json"
        if not file.is_file() or not (path / PREDICTIONS).is_file():
            raise DataError(f"compare: {path} is not a finished evaluation (no results.json); run it to its end")
        try:
            results = json.loads(file.read_text(encoding="utf-8"))
            answers = [Prediction.from_line(row) for row in read_lines(path / PREDICTIONS)]
            answers = of_task(answers, CHOICE, results["dataset"])
            scored = score_all(answers, ScoringContext(results["parser"]))
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"compare: {file} is damaged ({error!r}); evaluate again") from error
        runs.append(Run("/".join(path.parts[-2:]) if alike else path.name, results, scored))
    return runs


def _check_alike(runs: Sequence[Run]) -> None:
    """Refuse runs on one dataset and split that were read or shown differently: their accuracies do not compare."""
    first = runs[0]
    for run in runs[1:]:
        ours, theirs = first.results["config"], run.results["config"]
        for key in ("parser", "scoring", "tiles", "tile_padding", "resize"):
            if ours.get(key) != theirs.get(key):
                raise DataError(
                    f"compare: {first.name} has {key}={ours.get(key)}, {run.name} {key}={theirs.get(key)}; evaluate them alike"
                )


def _shared_questions(runs: Sequence[Run]) -> list[Item]:
    """Return the items that all runs answered.

    Raises:
        DataError: if there are none, or one is asked differently.
    """
    items = {p.item.id: p.item for p in runs[0].predictions}
    for run in runs[1:]:
        others = {p.item.id: p.item for p in run.predictions}
        items = {key: item for key, item in items.items() if key in others}
        for key, item in items.items():
            if (item.prompt, item.answer) != (others[key].prompt, others[key].answer):
                raise DataError(f"compare: {runs[0].name} and {run.name} ask question '{key}' differently")
    if not items:
        raise DataError(f"compare: {', '.join(run.name for run in runs)} have no question in common")
    return list(items.values())


def compare_labels(first: Sequence[Run], second: Sequence[Run]) -> dict[str, Any]:
    """Return the comparison of two methods, each by its runs (seeds), on the questions that all of them answered.

    Overall, balanced (mean over attributes and right answers) and by attribute: `statistics.compare_methods`. McNemar's test
    is given for two single runs whose images have one question each, where its questions are independent.

    Args:
        first: the runs of one method.
        second: the runs of the other; differences are its accuracy less the first's.

    Raises:
        DataError: if the runs share no question, or ask a shared one differently.
    """
    items = _shared_questions([*first, *second])
    scores = [[scores_by_question(run.predictions) for run in runs] for runs in (first, second)]

    def values(of_runs: list[dict[str, float]], chosen: Sequence[Item]) -> Any:
        return np.array([[run[item.id] for item in chosen] for run in of_runs])

    def compared(chosen: Sequence[Item], cells: Sequence[Any] | None = None, weights: Any = None) -> dict[str, Any]:
        images = [item.image_id for item in chosen]
        before, after = (values(of_runs, chosen) for of_runs in scores)
        return {"questions": len(chosen), **compare_methods(before, after, images, cells, weights).to_dict()}

    names = sorted({item.attribute for item in items})
    by_attribute = {name: [item for item in items if item.attribute == name] for name in names}
    # A class weighs 1 / (attributes * its attribute's classes): the mean over attributes of means over their classes.
    classes = [(item.attribute, item.answer_text) for item in items]
    numbers = Counter(name for name, _ in set(classes))
    weights = {cell: 1 / (len(names) * numbers[cell[0]]) for cell in classes}
    result = {
        "first": first[0].method,
        "second": second[0].method,
        **compared(items),
        "balanced": compared(items, classes, weights),
        "attributes": {name: compared(members) for name, members in by_attribute.items()},
    }
    if len(first) == len(second) == 1 and len({item.image_id for item in items}) == len(items):
        sides = [[run[item.id] > _HALF for item in items] for (run,) in scores]
        result["only_first"], result["only_second"], result["p_mcnemar"] = mcnemar(*sides)
    return result


def _correct_for_number(pairs: Sequence[dict[str, Any]]) -> None:
    """Add `p_holm` to every comparison: p corrected by Holm for all that are printed."""
    printed = [part for pair in pairs for part in (pair, pair["balanced"], *pair["attributes"].values())]
    for part, corrected in zip(printed, holm([part["p"] for part in printed]), strict=True):
        part["p_holm"] = corrected


def _pairs(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return the comparisons of every two methods on the same dataset and split."""
    pairs = []
    for benchmark in dict.fromkeys(run.benchmark for run in runs):
        methods: dict[str, list[Run]] = {}
        for run in runs:
            if run.benchmark == benchmark:
                methods.setdefault(run.method, []).append(run)
        _check_alike([run for members in methods.values() for run in members])
        pairs += [compare_labels(a, b) for a, b in combinations(methods.values(), 2)]
    if pairs:
        _correct_for_number(pairs)
    return pairs


def _methods(runs: Sequence[Run]) -> dict[str, dict[str, dict[str, Any]]]:
    """Return mean and spread over the runs of each method, by dataset."""
    methods: dict[str, dict[str, dict[str, Any]]] = {}
    for method in dict.fromkeys(run.method for run in runs):
        for dataset in dict.fromkeys(run.results["dataset"] for run in runs if run.method == method):
            values = [r.results["accuracy"] for r in runs if (r.method, r.results["dataset"]) == (method, dataset)]
            average, sd = mean_sd(values)
            methods.setdefault(method, {})[dataset] = {"runs": len(values), "mean": average, "sd": sd}
    return methods


def _retention(first: Run, second: Run) -> dict[str, Any]:
    before, after = first.results.get("unrelated", {}), second.results.get("unrelated", {})
    return {
        name: retention(before[name]["accuracy"], after[name]["accuracy"], before[name]["chance"])
        for name in before
        if name in after
    }


def _title(run: Run, members: Sequence[Run]) -> str:
    """Return the method's label, with the folder where the method has several runs."""
    alone = sum(other.method == run.method for other in members) == 1
    return run.method if alone else f"{run.method} ({run.name})"


def _radars(runs: Sequence[Run]) -> list[dict[str, Any]]:
    charts = []
    for benchmark in dict.fromkeys(run.benchmark for run in runs):
        members = [run for run in runs if run.benchmark == benchmark]
        names = [n for n in members[0].results["attributes"] if all(n in run.results["attributes"] for run in members)]
        lines = {_title(run, members): {n: run.results["attributes"][n]["accuracy"] for n in names} for run in members}
        chart = radar(lines, {n: members[0].results["attributes"][n]["chance"] for n in names})
        if chart:
            charts.append({"dataset": " ".join(benchmark), "chart": chart})
    return charts


def compare(cfg: EvalSettings) -> dict[str, Any]:
    """Compare finished evaluations: write comparison.json, comparison.html, comparison.md and table.tex.

    Runs of one label are the seeds of a method; every two methods on the same dataset and split are compared. The first run
    counts as the one before tuning where retention is given.

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
    retained = {run.name: _retention(runs[0], run) for run in runs[1:]}
    comparison: dict[str, Any] = rounded(
        {
            "runs": {run.name: _summary(run) for run in runs},
            "methods": _methods(runs),
            "pairs": compared,
            "retention": {name: value for name, value in retained.items() if value},
        }
    )
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "comparison.json", comparison)
    templates = environment("ift_components.evaluation")
    values = {"c": comparison, "radars": _radars(runs), "first": runs[0].name}
    for name in ("comparison.html", "comparison.md"):
        write_text(folder / name, templates.get_template(name).render(values))
    rows = {m: {d: (v["mean"], v["sd"]) for d, v in row.items()} for m, row in comparison["methods"].items()}
    write_text(folder / "table.tex", latex_rows(rows))
    return comparison


def _summary(run: Run) -> dict[str, Any]:
    names = (
        "dataset",
        "split",
        "scoring",
        "questions",
        "accuracy",
        "interval",
        "macro_accuracy",
        "balanced_accuracy",
        "balanced_interval",
        "constant",
        "chance",
        "well_formed",
    )
    following: Mapping[str, Any] = run.results["instruction_following"]
    return {
        "method": run.method,
        **{name: run.results[name] for name in names},
        "image_dependence": following.get("image_dependence"),
        "instruction_dependence": following.get("instruction_dependence", {}).get("gap"),
    }


def comparison_table(comparison: Mapping[str, Any]) -> str:
    """Return a comparison as text: one line a run, one line a pair."""
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
    return "\n".join(lines)
