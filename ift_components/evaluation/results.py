"""results.json: everything that the answers of one evaluation say."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ift_components.data.prepared import load_reports, read_manifest
from ift_components.data.schema import Schema
from ift_components.errors import DataError
from ift_components.evaluation import parsing
from ift_components.evaluation.calibration import calibrated
from ift_components.evaluation.constancy import training_answers, training_texts
from ift_components.evaluation.free_scores import summarise_free
from ift_components.evaluation.instruction import ReportTemplate, instruction_dependence
from ift_components.evaluation.metrics import image_control, summarise
from ift_components.evaluation.records import Prediction
from ift_components.evaluation.scorers import ScoringContext
from ift_components.evaluation.settings import EvalSettings
from ift_components.evaluation.tasks import CHOICE, CONTROL, FREE, FREE_CONTROL, REPORT, of_task
from ift_components.evaluation.text_metrics import summarise_texts
from ift_components.statistics import mean, rounded


def scoring_context(predictions: Sequence[Prediction], data: str | Path, parser: str) -> ScoringContext:
    """Return what the scorers of an evaluation need: the training reports' form, the generated reports, the schema.

    Args:
        predictions: the answers, scored or not.
        data: the main dataset's prepared folder.
        parser: name of the parser that decides.
    """
    manifest = read_manifest(data)
    template = None
    if manifest["counts"]["reports"].get("train"):
        template = ReportTemplate(load_reports(data, "train").select_columns(["report"])["report"])
    reports = {p.item.image_id: p.generated or "" for p in of_task(predictions, REPORT)}
    schema = Schema.from_dict(manifest["schema"]) if manifest.get("schema") else None
    return ScoringContext(parser, template, reports, schema)


def _in_report_format(predictions: Sequence[Prediction]) -> float:
    return mean(float(bool(p.scores["report_format"])) for p in predictions)


def _instruction_following(predictions: Sequence[Prediction], choices: Sequence[Prediction]) -> dict[str, Any]:
    """Return the measures of `instruction`, those that the answers allow."""
    measures: dict[str, Any] = {}
    if any(p.generated is not None for p in choices):
        measures["well_formed"] = mean(float(p.scores.get("paper") is not None) for p in choices)
    # The control's answers are to the same questions: they would only count twice.
    judged = [
        p for p in predictions if "report_format" in p.scores and p.item.task not in (CONTROL.name, FREE_CONTROL.name)
    ]
    if judged:
        measures["image_dependence"] = _in_report_format(judged)
        kinds = sorted({p.item.kind or FREE.name for p in judged})
        measures["image_dependence_by_kind"] = {
            kind: _in_report_format([p for p in judged if (p.item.kind or FREE.name) == kind]) for kind in kinds
        }
    dependence = instruction_dependence(choices)
    if dependence is not None:
        measures["instruction_dependence"] = dependence
    return measures


def _texts_by_set(predictions: Sequence[Prediction], summary: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    result = summary(predictions)
    names = sorted({p.item.dataset for p in predictions})
    if len(names) > 1:
        result["sets"] = {name: summary([p for p in predictions if p.item.dataset == name]) for name in names}
    return result


def gather_results(
    predictions: Sequence[Prediction],
    cfg: EvalSettings,
    dataset: str,
    validation: Sequence[Prediction] | None = None,
) -> dict[str, Any]:
    """Return the results of the main dataset at the top level, and those of everything else under keys of their own.

    Figures of multiple-choice questions stand at the top level, those of open and closed ones under `free`, also where there
    are no others.

    Args:
        predictions: the scored answers.
        cfg: the evaluation's config.
        dataset: name of the main dataset.
        validation: answers that those to the main dataset's multiple-choice questions are calibrated by.

    Raises:
        DataError: if there is no question at all.
    """
    choices = of_task(predictions, CHOICE, dataset)
    free = [p for p in of_task(predictions, FREE) if p.item.dataset not in cfg.unrelated]
    if not choices and not free:
        raise DataError(f"data: {cfg.data} has no question in split '{cfg.split}', which results.json is made of")
    settings: dict[str, Any] = {"draws": cfg.bootstrap, "seed": cfg.seed}
    results: dict[str, Any] = {"label": cfg.label, "dataset": dataset, "split": cfg.split, "scoring": cfg.scoring}
    results |= {"parser": cfg.parser, "parser_version": parsing.VERSION}
    if choices:
        results |= summarise(choices, priors=training_answers(cfg.data), **settings)
        if validation is not None:
            results["calibrated"] = rounded(calibrated(choices, validation, **settings))
        control = image_control(choices, of_task(predictions, CONTROL, dataset), **settings)
        if control is not None:
            results["image_control"] = rounded(control)
    else:
        results |= {"questions": len({p.item.key for p in free}), "images": len({p.item.image_id for p in free})}
    results["unanswered"] = sum(p.unanswered is not None for p in predictions)
    results["instruction_following"] = rounded(_instruction_following(predictions, choices))
    if cfg.unrelated:
        results["unrelated"] = {name: _unrelated(predictions, name, settings) for name in cfg.unrelated}
    if free:
        results["free"] = _free(free, of_task(predictions, FREE_CONTROL, dataset), cfg, settings)
    reports = of_task(predictions, REPORT)
    if reports:
        results["reports"] = _texts_by_set(reports, summarise_texts)
    results["seconds"] = round(sum(p.seconds for p in predictions), 2)
    return results


def _free(
    free: Sequence[Prediction], controls: Sequence[Prediction], cfg: EvalSettings, settings: dict[str, Any]
) -> dict[str, Any]:
    """Return the figures of the free questions, in all and by set, and of their image control."""
    summary = partial(summarise_free, priors=training_texts(cfg.data), **settings)
    result = _texts_by_set(free, summary)
    control = image_control(free, controls, **settings)
    return result if control is None else {**result, "image_control": rounded(control)}


def _unrelated(predictions: Sequence[Prediction], name: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the figures of a task that was not tuned on: those of free questions under `free`."""
    choices, free = (of_task(predictions, task, name) for task in (CHOICE, FREE))
    entry = summarise(choices, **settings) if choices else {}
    return {**entry, "free": summarise_free(free, **settings)} if free else entry


def _table_of_free(free: Mapping[str, Any]) -> str:
    """Return the free questions' scores as a text table: closed, open and in all."""
    lines = ["free questions  questions  accuracy  95 % interval     without looking"]
    for title, prefix, count in (
        ("closed", "closed_", "closed_questions"),
        ("open", "open_", "open_questions"),
        ("all", "", "questions"),
    ):
        if count not in free:
            continue
        low, high = free[f"{prefix}interval"]
        prior = free[f"{prefix}prior"] if free[f"{prefix}prior"] is not None else free[f"{prefix}majority"]
        lines.append(
            f"{title:14}  {free[count]:9}  {free[f'{prefix}accuracy']:8.3f}  {low:.3f} to {high:.3f}  {prior:18.3f}"
        )
    if "open_recall" in free:
        low, high = free["open_recall_interval"]
        lines.append(
            f"open questions, recall of the reference's words {free['open_recall']:.3f} ({low:.3f} to {high:.3f})"
        )
    return "\n".join([*lines, *_control_lines(free.get("image_control", {}))])


def _calibrated_line(found: Mapping[str, Any] | None) -> str | None:
    if found is None:
        return None
    low, high = found["interval"]
    return (
        f"without {found['share']:.1f} of what is said on average: accuracy {found['accuracy']:.3f} ({low:.3f} to {high:.3f}), "
        f"balanced {found['balanced_accuracy']:.3f}, answered alike {len(found['constant'])}"
    )


def _control_lines(control: Mapping[str, Any]) -> list[str]:
    lines = []
    for title, score, difference in (
        ("", "accuracy", "difference"),
        ("recall ", "open_recall", "open_recall_difference"),
    ):
        if score in control:
            low, high = control[f"{difference}_interval"]
            lines.append(
                f"{title}with another image's pixels {control[score]:.3f}; read from the image {control[difference]:+.3f} "
                f"({low:+.3f} to {high:+.3f})"
            )
    return lines


def table(results: dict[str, Any]) -> str:
    """Return results as a text table: one row an attribute and one for all, and the free questions by kind."""
    tables = [_table_of_choices(results)] if "accuracy" in results else []
    return "\n".join([*tables, _table_of_free(results["free"])] if "free" in results else tables)


def _table_of_choices(results: dict[str, Any]) -> str:
    names = (
        "questions",
        "chance",
        "prior_shown",
        "accuracy",
        "balanced_accuracy",
        "well_formed",
        "forced_accuracy",
        "auroc",
        "circular_accuracy",
        "read_out_accuracy",
    )
    columns = [name for name in names if results.get(name) is not None]
    width = max(map(len, [*results["attributes"], "attribute"]))
    lines = ["  ".join(["attribute".ljust(width), *columns])]
    for name, rates in [*results["attributes"].items(), ("all", results)]:
        # An attribute may lack a figure that the whole has: under a limit none of its images need have a report.
        found = (rates.get(column, "") for column in columns)
        cells = [f"{value:.3f}" if isinstance(value, float) else str(value) for value in found]
        padded = (cell.rjust(len(column)) for cell, column in zip(cells, columns, strict=True))
        lines.append("  ".join([name.ljust(width), *padded]))
    low, high = results["interval"]
    lines.append(
        f"accuracy {results['accuracy']:.3f}, 95 % interval {low:.3f} to {high:.3f} over images; balanced "
        f"{results['balanced_accuracy']:.3f}"
    )
    if results["constant"]:
        lines.append(f"answered alike whatever the image: {', '.join(results['constant'])}")
    line = _calibrated_line(results.get("calibrated"))
    return "\n".join([*lines, *([line] if line else []), *_control_lines(results.get("image_control", {}))])
