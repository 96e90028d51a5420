"""The model card's table from finished evaluations: `python -m ift_components.miniature.table EVALUATION EVALUATION ...`.

Evaluations of one label are the seeds of a method, and make a row: knowing (what the model's own reports say) beside telling
(what it answers when asked), what is left of unrelated tasks, and what a constant answer reaches. Accuracy comes with the 95 %
interval that images and seeds leave, the rest with the standard deviation over the seeds.
"""

import argparse
import sys
from collections.abc import Sequence

from ift_components.errors import DataError, UserError
from ift_components.evaluation.compare import read_runs
from ift_components.evaluation.pairs import Run, check_alike, method_bar
from ift_components.miniature.questions import UNRELATED
from ift_components.miniature.scores import correct
from ift_components.statistics import mean_sd

_COLUMNS = ("method", "seeds", "accuracy", "balanced", "read-out", "gap", "constant", "well-formed", "unrelated")


def _figures(run: Run) -> dict[str, float]:
    """Return what a run's results.json says for each column but the first three."""
    results = run.results
    following = results["instruction_following"]
    dependence = following.get("instruction_dependence") or {}
    figures = {
        "balanced": results.get("balanced_accuracy"),
        "read-out": dependence.get("read_out_accuracy"),
        "gap": dependence.get("gap"),
        "constant": len(results["constant"]),
        "well-formed": results.get("well_formed"),
        "unrelated": correct(results, UNRELATED) if UNRELATED in results.get("free", {}).get("sets", {}) else None,
    }
    return {name: float(value) for name, value in figures.items() if value is not None}


def card_table(runs: Sequence[Run]) -> str:
    """Return a Markdown table, a row a method in the order of the runs, the prior's first.

    Args:
        runs: finished evaluations of one dataset and split.

    Raises:
        DataError: if they are of several datasets or splits, or were asked different questions.
    """
    benchmarks = {run.benchmark for run in runs}
    if len(benchmarks) > 1:
        listed = ", ".join(" ".join(benchmark) for benchmark in sorted(benchmarks))
        raise DataError(f"a table is of one dataset and split, and these are of {listed}")
    for run in runs[1:]:
        check_alike(runs[0], run)
    first = [i for i in runs[0].items.values() if i.options and i.dataset == runs[0].results["dataset"]]
    methods: dict[str, list[Run]] = {}
    for run in runs:
        methods.setdefault(run.method, []).append(run)
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


def _with_spread(values: Sequence[float], digits: int) -> str:
    average, sd = mean_sd(values)
    return f"{average:.{digits}f}" if sd is None else f"{average:.{digits}f} ± {sd:.{digits}f}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("evaluations", nargs="+", help="folders that ift_eval_recipe wrote, two or more")
    try:
        print(card_table(read_runs(parser.parse_args().evaluations)))
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
