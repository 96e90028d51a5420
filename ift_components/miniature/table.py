"""The model card's tables from finished evaluations: `python -m ift_components.miniature.table EVALUATION EVALUATION ...`.

Evaluations of one label are the seeds of a method, and make a row: knowing (what the model's own reports say) beside telling
(what it answers when asked, and what of it is left with another image's pixels), open questions, unrelated tasks, and what a
constant answer reaches. Accuracy comes with the 95 % interval that images and seeds leave, the rest with the standard deviation
over the seeds. `--attributes` says for each attribute what reports and answers reach: which of the two it is lost in.
"""

import argparse
import sys
from collections.abc import Sequence

from ift_components.errors import DataError, UserError
from ift_components.evaluation.compare import read_runs
from ift_components.evaluation.pairs import Run, check_alike, method_bar
from ift_components.evaluation.records import Item
from ift_components.miniature.questions import OPEN, UNRELATED
from ift_components.miniature.scores import correct
from ift_components.statistics import mean, mean_sd

_COLUMNS = (
    "method",
    "seeds",
    "accuracy",
    "balanced",
    "other image",
    "read-out",
    "gap",
    "constant",
    "well-formed",
    "open",
    "unrelated",
)


def _figures(run: Run) -> dict[str, float]:
    """Return what a run's results.json says for each column but the first three."""
    results = run.results
    following = results["instruction_following"]
    dependence = following.get("instruction_dependence") or {}
    asked = results.get("free", {}).get("sets", {})
    figures = {
        "balanced": results.get("balanced_accuracy"),
        "other image": (results.get("image_control") or {}).get("accuracy"),
        "read-out": dependence.get("read_out_accuracy"),
        "gap": dependence.get("gap"),
        "constant": len(results["constant"]),
        "well-formed": results.get("well_formed"),
        "open": correct(results, OPEN) if OPEN in asked else None,
        "unrelated": correct(results, UNRELATED) if UNRELATED in asked else None,
    }
    return {name: float(value) for name, value in figures.items() if value is not None}


def card_table(runs: Sequence[Run]) -> str:
    """Return a Markdown table, a row a method in the order of the runs, the prior's first.

    Args:
        runs: finished evaluations of one dataset and split.

    Raises:
        DataError: if they are of several datasets or splits, or were asked different questions.
    """
    methods = _by_method(runs)
    first = _questions(runs[0])
    lines = [f"| {' | '.join(_COLUMNS)} |", "|---" * len(_COLUMNS) + "|"]
    prior = runs[0].results.get("prior_shown")
    if prior is not None:
        cells = ["most frequent training answer", "", f"{prior:.3f}", *[""] * (len(_COLUMNS) - 3)]
        lines.append(f"| {' | '.join(cells)} |")
    for method, seeds in methods.items():
        average, (low, high) = method_bar(seeds, first)
        figures = [_figures(run) for run in seeds]
        cells = [method, str(len(seeds)), f"{average:.3f} ({low:.3f} to {high:.3f})"]
        for column in _COLUMNS[3:]:
            values = [row[column] for row in figures if column in row]
            cells.append(_with_spread(values, 1 if column == "constant" else 3) if len(values) == len(seeds) else "")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def attribute_table(runs: Sequence[Run]) -> str:
    """Return a Markdown table, a row an attribute and three columns a method, means over its seeds.

    `reports` is the share of questions whose right option the model's report states (empty where it wrote none), `answers` the
    accuracy of its answers, `balanced` their mean over the attribute's values.

    Args:
        runs: finished evaluations of one dataset and split.

    Raises:
        DataError: if they are of several datasets or splits, or were asked different questions.
    """
    methods = _by_method(runs)
    columns = {"reports": "read_out_accuracy", "answers": "accuracy", "balanced": "balanced_accuracy"}
    rows = []
    for attribute, rates in runs[0].results["attributes"].items():
        cells = [f"{rates['prior_shown']:.3f}"]
        for seeds in methods.values():
            for key in columns.values():
                values = [run.results["attributes"][attribute].get(key) for run in seeds]
                cells.append("" if None in values else f"{mean(values):.3f}")
        rows.append(f"| {attribute} | {' | '.join(cells)} |")
    head = ["attribute", "most frequent", *(f"{method}: {column}" for method in methods for column in columns)]
    return "\n".join([f"| {' | '.join(head)} |", "|---" * len(head) + "|", *rows])


def _by_method(runs: Sequence[Run]) -> dict[str, list[Run]]:
    benchmarks = {run.benchmark for run in runs}
    if len(benchmarks) > 1:
        listed = ", ".join(" ".join(benchmark) for benchmark in sorted(benchmarks))
        raise DataError(f"a table is of one dataset and split, and these are of {listed}")
    for run in runs[1:]:
        check_alike(runs[0], run)
    methods: dict[str, list[Run]] = {}
    for run in runs:
        methods.setdefault(run.method, []).append(run)
    return methods


def _questions(run: Run) -> list[Item]:
    return [item for item in run.items.values() if item.options and item.dataset == run.results["dataset"]]


def _with_spread(values: Sequence[float], digits: int) -> str:
    average, sd = mean_sd(values)
    return f"{average:.{digits}f}" if sd is None else f"{average:.{digits}f} ± {sd:.{digits}f}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--attributes", action="store_true", help="a row an attribute instead of a row a method")
    parser.add_argument("evaluations", nargs="+", help="folders that ift_eval_recipe wrote, two or more")
    args = parser.parse_args()
    try:
        print((attribute_table if args.attributes else card_table)(read_runs(args.evaluations)))
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
