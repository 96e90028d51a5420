"""The comparison of finished evaluations: paired tests, mean and spread over seeds, retention, and a page of it all."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from ift_components.errors import DataError
from ift_components.evaluation.charts import latex_rows, radar
from ift_components.evaluation.instruction import retention
from ift_components.evaluation.metrics import scores_by_question
from ift_components.evaluation.predictions import PREDICTIONS, read_lines
from ift_components.evaluation.records import Prediction
from ift_components.evaluation.scorers import ScoringContext
from ift_components.evaluation.settings import EvalSettings
from ift_components.evaluation.tasks import CHOICE, of_task, score_all
from ift_components.files import require_new_folder, write_json, write_text
from ift_components.pages import environment
from ift_components.statistics import compare_paired, mean_sd, rounded

_ALL_PAIRS = 5  # with more runs, only those with the first are compared


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


def compare_runs(first: Run, second: Run, *, draws: int, seed: int) -> dict[str, Any]:
    """Return the paired comparison of two runs on the same questions, overall and by attribute.

    A question earns the share of its runs that are right; questions that only one of the two was asked are left out
    and counted.

    Args:
        first: one run.
        second: the other; differences are its accuracy less the first's.
        draws: bootstrap replicates.
        seed: their seed.

    Raises:
        DataError: if they share no question, or ask a shared one differently.
    """
    a, b = scores_by_question(first.predictions), scores_by_question(second.predictions)
    items, others = ({p.item.id: p.item for p in run.predictions} for run in (first, second))
    shared = [key for key in a if key in b]
    if not shared:
        raise DataError(f"compare: {first.name} and {second.name} have no question in common")
    for key in shared:
        if (items[key].prompt, items[key].answer) != (others[key].prompt, others[key].answer):
            raise DataError(f"compare: {first.name} and {second.name} ask question '{key}' differently")

    def paired(keys: Sequence[str]) -> dict[str, Any]:
        images = [items[key].image_id for key in keys]
        return compare_paired([a[k] for k in keys], [b[k] for k in keys], images, draws=draws, seed=seed).to_dict()

    names = sorted({items[key].attribute for key in shared})
    return {
        "first": first.name,
        "second": second.name,
        "only_in_one": len(a) + len(b) - 2 * len(shared),
        **paired(shared),
        "attributes": {name: paired([k for k in shared if items[k].attribute == name]) for name in names},
    }


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


def _radars(runs: Sequence[Run]) -> list[dict[str, Any]]:
    charts = []
    for benchmark in dict.fromkeys(run.benchmark for run in runs):
        members = [run for run in runs if run.benchmark == benchmark]
        names = [n for n in members[0].results["attributes"] if all(n in run.results["attributes"] for run in members)]
        lines = {run.name: {n: run.results["attributes"][n]["accuracy"] for n in names} for run in members}
        chart = radar(lines, {n: members[0].results["attributes"][n]["chance"] for n in names})
        if chart:
            charts.append({"dataset": " ".join(benchmark), "chart": chart})
    return charts


def compare(cfg: EvalSettings) -> dict[str, Any]:
    """Compare finished evaluations: write comparison.json, comparison.html, comparison.md and table.tex.

    Runs on the same dataset and split are compared in pairs (with more than five runs, each with the first). The first run
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
    pairs = list(combinations(runs, 2)) if len(runs) <= _ALL_PAIRS else [(runs[0], run) for run in runs[1:]]
    compared = [compare_runs(a, b, draws=cfg.bootstrap, seed=cfg.seed) for a, b in pairs if a.benchmark == b.benchmark]
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
        f"p = {pair['p_bootstrap']:.3g} (bootstrap over images), {pair['p_mcnemar']:.3g} (McNemar)"
        for pair in comparison["pairs"]
    ]
    return "\n".join(lines)
