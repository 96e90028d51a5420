"""results.json: everything that the answers of one evaluation say."""

from collections.abc import Sequence
from typing import Any

from ift_components.data.prepared import load_reports, read_manifest
from ift_components.data.schema import Schema
from ift_components.evaluation.instruction import ReportTemplate, image_dependence, instruction_dependence
from ift_components.evaluation.metrics import Row, rounded, summarise
from ift_components.evaluation.settings import EvalSettings
from ift_components.evaluation.text_metrics import summarise_texts


def _instruction_following(rows: Sequence[Row], choices: Sequence[Row], data: str) -> dict[str, Any]:
    """Return the measures of `instruction`, those that the answers allow."""
    manifest = read_manifest(data)
    found: dict[str, Any] = {}
    answers = [row["generated"] for row in rows if row["task"] != "report" and "generated" in row]
    if answers:
        found["well_formed"] = sum(row.get("paper") is not None for row in choices) / len(choices)
    if answers and manifest["counts"]["reports"].get("train"):
        template = ReportTemplate(load_reports(data, "train").select_columns(["report"])["report"])
        found["image_dependence"] = image_dependence(answers, template)
    reports = {row["image_id"]: row["generated"] for row in rows if row["task"] == "report"}
    if reports:
        schema = Schema.from_dict(manifest["schema"]) if manifest.get("schema") else None
        found["instruction_dependence"] = instruction_dependence(choices, reports, schema)
    return found


def gather_results(rows: Sequence[Row], cfg: EvalSettings, dataset: str) -> dict[str, Any]:
    """Return the results of the main dataset at the top level, and those of everything else under keys of their own.

    Args:
        rows: the lines of predictions.jsonl.
        cfg: the evaluation's config.
        dataset: name of the main dataset.
    """
    choices = [row for row in rows if row["task"] == "choice" and row["dataset"] == dataset]
    settings = {"draws": cfg.bootstrap, "seed": cfg.seed}
    results: dict[str, Any] = {"label": cfg.label, "dataset": dataset, "split": cfg.split, "scoring": cfg.scoring}
    results |= {"parser": cfg.parser, **summarise(choices, **settings)}
    results["instruction_following"] = rounded(_instruction_following(rows, choices, cfg.data))
    unrelated = {}
    for name in cfg.unrelated:
        others = [row for row in rows if row["task"] == "choice" and row["dataset"] == name]
        unrelated[str(name)] = summarise(others, **settings)
    if unrelated:
        results["unrelated"] = unrelated
    for task, name in (("free", "free"), ("report", "reports")):
        texts = [row for row in rows if row["task"] == task]
        if texts:
            results[name] = summarise_texts(texts)
            sets = sorted({row["dataset"] for row in texts})
            if len(sets) > 1:
                results[name]["sets"] = {
                    one: summarise_texts([r for r in texts if r["dataset"] == one]) for one in sets
                }
    seconds = sum(row["seconds"] for row in rows)
    results["seconds"] = round(seconds, 2)
    results["answers_per_second"] = round(len(rows) / seconds, 3) if seconds else None
    return results


def table(results: dict[str, Any]) -> str:
    """Return results as a text table, one row an attribute and one for all."""
    names = ("questions", "chance", "majority", "accuracy", "well_formed", "forced_accuracy", "circular_accuracy")
    columns = [name for name in names if results.get(name) is not None]
    width = max(map(len, [*results["attributes"], "attribute"]))
    lines = ["  ".join(["attribute".ljust(width), *columns])]
    for name, rates in [*results["attributes"].items(), ("all", results)]:
        cells = [f"{rates[c]:.3f}" if isinstance(rates[c], float) else str(rates[c]) for c in columns]
        padded = (cell.rjust(len(column)) for cell, column in zip(cells, columns, strict=True))
        lines.append("  ".join([name.ljust(width), *padded]))
    low, high = results["interval"]
    lines.append(f"accuracy {results['accuracy']:.3f}, 95 % interval {low:.3f} to {high:.3f} (bootstrap over images)")
    return "\n".join(lines)
